"""Accelerated gradient descent on h + w R for priors that give R and its gradient in one pass.

    v  = x + (theta - 1) / theta+ (x - x_previous),        theta+ = (1 + sqrt(1 + 4 theta^2)) / 2
    x+ = v - tau grad F(v),     F = h + w R                w = t / eta

tau, one for every sample, is halved until F(x+) <= F(v) - tau/2 |grad F(v)|^2, which every tau <= 1 / L does,
L = ||A||^2 + w Lip(grad R), and grows a little after each iteration. Where F(x+) > F(x) the extrapolation is dropped:
v = x and theta restarts at 1. So F never rises, for any R, and no prox is computed: two passes of the prior and one of
A and A^T an iteration.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..per_sample import broadcast, dot
from ..physics import LinearOperator
from .automatic import Settings, choose
from .conditions import smooth_conditions
from .driver import Callback, State
from .problem import InverseProblem, checked_problem, half_square, positive, relative_change
from .protocol import SmoothModel
from .prox import LearnedProx, channels_apart, repeated
from .proximal_gradient import SAFE_FRACTION
from .reconstruction import Reconstruction
from .run import solve

GROWTH = 1.2  # factor on an accepted step


@dataclass(frozen=True)
class SmoothState(State):
    """Adds measurements of the image, what momentum needs, and the step of every sample."""

    measured: Tensor  # (n, ...) A image
    previous: Tensor  # (n, ...) the image before
    previous_measured: Tensor  # (n, ...)
    theta: Tensor  # (n,) float64, 1 at a (re)start
    tau: Tensor  # (n,) float64
    floor: Tensor  # (n,) float64, a step that is known to be safe
    w: Tensor  # (n,) float64


@dataclass(frozen=True)
class SmoothDescent:
    """The iteration; `prox` names the model, no prox is computed."""

    prox: LearnedProx
    lipschitz: float  # constant for grad R

    def start(self, problem: InverseProblem, settings: Settings) -> SmoothState:
        """The state before the first iteration, at rest."""
        x0, measured = problem.x0, problem.physics.A(problem.x0)
        ones = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
        w = settings.strength / settings.step_size * ones
        floor = 1 / (problem.norm**2 * ones + w * self.lipschitz)
        before: dict[str, Any] = {"previous": x0, "previous_measured": measured, "theta": ones}
        return SmoothState.before(problem, settings, measured=measured, **before, tau=8 * floor, floor=floor, w=w)

    def step(self, state: SmoothState) -> SmoothState:
        """One iteration."""
        theta = (1 + (1 + 4 * state.theta.square()).sqrt()) / 2
        momentum = (state.theta - 1) / theta
        point = state.image + broadcast(momentum, state.image) * (state.image - state.previous)
        measured = state.measured + broadcast(momentum, state.measured) * (state.measured - state.previous_measured)
        new = replace(self._descend(state, point, measured), theta=theta)
        rejected = ~(new.objective <= state.objective) & (momentum > 0)
        if bool(rejected.any()):
            old = state.select(rejected)
            plain = replace(self._descend(old, old.image, old.measured), theta=torch.ones_like(old.theta))
            new = new.merge(rejected, plain)
        return replace(new, previous=state.image, previous_measured=state.measured, tau=GROWTH * new.tau)

    def _descend(self, state: SmoothState, point: Tensor, measured: Tensor) -> SmoothState:
        """The state after a gradient step from a point, A point = measured."""
        value, gradient = self._at(state, point, measured)
        gradient = state.physics.A_adjoint(measured - state.y) + broadcast(state.w, point) * gradient
        square = dot(gradient, gradient)
        new = self._moved(state, point, gradient)
        pending = ~(new.objective <= value - new.tau / 2 * square) & (new.tau > new.floor)
        while bool(pending.any()):
            part = state.select(pending)
            shorter = torch.maximum(new.tau[pending] / 2, part.floor)
            retried = self._moved(replace(part, tau=shorter), point[pending], gradient[pending])
            new = new.merge(pending, retried)
            pending = pending & ~(new.objective <= value - new.tau / 2 * square) & (new.tau > new.floor)
        return new

    def _moved(self, state: SmoothState, point: Tensor, gradient: Tensor) -> SmoothState:
        image = point - broadcast(state.tau, point) * gradient
        measured = state.physics.A(image)
        objective, _ = self._at(state, image, measured)
        residual = relative_change(image, state.image)
        return replace(state, image=image, measured=measured, objective=objective, residual=residual)

    def _at(self, state: SmoothState, x: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        """(F(x), grad R(x))."""
        model, sigma = cast(SmoothModel, self.prox.model), state.sigma
        count = channels_apart(model, x)
        if count > 1:
            sigma = None if sigma is None else repeated(sigma, count)
            prior, gradient = model.prior_and_grad(x.reshape(-1, 1, *x.shape[2:]), sigma)
            prior, gradient = prior.reshape(-1, count).sum(1), gradient.reshape(x.shape)
        else:
            prior, gradient = model.prior_and_grad(x, sigma)
        return half_square(measured - state.y) + state.w * prior, gradient


@torch.no_grad()
def gradient(
    y: Tensor,
    physics: LinearOperator,
    model: SmoothModel,
    *,
    step_size: float | Tensor | None = None,
    strength: float | Tensor | str | None = None,
    sigma: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    max_iter: int = 200,
    tol: float | None = None,
    x0: Tensor | None = None,
    strict: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructions by monotone accelerated gradient descent, for priors with a gradient, e.g. `ExplicitLPN`.

    Minimises what `pgd` minimises,  1/2 ||A x - y||^2 + (t / eta) R(x),  without a prox: R and its gradient are one
    pass each. The objective is exact and falls in every iteration, for any R; steps are found by backtracking.

    Parameters
    ----------
    y, physics, strength, sigma, noise, max_iter, tol, x0, strict, callback, progress
        As for `pgd`.
    model : SmoothModel
        A prior with `prior_and_grad(x, sigma)`.
    step_size : float or Tensor, shape (N,), optional
        eta of the weight t / eta, as for `pgd`; no step is taken with it.

    Returns
    -------
    Reconstruction

    Raises
    ------
    TypeError, ValueError
        As for `pgd`; a model without `prior_and_grad`.

    Examples
    --------
    >>> import torch
    >>> import lpn_fast as lf
    >>> physics = lf.physics.Blur.gaussian(1.0)
    >>> y = physics.A(torch.rand(2, 1, 16, 16))
    >>> prior = lf.ExplicitLPN(1, kernel=4, groups=8)
    >>> lf.solvers.gradient(y, physics, prior, sigma=0.1, max_iter=5).objective.shape
    torch.Size([5, 2])
    """
    if not callable(getattr(model, "prior_and_grad", None)):
        raise TypeError(f"model must have prior_and_grad(x, sigma), as ExplicitLPN has, got {type(model).__name__}")
    problem = checked_problem(y, physics, x0=x0, max_iter=max_iter, tol=tol)
    settings = choose(
        problem,
        model,
        step_size=None if step_size is None else positive("step_size", step_size, y),
        default_step=SAFE_FRACTION / problem.norm**2,
        strength=strength,
        sigma=sigma,
        noise=noise,
    )
    method = SmoothDescent(LearnedProx.of(model), max(1.0, 1 / model.alpha - 1))
    return solve(
        "gradient", method, problem, settings, smooth_conditions(problem, model.alpha),
        max_iter=max_iter, tol=tol, strict=strict, callback=callback, progress=progress,
    )  # fmt: skip
