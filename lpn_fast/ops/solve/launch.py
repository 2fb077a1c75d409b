"""A whole solve in one launch, where the backend that runs the network has a solver of its own.

Its method is newton.py's, so it stands in for the two methods whose steps use curvature; the others are chosen
by name for what they are. Samples without a solution go on as after any other method.
"""

from typing import Any

from torch import Tensor

from .. import registry
from ..device_check import HESSIAN
from .descent import EquationSolution
from .equation import Equation

STANDS_IN_FOR = ("lbfgs", "newton-cg")


def in_one_launch(
    equation: Equation,
    start: Tensor,  # [N, ...]
    method: str,
    tol: float,
    max_iter: int | None,
    radius: float | None,
) -> EquationSolution | None:
    """Solutions by the backend's own solver; None where there is none for this call."""
    if method not in STANDS_IN_FOR or equation.features is not None:
        return None
    backend: Any = registry.select(equation.spec, equation.z, "fp32", HESSIAN)  # most of a Newton step
    if not hasattr(backend, "solve") or not backend.has_room_to_solve(equation.spec, equation.z):
        return None
    fields = backend.solve(
        equation.spec,
        equation.packed,
        equation.z,
        start,
        equation.strength,
        tol=tol,
        max_iter=max_iter,
        radius=radius,
    )
    return EquationSolution(**fields)
