"""The methods by name, and the homotopy that helps where a direct attempt fails."""

from dataclasses import replace

import torch
from torch import Tensor

from .descent import Solution, Verdict, descend
from .equation import Equation
from .fixed_point import FixedPoint
from .gradient import AcceleratedGradient
from .launch import in_one_launch
from .lbfgs import LBFGS
from .newton import NewtonCG

# In order of work. On trained and untrained, dense and convolutional networks, tolerances 1e-5 to 1e-10, Newton-CG
# took 1.5 to 2.5 times the sweeps of L-BFGS: each of its steps starts a new Krylov space, while a memory carries
# over. It takes a fifth of the steps, which counts where a step costs a synchronisation.
METHODS = {"lbfgs": LBFGS, "newton-cg": NewtonCG, "gradient": AcceleratedGradient, "fixed-point": FixedPoint}

# t of the equations solved in turn, each from the solution before: u(1) = z, and u(t) is continuous in t.
HOMOTOPY = (0.5, 0.1, 0.02, 4e-3, 8e-4)
HOMOTOPY_TOL = 1e-2  # of the intermediate solutions, which are only starts


def solve(
    equation: Equation,
    start: Tensor,  # [N, ...]
    *,
    method: str = "lbfgs",
    tol: float,
    max_iter: int | None = None,
    radius: float | None = None,
    homotopy: bool = False,
) -> Solution:
    """Solutions of  t u + (1 - t) f(u) = z  by a method of METHODS; max_iter None is the method's own.

    With `homotopy`, samples that run out of steps or stall are tried again through decreasing t.
    """
    kind = METHODS[method]
    equation = replace(equation, needs_tape=kind.needs_tape)
    limits = {"max_iter": kind.max_iter if max_iter is None else max_iter, "radius": radius}
    solution = in_one_launch(equation, start, method, tol, max_iter, radius)
    if solution is None:
        solution = descend(equation, start, kind(), tol=tol, **limits)
    if homotopy:
        late = (solution.verdict == Verdict.ITERATIONS) | (solution.verdict == Verdict.STALLED)
        late = late.nonzero()[:, 0]
        if len(late):
            again = _by_homotopy(equation.select(late), kind, tol, limits)
            again = replace(again, iterations=again.iterations + solution.iterations[late])
            better = again.residual < solution.residual[late]
            chosen = [getattr(again, name)[better] for name in vars(again)]
            solution.put_(late[better], Solution(*chosen))
    return solution


def _by_homotopy(equation: Equation, kind, tol: float, limits: dict) -> Solution:
    u, taken = equation.z, 0
    for t in HOMOTOPY:
        strength = torch.maximum(equation.strength, torch.full_like(equation.strength, t))
        eased = descend(
            replace(equation, strength=strength), u, kind(), tol=HOMOTOPY_TOL, max_iter=limits["max_iter"], radius=None
        )
        u, taken = eased.u, taken + eased.iterations
    solution = descend(equation, u, kind(), tol=tol, **limits)
    return replace(solution, iterations=solution.iterations + taken)
