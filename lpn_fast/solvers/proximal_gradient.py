"""Proximal gradient descent with a learned prox.

    x+ = prox_{tR}(x - eta A^T (A x - y))      minimises   F(x) = 1/2 ||A x - y||^2 + (t / eta) R(x)

    eta < 1 / ||A||^2   =>   F(x+) <= F(x) - (1 / (2 eta) - ||A||^2 / 2) ||x+ - x||^2

x+ is the *global* minimiser of the model h(x) + <grad h(x), . - x> + 1/(2 eta) ||. - x||^2 + (t/eta) R,
and the model lies above F by at least (1/(2 eta) - ||A||^2/2) ||. - x||^2; convexity of R is not used.
A x+ serves both the objective and the next gradient, and R(x+) comes with the prox, so the
objective costs two sums.

Backtracking keeps the weight w = t / eta, for it is the problem, and lets step and strength grow together, t = w eta
with t <= 1: a sample starts from the longest step there is, 1 / w, and halves it until F itself has fallen enough,
    F(x+) <= F(x) - delta / (2 eta) ||x+ - x||^2,
which every step below 1 / ||A||^2 does. Accepted steps grow slowly, so that few trials are wasted. Where F(x) is
unknown, at the start, ||A (x+ - x)||^2 <= ||x+ - x||^2 / eta takes its place: there the model lies above F at x+.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..per_sample import broadcast
from ..physics import LinearOperator
from .automatic import Settings, choose
from .conditions import gradient_conditions
from .driver import Callback, State
from .problem import InverseProblem, checked_problem, half_square, positive, relative_change
from .protocol import ProxModel
from .prox import LearnedProx
from .reconstruction import Reconstruction
from .run import Iteration, solve

SAFE_FRACTION = 0.95  # default step over its limit 1 / ||A||^2; at the limit itself the proven decrease is zero
GROWTH = 1.1  # factor on an accepted step: one trial in seven is rejected where the halved step is just right
SUFFICIENT = 0.02  # delta: below the 1 - SAFE_FRACTION that a safe step is sure to have


@dataclass(frozen=True)
class PGDState(State):
    """Adds the measurements of the image, which the next gradient needs."""

    measured: Tensor  # (n, ...) A image


P = TypeVar("P", bound=PGDState)


@dataclass(frozen=True)
class GradientStep:
    """What the iterations of PGD and FISTA have in common."""

    prox: LearnedProx

    def step_from(
        self,
        state: P,
        point: Tensor,  # (n, ...) where the gradient is taken
        measured: Tensor,  # (n, ...) A point
    ) -> P:
        """The state after a gradient step from a point and the prox of what that gives."""
        gradient = state.physics.A_adjoint(measured - state.y)  # (n, ...)
        image, prior, preimage = self.prox(
            point - broadcast(state.step_size, point) * gradient, state.strength, state.sigma, state.preimage
        )
        measured = state.physics.A(image)
        objective = half_square(measured - state.y) + state.weight * prior
        residual = relative_change(image, state.image)
        return replace(state, image=image, preimage=preimage, objective=objective, residual=residual, measured=measured)

    def with_safe_steps(self, new: P, old: P) -> P:
        """Plain steps again, at half the step and the same weight, for samples whose objective rose with this one.

        F can rise only where ||A (x+ - x)||^2 > ||x+ - x||^2 / eta, hence where the bound on ||A|| was none. The
        halved step stays.
        """
        risen = has_risen(new, old)  # (n,)
        everyone = torch.ones_like(new.objective)
        while bool(risen.any()):
            step, strength = new.step_size * everyone, new.strength * everyone  # (n,)
            new = replace(new, step_size=step, strength=strength)
            halved = replace(
                old.select(risen),
                step_size=step[risen] / 2,
                strength=strength[risen] / 2,
                halvings=new.halvings[risen] + 1,
            )
            new = new.merge(risen, self.step_from(halved, halved.image, halved.measured))
            risen = risen & has_risen(new, old)
        return new


@dataclass(frozen=True)
class ProximalGradient(GradientStep):
    """The iteration with a fixed step."""

    def start(self, problem: InverseProblem, settings: Settings) -> PGDState:
        """The state before the first iteration."""
        return PGDState.before(problem, settings, measured=problem.physics.A(problem.x0))

    def step(self, state: PGDState) -> PGDState:
        """One iteration."""
        return self.with_safe_steps(self.step_from(state, state.image, state.measured), state)


@dataclass(frozen=True)
class BacktrackedState(PGDState):
    """Every sample has a step of its own, and with it a strength."""

    step_size: Tensor  # (n,)
    strength: Tensor  # (n,)

    @property
    def weight(self) -> Tensor:  # (n,)
        return self.strength / self.step_size


@dataclass(frozen=True)
class BacktrackedGradient(GradientStep):
    """The iteration with a step of its own for every sample; `safe_step` is the least it uses."""

    safe_step: Tensor  # (1,) or (N,) of the samples at the start; the least of them is safe for all

    def start(self, problem: InverseProblem, settings: Settings) -> BacktrackedState:
        """The state before the first iteration."""
        return BacktrackedState.before(
            problem, _per_sample(settings, problem.y), measured=problem.physics.A(problem.x0)
        )

    def step(self, state: BacktrackedState) -> BacktrackedState:
        """One iteration: trial steps until every sample has its decrease."""
        weight = state.weight  # (n,)
        floor = torch.minimum(self.safe_step.min().to(weight), 1 / weight)
        longest = torch.where(state.objective.isnan(), 1 / weight, GROWTH * state.step_size)
        new = self.try_step(state, torch.minimum(longest, 1 / weight), weight)
        pending = ~has_decreased(new, state) & (new.step_size > floor)  # (n,)
        while bool(pending.any()):
            shorter = torch.maximum(new.step_size / 2, floor)[pending]
            retried = self.try_step(state.select(pending), shorter, weight[pending])
            new = new.merge(pending, retried)
            pending = pending & ~has_decreased(new, state) & (new.step_size > floor)
        return new

    def try_step(self, state: BacktrackedState, step_size: Tensor, weight: Tensor) -> BacktrackedState:
        """The state after a plain iteration at this step, (n,), and this weight, (n,)."""
        tried = replace(state, step_size=step_size, strength=(weight * step_size).clamp(max=1))
        return self.step_from(tried, tried.image, tried.measured)


def _per_sample(settings: Settings, y: Tensor) -> Settings:
    everyone = torch.ones(len(y), dtype=torch.float64, device=y.device)
    return replace(settings, step_size=settings.step_size * everyone, strength=settings.strength * everyone)


def has_risen(new: PGDState, old: PGDState) -> Tensor:  # (n,) bool
    """Whether F rose and the curvature met on the way, beyond 1 / eta, is why; NaN and infinities rise."""
    rise = ~(new.objective <= old.objective) & ~old.objective.isnan()
    moved = 2 * half_square(new.image - old.image)  # (n,) ||x+ - x||^2
    curved = 2 * half_square(new.measured - old.measured) > moved / new.step_size
    return rise & curved & moved.isfinite()


def has_decreased(new: PGDState, old: PGDState) -> Tensor:  # (n,) bool
    """Whether F fell enough for the length of the step; where the old F is unknown, whether the model bounds it."""
    moved = 2 * half_square(new.image - old.image)  # (n,) ||x+ - x||^2
    fell = new.objective <= old.objective - SUFFICIENT / 2 * moved / new.step_size
    bounded = 2 * half_square(new.measured - old.measured) <= (1 - SUFFICIENT) * moved / new.step_size
    return torch.where(old.objective.isnan(), bounded, fell)


@torch.no_grad()
def pgd(
    y: Tensor,
    physics: LinearOperator,
    model: ProxModel,
    *,
    step_size: float | Tensor | None = None,
    strength: float | Tensor | str | None = None,
    sigma: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    backtracking: bool = False,
    max_iter: int = 200,
    tol: float | None = None,
    x0: Tensor | None = None,
    strict: bool = False,
    callback: Callback | None = None,
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
    physics : LinearOperator
        Any object with `A` and `A_adjoint`, acting on every sample alone. Its `norm()` is used if it has one, else
        ||A|| is estimated with a margin and the report says so.
    model : ProxModel
        Learned prior: an LPN, or any object with `prox_and_prior(z, strength=, sigma=)`.
    step_size : float or Tensor, shape (N,), optional
        Step eta; None is 0.95 / ||A||^2, or less where `strength` requires a noise level above those the network
        knows.
    strength : float or Tensor, shape (N,), in (0, 1], "map", "discrepancy", optional
        Weight t of the prior. "map" derives it from the noise in y and the noise the network was trained on,
        "discrepancy" finds, in up to 72 further iterations, the weight at which ||A x - y|| is what the noise makes
        it. None is "map" for a network conditioned on noise without `sigma`, and, where `noise` or the physics
        says how noisy y is, "map" for a network of one known level and "discrepancy" for one of an unknown level;
        else 1. The result's `settings` tell (solvers/automatic.py has the formulas).
    sigma : float or Tensor, shape (N,), optional
        Noise level for a network that is conditioned on it; None is derived with `strength`.
    noise : float or Tensor, shape (N,), optional
        Standard deviation of the noise in y. None reads it from the physics, and where a choice needs it,
        estimates it from y (`solvers.estimate_noise`).
    backtracking : bool
        Start from the longest step, at fixed weight t / eta, and halve it sample by sample until the objective falls
        enough. It helps where t < 1: for t = 1 no longer step has the same minimisers. `settings` then hold the
        weight, and with it step and strength before the first iteration.
    max_iter : int
        Most iterations a sample may take.
    tol : float, optional
        A sample has converged when ||x+ - x|| <= tol ||x+||. None: when what is left
        to come can no longer be seen (2e-3 of the norm, from the rate at which changes shrink).
    x0 : Tensor, shape (N, ...), optional
        Start; None is the operator's own (`physics.start`).
    strict : bool
        Raise before the first iteration if a condition of the theorem does not hold.
    callback : callable, optional
        Called as `callback(iteration, x, objective)` after every iteration, counted from 1, with
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
        Arguments of the wrong kind or out of range, NaN in y, or with `strict` a failing condition.

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
    problem = checked_problem(y, physics, x0=x0, max_iter=max_iter, tol=tol)
    step_size = None if step_size is None else positive("step_size", step_size, y)
    safe = SAFE_FRACTION / problem.norm**2
    settings = choose(
        problem, model, step_size=step_size, default_step=safe, strength=strength, sigma=sigma, noise=noise
    )
    conditions = gradient_conditions(problem, settings.step_size)
    method: Iteration[Any] = ProximalGradient(LearnedProx.of(model))
    if backtracking:
        settings = _per_sample(settings, y)
        # A step that is known to be safe is the last resort, even if the one given is longer.
        method = BacktrackedGradient(LearnedProx.of(model), torch.as_tensor(safe, device=y.device).reshape(-1))
        conditions = gradient_conditions(problem, safe)
    return solve(
        "pgd", method, problem, settings, conditions,
        max_iter=max_iter, tol=tol, strict=strict, callback=callback, progress=progress,
    )  # fmt: skip
