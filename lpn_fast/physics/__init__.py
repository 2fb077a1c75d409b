"""Linear measurement operators y = A x + noise: batched, with matched adjoints and bounded norms.

A physics has four methods: ``A(x)``, ``A_adjoint(y)``, ``norm()`` (an upper bound on ||A||) and
``prox_l2(z, y, gamma)``. Solvers need only the first two and find the others by iteration.
``physics.with_noise(noise)`` simulates measurements and knows how large their noise is.
"""

from lpn_fast.physics.base import Physics, adjoint_mismatch, operator_norm, operator_norm_bound
from lpn_fast.physics.blur import Blur
from lpn_fast.physics.cg import CGResult, conjugate_gradient, prox_l2_by_cg
from lpn_fast.physics.compressed_sensing import CompressedSensing
from lpn_fast.physics.ct import ParallelBeamCT, ParallelBeamGeometry
from lpn_fast.physics.denoising import Denoising
from lpn_fast.physics.downsampling import Downsampling
from lpn_fast.physics.inpainting import Inpainting
from lpn_fast.physics.kernels import gaussian_kernel, load_kernels, shake_kernel
from lpn_fast.physics.mri import MRI
from lpn_fast.physics.noise import GaussianNoise, Noisy, PoissonNoise

__all__ = [
    "MRI",
    "Blur",
    "CGResult",
    "CompressedSensing",
    "Denoising",
    "Downsampling",
    "GaussianNoise",
    "Inpainting",
    "Noisy",
    "ParallelBeamCT",
    "ParallelBeamGeometry",
    "Physics",
    "PoissonNoise",
    "adjoint_mismatch",
    "conjugate_gradient",
    "gaussian_kernel",
    "load_kernels",
    "operator_norm",
    "operator_norm_bound",
    "prox_l2_by_cg",
    "shake_kernel",
]
