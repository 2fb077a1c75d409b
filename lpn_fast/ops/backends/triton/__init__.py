"""Triton kernels for convolutional networks: each stage of each sweep is one kernel (lpn_fast/kernels/triton).

The sweeps (ops/sweeps.py) ask the maps for a product and hand it to an element-wise step. Here the maps only
describe the product, and the step computes both at once. Stages run in one of three ways:

    fused    an implicit GEMM with the step inside; covers every kernel, stride, padding, resize and width
    library  the library's convolution, then the step, where that was measured to be faster (kernels/triton/choices.py)
    whole    a core that covers its whole input (the published last stage) is a matrix product with few rows and a very
             long sum, which a library splits better: library product, then the step. Its transpose is fused again.

Weights are rounded once per call into one buffer [k, k, C_in, C_out], which both directions read. x, v, f, psi, P and
biases stay float32; the image enters as two halves in 16-bit precisions, so that only weights and activations round.

What a squared first stage hands on, z = u^2, dz = 2 u du and e, is never stored: kernels form it from tiles of what
is kept, in float32, and in half precision times a power of two that keeps u^2 in range.

A frame under one stage of gates of single pixels, which all denoisers that ship are, needs none of that: one kernel
computes its prox, potential and Hessian products from x (fused.py), another one and a product the gradients of its
weights. Of wide ones in float32 these go by stages, or by torch where the gates compete or the border is mirrored.

backend    what it supports and runs; registration
epilogues  the element-wise steps, each handed to the product it follows
products   W z + A x and W^T e, described by the maps and computed with their step
maps       the linear maps of a network: weights as the kernels read them, gradients, tile sizes
skips      the sum of the skips' adjoints
choice     whether a stage's product is the library's
fused      frames and mixtures in one kernel
explicit   explicit priors, whose kernels ops/explicit chooses
layouts    channels-last views, rounded weights, operands
device     facts of the device, and the kernels' launchers
"""

from .backend import TritonBackend, register

__all__ = ["TritonBackend", "register"]
