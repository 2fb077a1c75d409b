"""Linear measurement operators y = A x + noise: batched, with matched adjoints and bounded norms.

A physics has four methods: `A(x)`, `A_adjoint(y)`, `norm()` (an upper bound on ||A||) and
`prox_l2(z, y, gamma)`. Solvers need only the first two and find the others by iteration.
`physics.with_noise(noise)` simulates measurements and knows how large their noise is.
"""

from .base import Physics, adjoint_mismatch, operator_norm, operator_norm_bound
from .blur import Blur
from .cg import CGResult, conjugate_gradient, prox_l2_by_cg
from .compressed_sensing import CompressedSensing
from .ct import ParallelBeamCT, ParallelBeamGeometry
from .denoising import Denoising
from .downsampling import Downsampling
from .inpainting import Inpainting
from .kernels import gaussian_kernel, load_kernels, shake_kernel
from .matrix import Matrix, from_matrix
from .mri import MRI
from .noise import GaussianNoise, Noisy, PoissonNoise
from .protocol import LinearOperator, NoiseModel
from .starts import has_start, seen, start

__all__ = [
    "MRI",
    "Blur",
    "CGResult",
    "CompressedSensing",
    "Denoising",
    "Downsampling",
    "GaussianNoise",
    "Inpainting",
    "LinearOperator",
    "Matrix",
    "NoiseModel",
    "Noisy",
    "ParallelBeamCT",
    "ParallelBeamGeometry",
    "Physics",
    "PoissonNoise",
    "adjoint_mismatch",
    "conjugate_gradient",
    "from_matrix",
    "gaussian_kernel",
    "load_kernels",
    "operator_norm",
    "operator_norm_bound",
    "prox_l2_by_cg",
    "has_start",
    "seen",
    "shake_kernel",
    "start",
]
