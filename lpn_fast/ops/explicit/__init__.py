"""Explicit priors: R, its gradient and Hessian products by patches, and the prox by a certified solve."""

from ...algebra.patches import Patches
from .descent import Solution, SolveLimits, solve
from .functions import prior_gradient, prior_value, proximal_point
from .potentials import Potentials

__all__ = [
    "Patches",
    "Potentials",
    "Solution",
    "SolveLimits",
    "prior_gradient",
    "prior_value",
    "proximal_point",
    "solve",
]
