"""Quasi-Newton descent on h + w R for priors that give R and its gradient in one pass.

    x+ = x + tau d,      d = -B grad F(x),      F = h + w R,  w = t / eta

B is that of L-BFGS (Nocedal, 1980), one memory for every sample. tau starts at one and shrinks until Armijo's condition
F(x+) <= F(x) + 1e-4 tau <grad F(x), d> holds; where no tau does, a step of 1 / L down the gradient is
taken, L = ||A||^2 + w Lip(grad R), and where rounding hides even that one's descent, the image stays. So F never rises,
for any R, and no prox is computed: one pass of the prior, A and A^T an iteration. Pairs (s, y) of too little curvature,
as there are where A misses a direction in which R is concave, are left out (Li and Fukushima, 2001): gradients
go to zero.
"""

from dataclasses import dataclass, replace
from typing import cast

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

MEMORY = 8
DECREASE = 1e-4  # of Armijo's condition
TRIALS = 8  # steps along one direction
CURVED = 1e-8  # <s, y> over <s, s> and the safe step's 1 / L, from where a pair counts
FIRST = 8.0  # times the step that is safe: tried first


@dataclass(frozen=True)
class SmoothState(State):
    """Adds the gradient at the image, the pairs of L-BFGS, and what steps need."""

    measured: Tensor  # (n, ...) A image
    gradient: Tensor  # (n, ...) of F, at the image
    steps: Tensor  # (n, MEMORY, ...) s, the newest last
    changes: Tensor  # (n, MEMORY, ...) y
    inverse: Tensor  # (n, MEMORY) float64, 1 / <s, y>, 0 of no pair
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
        pairs = x0.new_zeros(len(x0), MEMORY, *x0.shape[1:])
        state = SmoothState.before(
            problem, settings, measured=measured, gradient=x0, steps=pairs, changes=pairs,
            inverse=ones[:, None].repeat(1, MEMORY) * 0, floor=1 / (problem.norm**2 * ones + w * self.lipschitz), w=w,
        )  # fmt: skip
        value, prior_gradient = self._at(state, x0, measured)
        return replace(state, objective=value, gradient=self._gradient(state, measured, prior_gradient))

    def step(self, state: SmoothState) -> SmoothState:
        """One iteration."""
        d = self._direction(state)
        slope = dot(state.gradient, d)
        new, prior_gradient = self._moved(state, d, state.physics.A(d), torch.ones_like(slope))
        tau = torch.ones_like(slope)
        for trial in range(TRIALS + 1):
            pending = ~(new.objective <= state.objective + DECREASE * tau * slope)
            if not bool(pending.any()):
                break
            part, before = state.select(pending), state.objective[pending]
            if trial < TRIALS:  # the minimum of a parabola through what is known
                rise = new.objective[pending] - before - tau[pending] * slope[pending]
                ratio = (-0.5 * tau[pending] * slope[pending] / rise).nan_to_num(0.1).clamp(0.1, 0.5)
                tau[pending] *= ratio
            else:
                d = d.index_copy(0, pending.nonzero().flatten(), -part.gradient)
                tau[pending] = part.floor
            own = d[pending]
            moved, of_prior = self._moved(part, own, part.physics.A(own), tau[pending])
            if trial == TRIALS:
                risen = ~(moved.objective <= before)
                still, of_still = self._moved(part, own, torch.zeros_like(part.measured), torch.zeros_like(before))
                where = risen.nonzero().flatten()
                moved = moved.merge(risen, still.select(risen))
                of_prior = of_prior.index_copy(0, where, of_still[risen])
            new = new.merge(pending, moved)
            prior_gradient = prior_gradient.index_copy(0, pending.nonzero().flatten(), of_prior)
        return self._remembered(state, replace(new, gradient=self._gradient(new, new.measured, prior_gradient)))

    def _direction(self, state: SmoothState) -> Tensor:
        """-B grad F, by the two loops of L-BFGS; before there is a pair, a longer step than is safe."""
        q, weights = -state.gradient, []
        for i in reversed(range(MEMORY)):
            a = state.inverse[:, i] * dot(state.steps[:, i], q)
            q = q - broadcast(a, q) * state.changes[:, i]
            weights.append(a)
        newest, y = state.inverse[:, -1], state.changes[:, -1]
        scale = torch.where(newest > 0, 1 / (newest * dot(y, y)), FIRST * state.floor)
        q = broadcast(scale, q) * q
        for i, a in zip(range(MEMORY), reversed(weights), strict=True):
            b = state.inverse[:, i] * dot(state.changes[:, i], q)
            q = q + broadcast(a - b, q) * state.steps[:, i]
        return q

    def _remembered(self, old: SmoothState, new: SmoothState) -> SmoothState:
        """The new state with the pair that led to it."""
        s, y = new.image - old.image, new.gradient - old.gradient
        product = dot(s, y)
        counts = product > CURVED * dot(s, s) / old.floor
        inverse = torch.where(counts, 1 / product, 0.0)
        return replace(
            new,
            steps=torch.cat([old.steps[:, 1:], s[:, None]], 1),
            changes=torch.cat([old.changes[:, 1:], y[:, None]], 1),
            inverse=torch.cat([old.inverse[:, 1:], inverse[:, None]], 1),
        )

    def _moved(self, state: SmoothState, d: Tensor, measured_d: Tensor, tau: Tensor) -> tuple[SmoothState, Tensor]:
        """The state after a step tau d, A d = measured_d, its gradient still that before; and the gradient of R."""
        image = state.image + broadcast(tau, d) * d
        measured = state.measured + broadcast(tau, measured_d) * measured_d
        objective, prior_gradient = self._at(state, image, measured)
        residual = relative_change(image, state.image)
        return replace(state, image=image, measured=measured, objective=objective, residual=residual), prior_gradient

    def _gradient(self, state: SmoothState, measured: Tensor, prior_gradient: Tensor) -> Tensor:
        """grad F where A of the image is `measured`."""
        return state.physics.A_adjoint(measured - state.y) + broadcast(state.w, prior_gradient) * prior_gradient

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
    """Reconstructions by monotone quasi-Newton descent, for priors with a gradient, e.g. `ExplicitLPN`.

    Minimises what `pgd` minimises,  1/2 ||A x - y||^2 + (t / eta) R(x),  without a prox: R and its gradient are one
    pass together. The objective is exact and falls in every iteration, for any R; steps are found by backtracking.

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
