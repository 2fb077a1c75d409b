"""Accelerated proximal gradient descent that stays monotone.

    v  = x + (theta - 1) / theta+ (x - x_previous),      theta+ = (1 + sqrt(1 + 4 theta^2)) / 2
    x+ = prox_{tR}(v - eta A^T (A v - y))      if  F(x+) <= F(x) - delta / (2 eta) ||x+ - x||^2,  else
    x+ = prox_{tR}(x - eta A^T (A x - y))      and theta restarts at 1           F = h + (t / eta) R

The extrapolation is Beck's and Teboulle's (SIAM J. Imaging Sci. 2, 2009). Their rate needs a convex R; what is kept
here for any R is the decrease: a rejected extrapolation is replaced by a plain step, which falls for every
eta < 1 / ||A||^2. So F never rises, and ||x+ - x|| tends to zero if F is bounded below. The test is on the true
objective, which is free. A v is a combination of two A x that are known, hence an accepted iteration costs what a
plain one does, and a rejected one costs the rejected samples a second prox.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..per_sample import broadcast
from ..physics import LinearOperator
from .automatic import Settings, choose
from .conditions import gradient_conditions
from .driver import Callback
from .problem import InverseProblem, checked_problem, positive
from .protocol import ProxModel
from .prox import LearnedProx
from .proximal_gradient import SAFE_FRACTION, GradientStep, PGDState, has_decreased
from .reconstruction import Reconstruction
from .run import solve


@dataclass(frozen=True)
class FISTAState(PGDState):
    """Adds the image before, with its measurements, and the momentum."""

    previous: Tensor  # (n, ...)
    previous_measured: Tensor  # (n, ...)
    theta: Tensor  # (n,) float64, 1 at a (re)start


@dataclass(frozen=True)
class AcceleratedProximalGradient(GradientStep):
    """The iteration: extrapolate, accept or restart."""

    def start(self, problem: InverseProblem, settings: Settings) -> FISTAState:
        """The state before the first iteration, at rest."""
        x0, measured = problem.x0, problem.physics.A(problem.x0)
        theta = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
        return FISTAState.before(
            problem, settings, measured=measured, previous=x0, previous_measured=measured, theta=theta
        )

    def step(self, state: FISTAState) -> FISTAState:
        """One iteration."""
        theta = (1 + (1 + 4 * state.theta.square()).sqrt()) / 2  # (n,)
        momentum = (state.theta - 1) / theta
        point = state.image + broadcast(momentum, state.image) * (state.image - state.previous)
        measured = state.measured + broadcast(momentum, state.measured) * (state.measured - state.previous_measured)
        new = replace(self.step_from(state, point, measured), theta=theta)
        # A sample without momentum has made the plain step already.
        rejected = ~has_decreased(new, state) & (momentum > 0)
        if bool(rejected.any()):
            old = state.select(rejected)
            plain = replace(self.step_from(old, old.image, old.measured), theta=torch.ones_like(old.theta))
            new = new.merge(rejected, plain)
        new = self.with_safe_steps(new, state)
        return replace(new, previous=state.image, previous_measured=state.measured)


@torch.no_grad()
def fista(
    y: Tensor,
    physics: LinearOperator,
    model: ProxModel,
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
    """Reconstructions by accelerated proximal gradient descent with restarts on the true objective (PnP-FISTA).

    Minimises what `pgd` minimises,  1/2 ||A x - y||^2 + (t / eta) R(x),  and like it lowers it in every iteration
    for eta < 1 / ||A||^2, for any R. Ill-conditioned operators need fewer iterations.

    Parameters
    ----------
    y, physics, model, step_size, strength, sigma, noise, max_iter, tol, x0, strict, callback, progress
        As for `pgd`.

    Returns
    -------
    Reconstruction

    Raises
    ------
    TypeError, ValueError
        As for `pgd`.

    Examples
    --------
    >>> import torch
    >>> import lpn_fast as lf
    >>> physics = lf.physics.Blur.gaussian(1.0)
    >>> y = physics.A(torch.rand(2, 1, 16, 16))
    >>> lf.solvers.fista(y, physics, lf.ConvLPN(1, hidden=8).eval(), max_iter=5).objective.shape
    torch.Size([5, 2])
    """
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
    return solve(
        "fista", AcceleratedProximalGradient(LearnedProx.of(model)), problem, settings,
        gradient_conditions(problem, settings.step_size, "FISTA"),
        max_iter=max_iter, tol=tol, strict=strict, callback=callback, progress=progress,
    )  # fmt: skip
