"""Douglas-Rachford splitting with a learned prox.

    x  = argmin_x 1/2 ||A x - y||^2 + 1/(2 gamma) ||x - s||^2      data prox
    z+ = prox_{tR}(2 x - s)                                        learned prox, the image returned
    s+ = s + lambda (z+ - x)
which minimises  F(z) = 1/2 ||A z - y||^2 + (t / gamma) R(z).

The smooth term comes first. Then for gamma < 1 / ||A||^2 and 0 < lambda < 2 the Douglas-Rachford envelope
    D = h(x) + <grad h(x), z+ - x> + 1/(2 gamma) ||z+ - x||^2 + (t / gamma) R(z+)
falls in every iteration, for any R, and ||z+ - x|| tends to zero if it is bounded below (Themelis, Patrinos,
SIAM J. Optim. 30, 2020; h is convex, so lambda has no further limit). F itself may rise on the way. With lambda = 1
it is `admm` with rho = 1 / gamma, iterate by iterate: s = z - u. Stationarity as in alternating_directions.py.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..physics import LinearOperator
from .automatic import Settings, choose
from .conditions import drs_conditions
from .driver import Callback, State
from .problem import InverseProblem, checked_problem, data_prox, half_square, positive, relative_change
from .protocol import ProxModel
from .prox import LearnedProx
from .proximal_gradient import SAFE_FRACTION
from .reconstruction import Reconstruction
from .run import solve


@dataclass(frozen=True)
class DRSState(State):
    """Adds the two other variables; `image` is z."""

    data_image: Tensor  # (n, ...) x, output of the data prox
    shadow: Tensor  # (n, ...) s


@dataclass(frozen=True)
class DouglasRachford:
    """The iteration."""

    prox: LearnedProx
    relaxation: float  # lambda

    def start(self, problem: InverseProblem, settings: Settings) -> DRSState:
        """The state before the first iteration."""
        return DRSState.before(problem, settings, data_image=problem.x0, shadow=problem.x0)

    def step(self, state: DRSState) -> DRSState:
        """One iteration."""
        x = data_prox(state.physics, state.shadow, state.y, state.step_size)  # (n, ...)
        image, prior, preimage = self.prox(2 * x - state.shadow, state.strength, state.sigma, state.preimage)
        return replace(
            state,
            image=image,
            preimage=preimage,
            objective=half_square(state.physics.A(image) - state.y) + state.weight * prior,
            residual=torch.maximum(relative_change(image, x), relative_change(image, state.image)),
            data_image=x,
            shadow=state.shadow + self.relaxation * (image - x),
        )


@torch.no_grad()
def drs(
    y: Tensor,
    physics: LinearOperator,
    model: ProxModel,
    *,
    step_size: float | Tensor | None = None,
    relaxation: float = 1.0,
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
    """Reconstructions by Douglas-Rachford splitting (PnP-DRS), data prox first.

    Minimises  1/2 ||A x - y||^2 + (t / gamma) R(x).  The iterates converge for gamma < 1 / ||A||^2 and a relaxation
    below 2, for any R that keeps them bounded.

    Parameters
    ----------
    y, physics, model, strength, sigma, noise, callback, progress, strict, max_iter, x0
        As for `pgd`. The operator's `prox_l2(z, y, gamma)` is used if it has one, else conjugate gradients.
    step_size : float or Tensor, shape (N,), optional
        gamma; None is 0.95 / ||A||^2, or less where `strength` requires a noise level above those the network knows.
    relaxation : float
        lambda; above 1 it often needs fewer iterations.
    tol : float, optional
        A sample has converged when ||z+ - x|| and ||z+ - z|| are at most tol ||z+||. None: when what is left
        to come can no longer be seen (2e-3 of the norm, from the rate at which changes shrink).

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
    >>> lf.solvers.drs(y, physics, lf.ConvLPN(1, hidden=8).eval(), max_iter=5).conditions["step size"].holds
    True
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
    relaxation = float(relaxation)
    if not 0 < relaxation < float("inf"):
        raise ValueError(f"relaxation must be positive, got {relaxation}")
    return solve(
        "drs", DouglasRachford(LearnedProx.of(model), relaxation), problem, settings,
        drs_conditions(problem, settings.step_size, relaxation),
        max_iter=max_iter, tol=tol, strict=strict, callback=callback, progress=progress,
    )  # fmt: skip
