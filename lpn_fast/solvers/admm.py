"""Alternating direction method of multipliers with a learned prox.

In this order, from z = x0 and u = 0:
    x+ = argmin_x 1/2 ||A x - y||^2 + rho/2 ||x - (z - u)||^2      data prox, gamma = 1 / rho
    u+ = u + x+ - z                                                dual
    z+ = prox_{tR}(x+ + u+)                                        learned prox, the image returned
which minimises  F(z) = 1/2 ||A z - y||^2 + t rho R(z).

The dual stands between the two proxes, directly behind the *smooth* one, on purpose. Then
rho u+ = -grad h(x+), the dual is tied to a Lipschitz function, and the iteration is Douglas-Rachford
with the smooth term first, the form whose convergence for non-convex R is known:
s = z - u,  x = prox_h(s),  z+ = prox_{tR}(2x - s),  s+ = s + z+ - x.  For rho > ||A||^2 its envelope
    D = h(x+) + <grad h(x+), z+ - x+> + rho/2 ||z+ - x+||^2 + t rho R(z+)
falls in every iteration (Themelis, Patrinos, SIAM J. Optim. 30, 2020; order and conditions as in
arXiv 2310.14344). F itself may rise on the way. With the dual last, u would be tied to R instead.

Stationarity: grad h(z+) + t rho dR(z+) contains grad h(z+) - grad h(x+) + rho (x+ - z+), of size at
most (||A||^2 + rho) ||x+ - z+||. So ||x+ - z+|| is the residual that matters; ||z+ - z|| is watched with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lpn_fast.solvers.conditions import admm_conditions
from lpn_fast.solvers.driver import State, iterate
from lpn_fast.solvers.problem import Problem, check_number, data_prox, half_square, pose, relative_change
from lpn_fast.solvers.reconstruction import Reconstruction

SAFE_FACTOR = 1.05  # default rho over its limit ||A||^2; at the limit itself the proven decrease is zero


@dataclass(frozen=True)
class ADMMState(State):
    """Adds the two other variables; ``image`` is z."""

    data_image: Tensor  # (n, ...) x, output of the data prox
    dual: Tensor  # (n, ...) u, scaled by 1 / rho


@dataclass(frozen=True)
class AlternatingDirections:
    """The iteration: one operator, one model, one penalty."""

    physics: object
    model: object
    rho: float

    def start(self, problem: Problem) -> ADMMState:
        """State before the first iteration; R of the start is unknown, hence NaN."""
        unknown = torch.full((len(problem.y),), torch.nan, dtype=torch.float64, device=problem.y.device)
        x0 = problem.x0
        return ADMMState(problem.y, problem.strength, problem.sigma, x0, unknown, unknown, x0, torch.zeros_like(x0))

    def step(self, state: ADMMState) -> ADMMState:
        x = data_prox(self.physics)(state.image - state.dual, state.y, 1 / self.rho)  # (n, ...)
        dual = state.dual + x - state.image
        image, prior = self.model.prox_and_prior(x + dual, strength=state.strength, sigma=state.sigma)
        objective = half_square(self.physics.A(image) - state.y) + state.strength * self.rho * prior
        residual = torch.maximum(relative_change(image, x), relative_change(image, state.image))
        return replace(state, image=image, objective=objective, residual=residual, data_image=x, dual=dual)


@torch.no_grad()
def admm(
    y: Tensor,
    physics,
    model,
    *,
    rho: float | None = None,
    strength: float | Tensor = 1.0,
    sigma: float | Tensor | None = None,
    max_iter: int = 50,
    tol: float = 1e-5,
    x0: Tensor | None = None,
    strict: bool = False,
    callback: Callable[[int, Tensor, Tensor], bool | None] | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructions by the alternating direction method of multipliers (PnP-ADMM).

    Minimises  1/2 ||A x - y||^2 + t rho R(x)  by data prox, dual and learned prox in this order, and
    returns the output of the learned prox. The iterates converge for rho > ||A||^2 and
    0 < alpha < 1; the published experiments used rho 10 to 70 times smaller, which ``conditions``
    reports and ``strict`` refuses. A larger t rho weighs the prior more.

    Parameters
    ----------
    y : Tensor, shape (N, ...), float32 or float64
        Measurements.
    physics : object with ``A`` and ``A_adjoint``
        Linear operator acting on every sample alike. Its ``norm()`` is used if it has one, else
        ||A|| is estimated with a margin and the report says so; its ``prox_l2(z, y, gamma)`` is
        used if it has one, else conjugate gradients.
    model : LPN
        Learned prior: ``prox_and_prior(z, strength, sigma)`` and ``alpha``.
    rho : float, optional
        Penalty; None is 1.05 ||A||^2.
    strength : float or Tensor, shape (N,), in (0, 1]
        Weight t of the prior.
    sigma : float or Tensor, shape (N,), optional
        Noise level for a model that is conditioned on it.
    max_iter : int
        Most iterations a sample may take.
    tol : float
        A sample has converged when ||z+ - x+|| and ||z+ - z|| are at most tol ||z+||.
    x0 : Tensor, shape (N, ...), optional
        Start of z, the dual starts at zero; None is A^T y.
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
    >>> physics = lf.physics.Blur.gaussian(1.0, boundary="full")
    >>> y = physics.A(torch.rand(2, 1, 16, 16))
    >>> result = lf.solvers.admm(y, physics, lf.ConvLPN(1, hidden=8).eval(), max_iter=5)
    >>> result.objective.shape, result.conditions["penalty"].holds
    (torch.Size([5, 2]), True)
    """
    problem = pose(y, physics, strength=strength, sigma=sigma, x0=x0, max_iter=max_iter, tol=tol)
    rho = SAFE_FACTOR * problem.norm**2 if rho is None else check_number("rho", rho)
    conditions = admm_conditions(problem, rho, float(model.alpha))
    if strict:
        conditions.raise_unless_all_hold()
    method = AlternatingDirections(physics, model, rho)
    return iterate(
        "admm", method.step, method.start(problem), conditions,
        max_iter=max_iter, tol=tol, callback=callback, progress=progress,
    )  # fmt: skip
