"""Batched solution of  t u + (1 - t) f(u) = z,  the equation behind inversion (t = 0) and adjustable strength.

`equation` states it, `newton`, `lbfgs`, `gradient` and `fixed_point` each take a step, `descent` repeats the
step with a verdict for every sample, and `implicit` differentiates the solution.
"""

from .descent import EquationSolution, Verdict
from .equation import Curvature, Equation, Point
from .implicit import SolveOptions, differentiable_solution
from .methods import EQUATION_METHODS, solve

__all__ = [
    "EQUATION_METHODS",
    "Curvature",
    "Equation",
    "Point",
    "SolveOptions",
    "EquationSolution",
    "Verdict",
    "differentiable_solution",
    "solve",
]
