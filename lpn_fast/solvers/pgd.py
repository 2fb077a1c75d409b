"""Proximal gradient descent with a learned prox.

    x+ = prox_{tR}(x - eta A^T (A x - y))      minimises   F(x) = 1/2 ||A x - y||^2 + (t / eta) R(x)

    eta < 1 / ||A||^2   =>   F(x+) <= F(x) - (1 / (2 eta) - ||A||^2 / 2) ||x+ - x||^2

x+ is the *global* minimiser of the model h(x) + <grad h(x), . - x> + 1/(2 eta) ||. - x||^2 + (t/eta) R,
and the model lies above F by at least (1/(2 eta) - ||A||^2/2) ||. - x||^2; convexity of R is not used.
A x+ serves both the objective and the next gradient, and R(x+) comes with the prox, so the
objective costs two sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lpn_fast.solvers.conditions import pgd_conditions
from lpn_fast.solvers.driver import State, iterate
from lpn_fast.solvers.problem import Problem, check_number, half_square, pose, relative_change
from lpn_fast.solvers.reconstruction import Reconstruction

SAFE_FRACTION = 0.95  # default step over its limit 1 / ||A||^2; at the limit itself the proven decrease is zero


@dataclass(frozen=True)
class PGDState(State):
    """Adds the measurements of the image, which the next gradient needs."""

    measured: Tensor  # (n, ...) A image


@dataclass(frozen=True)
class ProximalGradient:
    """The iteration: one operator, one model, one step size."""

    physics: object
    model: object
    step_size: float

    def start(self, problem: Problem) -> PGDState:
        """State before the first iteration; R of the start is unknown, hence NaN."""
        unknown = torch.full((len(problem.y),), torch.nan, dtype=torch.float64, device=problem.y.device)
        measured = self.physics.A(problem.x0)
        return PGDState(problem.y, problem.strength, problem.sigma, problem.x0, unknown, unknown, measured)

    def step(self, state: PGDState) -> PGDState:
        gradient = self.physics.A_adjoint(state.measured - state.y)  # (n, ...)
        image, prior = self.model.prox_and_prior(
            state.image - self.step_size * gradient, strength=state.strength, sigma=state.sigma
        )  # (n, ...), (n,) float64
        measured = self.physics.A(image)
        objective = half_square(measured - state.y) + state.strength / self.step_size * prior
        residual = relative_change(image, state.image)
        return replace(state, image=image, objective=objective, residual=residual, measured=measured)


@torch.no_grad()
def pgd(
    y: Tensor,
    physics,
    model,
    *,
    step_size: float | None = None,
    strength: float | Tensor = 1.0,
    sigma: float | Tensor | None = None,
    max_iter: int = 100,
    tol: float = 1e-5,
    x0: Tensor | None = None,
    strict: bool = False,
    callback: Callable[[int, Tensor, Tensor], bool | None] | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructions by proximal gradient descent (PnP-PGD, PnP-ISTA).

    Iterates  x+ = prox_{tR}(x - eta A^T (A x - y)),  which minimises  1/2 ||A x - y||^2 + (t / eta) R(x).
    For eta < 1 / ||A||^2 the objective falls in every iteration, by at least
    (1 / (2 eta) - ||A||^2 / 2) ||x+ - x||^2. A larger t / eta weighs the prior more.

    Parameters
    ----------
    y : Tensor, shape (N, ...), float32 or float64
        Measurements.
    physics : object with ``A`` and ``A_adjoint``
        Linear operator acting on every sample alike. Its ``norm()`` is used if it has one, else
        ||A|| is estimated with a margin and the report says so.
    model : LPN
        Learned prior: ``prox_and_prior(z, strength, sigma)``.
    step_size : float, optional
        Step eta; None is 0.95 / ||A||^2.
    strength : float or Tensor, shape (N,), in (0, 1]
        Weight t of the prior.
    sigma : float or Tensor, shape (N,), optional
        Noise level for a model that is conditioned on it.
    max_iter : int
        Most iterations a sample may take.
    tol : float
        A sample has converged when ||x+ - x|| <= tol ||x+||.
    x0 : Tensor, shape (N, ...), optional
        Start; None is A^T y.
    strict : bool
        Raise before the first iteration if a condition of the theorem does not hold.
    callback : callable, optional
        Called as ``callback(iteration, x, objective)`` after every iteration, counted from 1, with
        all N images and objectives; returning True stops the run.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Reconstruction
        Samples do not influence each other: each result is what the sample gives alone, up to rounding.

    Raises
    ------
    TypeError, ValueError
        Arguments of the wrong kind or out of range, NaN in y, or with ``strict`` a failing condition.

    Warns
    -----
    RuntimeWarning
        Samples that became NaN or infinite on the way; they keep their last good image.

    Examples
    --------
    >>> import torch
    >>> import lpn_fast as lf
    >>> physics = lf.physics.Blur.gaussian(1.0)
    >>> y = physics.A(torch.rand(2, 1, 16, 16))
    >>> result = lf.solvers.pgd(y, physics, lf.ConvLPN(1, hidden=8).eval(), max_iter=5)
    >>> result.x.shape, result.conditions.all_hold
    (torch.Size([2, 1, 16, 16]), True)
    """
    problem = pose(y, physics, strength=strength, sigma=sigma, x0=x0, max_iter=max_iter, tol=tol)
    step_size = SAFE_FRACTION / problem.norm**2 if step_size is None else check_number("step_size", step_size)
    conditions = pgd_conditions(problem, step_size)
    if strict:
        conditions.raise_unless_all_hold()
    method = ProximalGradient(physics, model, step_size)
    return iterate(
        "pgd", method.step, method.start(problem), conditions,
        max_iter=max_iter, tol=tol, callback=callback, progress=progress,
    )  # fmt: skip
