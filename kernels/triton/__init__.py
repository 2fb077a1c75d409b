"""Triton kernels of convolutional networks.

Per output pixel of a stage with C_in -> C_out channels, kernel k, skip kernel k_x on C channels, 16-bit storage:

    role                   FLOP                              bytes at the least     special functions per output
    forward, tangent       2 C_out (k^2 C_in + 2 C k_x^2)    2 (C_in + C_out)       2, 1  (tangent reads z too)
    transposed, adjoint    2 C_in C_out k^2 / S^2            2 (C_in + 2 C_out)     1, 2  (adjoint reads e, dz too)
    gradient of W          4 k^2 C_in C_out                  4 (C_in + C_out)       0
    A^T e                  2 C_out C k_x^2                   2 C_out + 8 C k_x^2    0

At C = 256, k = 3 that is 1.2 MFLOP for 1 to 2 kB: bound by the matrix units by a factor of about five on an H200.
Hence one kernel per stage and sweep with its element-wise step inside, and nothing else stored than z, e, dz, delta.
Stages that read the image only, and A^T e, are bound by memory.

    activations   softplus, slope, curvature; the four steps on tiles in registers
    tiles         pixels and patches -> tiles; padding, stride, parity, resizing; TMA or pointers
    correlate     implicit GEMM, forward and transposed, step inside
    gradient      weight gradients, deterministic split over pixels
    assemble      f += D^T A^T e
    frame         psi, f and H v of a frame under gates of single pixels, or of a mixture, in one kernel
    explicit      R, grad R and H v of an explicit prior, in one kernel, of frame's pieces
    positions     tiles of consecutive positions, for sums over all of them
    frame_gradient, explicit_gradient    gradients in the parameters: of gates on chip, of filters from two factors
    units         powers of two for e and delta in half precision
    elementwise   the step alone, after a library's product
    choices       our kernel, or the library's product and the step alone (plain Python)
    launch        which tile a kernel runs with: table.csv, a rule, and tile shapes (plain Python)

Importing this package imports nothing; the modules above import Triton, all but `launch`.
"""
