"""Half-quadratic splitting with a learned prox.

    x  = argmin_x 1/2 ||A x - y||^2 + rho/2 ||x - z||^2       data prox
    z+ = prox_{tR}(x)                                         learned prox, the image returned
alternately minimises, exactly,
    G(x, z) = 1/2 ||A x - y||^2 + rho/2 ||x - z||^2 + t rho R(z),
which therefore falls for every rho > 0 and any R. It is not h + t rho R: the data term is smoothed to its Moreau
envelope, with an error that vanishes as rho grows. Seen from z it is gradient descent on that envelope, whose
curvature is rho L / (rho + L) < rho for L = ||A||^2, with step 1 / rho, so
    G(x(z+), z+) <= G(x(z), z) - rho^2 / (2 (rho + L)) ||z+ - z||^2.
The objective reported is G at (x, z+).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..physics import LinearOperator
from .automatic import Settings, choose
from .conditions import hqs_conditions
from .driver import Callback, State
from .problem import InverseProblem, checked_problem, data_prox, half_square, positive, relative_change
from .protocol import ProxModel
from .prox import LearnedProx
from .reconstruction import Reconstruction
from .run import solve


@dataclass(frozen=True)
class HQSState(State):
    """Adds the data image; `image` is z."""

    data_image: Tensor  # (n, ...) x


@dataclass(frozen=True)
class HalfQuadratic:
    """The iteration."""

    prox: LearnedProx

    def start(self, problem: InverseProblem, settings: Settings) -> HQSState:
        """The state before the first iteration."""
        return HQSState.before(problem, settings, data_image=problem.x0)

    def step(self, state: HQSState) -> HQSState:
        """One iteration."""
        x = data_prox(state.physics, state.image, state.y, state.step_size, near=state.data_image)  # (n, ...)
        image, prior, preimage = self.prox(x, state.strength, state.sigma, state.preimage)
        coupling = half_square(x - image) / state.step_size
        return replace(
            state,
            image=image,
            preimage=preimage,
            objective=half_square(state.physics.A(x) - state.y) + coupling + state.weight * prior,
            residual=relative_change(image, state.image),
            data_image=x,
        )


@torch.no_grad()
def hqs(
    y: Tensor,
    physics: LinearOperator,
    model: ProxModel,
    *,
    rho: float | Tensor | None = None,
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
    """Reconstructions by half-quadratic splitting with a fixed penalty (PnP-HQS).

    Minimises  1/2 ||A x - y||^2 + rho/2 ||x - z||^2 + t rho R(z)  over both images and returns z. That objective
    falls in every iteration, whatever rho. A larger rho comes closer to  h + t rho R  and moves slower.

    Parameters
    ----------
    y, physics, model, strength, sigma, noise, max_iter, x0, strict, callback, progress
        As for `pgd`. The operator's `prox_l2(z, y, gamma)` is used if it has one, else conjugate gradients.
    rho : float or Tensor, shape (N,), optional
        Penalty; None is ||A||^2, or more where `strength` requires a noise level above those the network knows.
    tol : float, optional
        A sample has converged when ||z+ - z|| <= tol ||z+||. None: when what is left
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
    >>> lf.solvers.hqs(y, physics, lf.ConvLPN(1, hidden=8).eval(), max_iter=5).x.shape
    torch.Size([2, 1, 16, 16])
    """
    problem = checked_problem(y, physics, x0=x0, max_iter=max_iter, tol=tol)
    settings = choose(
        problem,
        model,
        step_size=None if rho is None else 1 / positive("rho", rho, y),
        default_step=1 / problem.norm**2,
        strength=strength,
        sigma=sigma,
        noise=noise,
    )
    return solve(
        "hqs", HalfQuadratic(LearnedProx.of(model)), problem, settings, hqs_conditions(problem, 1 / settings.step_size),
        max_iter=max_iter, tol=tol, strict=strict, callback=callback, progress=progress,
    )  # fmt: skip
