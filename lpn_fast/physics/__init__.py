"""Linear measurement operators y = A x + noise: batched, with matched adjoints and bounded norms.

A physics has four methods: ``A(x)``, ``A_adjoint(y)``, ``norm()`` (an upper bound on ||A||) and
``prox_l2(z, y, gamma)``. Solvers need only the first two and find the others by iteration.
"""

from lpn_fast.physics.base import Physics, adjoint_mismatch, operator_norm
from lpn_fast.physics.blur import Blur
from lpn_fast.physics.cg import CGResult, conjugate_gradient, prox_l2_by_cg
from lpn_fast.physics.denoising import Denoising

__all__ = [
    "Blur",
    "CGResult",
    "Denoising",
    "Physics",
    "adjoint_mismatch",
    "conjugate_gradient",
    "operator_norm",
    "prox_l2_by_cg",
]
