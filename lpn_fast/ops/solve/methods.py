"""The methods by name, and the homotopy that helps where a direct attempt fails."""

from dataclasses import replace

import torch
from torch import Tensor

from .descent import EquationSolution, Method, Verdict, descend
from .equation import Equation
from .fixed_point import FixedPoint
from .gradient import AcceleratedGradient
from .launch import in_one_launch
from .lbfgs import LBFGS
from .newton import NewtonCG

# In order of work. On trained and untrained, dense and convolutional networks, tolerances 1e-5 to 1e-10, Newton-CG
# took 1.5 to 2.5 times the sweeps of L-BFGS: each of its steps starts a new Krylov space, while a memory carries
# over. It takes a fifth of the steps, which counts where a step costs a synchronisation.
EQUATION_METHODS: dict[str, type[Method]] = {
    "lbfgs": LBFGS,
    "newton-cg": NewtonCG,
    "gradient": AcceleratedGradient,
    "fixed-point": FixedPoint,
}

# t of the equations solved in turn, each from the solution before: u(1) = z, and u(t) is continuous in t.
HOMOTOPY = (0.5, 0.1, 0.02, 4e-3, 8e-4)
HOMOTOPY_TOL = 1e-2  # for the intermediate solutions, which are only starts


def solve(
    equation: Equation,
    start: Tensor,  # [N, ...]
    *,
    method: str = "lbfgs",
    tol: float,
    max_iter: int | None = None,
    radius: float | None = None,
    homotopy: bool = False,
) -> EquationSolution:
    """Solutions of  t u + (1 - t) f(u) = z  by a method of EQUATION_METHODS; max_iter None is the method's own.

    With `homotopy`, samples that stall or do not converge in max_iter steps are tried again through decreasing t.
    """
    kind = EQUATION_METHODS[method]
    equation = replace(equation, needs_tape=kind.needs_tape)
    steps = kind.max_iter if max_iter is None else max_iter
    solution = in_one_launch(equation, start, method, tol, max_iter, radius)
    if solution is None:
        solution = descend(equation, start, kind(), tol=tol, max_iter=steps, radius=radius)
    if homotopy:
        unsolved = (solution.verdict == Verdict.ITERATIONS) | (solution.verdict == Verdict.STALLED)
        unsolved = unsolved.nonzero()[:, 0]
        if len(unsolved):
            again = _by_homotopy(equation.select(unsolved), kind, tol, steps, radius)
            again = replace(again, iterations=again.iterations + solution.iterations[unsolved])
            better = again.residual < solution.residual[unsolved]
            chosen = [getattr(again, name)[better] for name in vars(again)]
            solution.put_(unsolved[better], EquationSolution(*chosen))
    return solution


def _by_homotopy(
    equation: Equation, kind: type[Method], tol: float, max_iter: int, radius: float | None
) -> EquationSolution:
    u, taken = equation.z, torch.zeros(len(equation.z), dtype=torch.int64, device=equation.z.device)
    for t in HOMOTOPY:
        strength = torch.maximum(equation.strength, torch.full_like(equation.strength, t))
        eased = descend(
            replace(equation, strength=strength), u, kind(), tol=HOMOTOPY_TOL, max_iter=max_iter, radius=None
        )
        u, taken = eased.u, taken + eased.iterations
    solution = descend(equation, u, kind(), tol=tol, max_iter=max_iter, radius=radius)
    return replace(solution, iterations=solution.iterations + taken)
