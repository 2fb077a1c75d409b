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

A box a <= x <= b is a second term, with its own copy w and dual v: the data prox then sees both,
    x+ = argmin_x 1/2 ||A x - y||^2 + rho/2 ||x - (z - u)||^2 + rho/2 ||x - (w - v)||^2,
and v+ = v + x+ - w, w+ = clip(x+ + v+) run beside u and z, as in the published compressed sensing.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..physics import LinearOperator
from .automatic import Settings, choose
from .conditions import admm_conditions
from .driver import Callback, State
from .problem import InverseProblem, checked_problem, data_prox, half_square, positive, relative_change
from .protocol import StronglyConvexModel
from .prox import LearnedProx
from .reconstruction import Reconstruction
from .run import solve

SAFE_FACTOR = 1.05  # default rho over its limit ||A||^2; at the limit itself the proven decrease is zero

# Update orders and the digits by which the published code calls them: 1 data prox, 2 learned prox, 3 dual.
ORDERS = {
    "data-dual-prior": ("data", "dual", "prior"),  # 132, in all published experiments
    "prior-data-dual": ("prior", "data", "dual"),  # 213, the same cycle entered one update later
    "data-prior-dual": ("data", "prior", "dual"),  # 123, another iteration
}


@dataclass(frozen=True)
class ADMMState(State):
    """Adds the other variables; `image` is z."""

    data_image: Tensor  # (n, ...) x, output of the data prox
    dual: Tensor  # (n, ...) u, scaled by 1 / rho
    prior: Tensor  # (n,) float64, R(z)
    box_image: Tensor | None  # (n, ...) w
    box_dual: Tensor | None  # (n, ...) v
    returns_data: bool

    @property
    def output(self) -> Tensor:  # (n, ...)
        return self.data_image if self.returns_data else self.image


@dataclass(frozen=True)
class AlternatingDirections:
    """The iteration."""

    prox: LearnedProx
    order: tuple[str, str, str] = ORDERS["data-dual-prior"]
    box: tuple[float, float] | None = None
    returns_data: bool = False

    def start(self, problem: InverseProblem, settings: Settings) -> ADMMState:
        """The state before the first iteration, all duals zero."""
        x0, boxed = problem.x0, self.box is not None
        return ADMMState.before(
            problem,
            settings,
            data_image=x0,
            dual=torch.zeros_like(x0),
            prior=torch.full((len(x0),), torch.nan, dtype=torch.float64, device=x0.device),
            box_image=x0 if boxed else None,
            box_dual=torch.zeros_like(x0) if boxed else None,
            returns_data=self.returns_data,
        )

    def step(self, state: ADMMState) -> ADMMState:
        """One iteration: the three updates in their order, then what is known of the new z."""
        updates = {"data": self.data_update, "dual": self.dual_update, "prior": self.prior_update}
        new = state
        for name in self.order:
            new = updates[name](new)
        objective = half_square(new.physics.A(new.image) - new.y) + new.weight * new.prior
        residual = torch.maximum(relative_change(new.image, new.data_image), relative_change(new.image, state.image))
        return replace(new, objective=objective, residual=residual)

    def data_update(self, state: ADMMState) -> ADMMState:
        target, gamma = state.image - state.dual, state.step_size  # gamma = 1 / rho
        if state.box_image is not None and state.box_dual is not None:
            # rho/2 |x - a|^2 + rho/2 |x - b|^2 = rho |x - (a + b)/2|^2 + const
            target, gamma = (target + state.box_image - state.box_dual) / 2, gamma / 2
        return replace(state, data_image=data_prox(state.physics, target, state.y, gamma, near=state.data_image))

    def dual_update(self, state: ADMMState) -> ADMMState:
        state = replace(state, dual=state.dual + state.data_image - state.image)
        if state.box_image is None or state.box_dual is None:
            return state
        return replace(state, box_dual=state.box_dual + state.data_image - state.box_image)

    def prior_update(self, state: ADMMState) -> ADMMState:
        image, prior, preimage = self.prox(state.data_image + state.dual, state.strength, state.sigma, state.preimage)
        state = replace(state, image=image, prior=prior, preimage=preimage)
        if self.box is None or state.box_dual is None:
            return state
        return replace(state, box_image=(state.data_image + state.box_dual).clamp(*self.box))


@torch.no_grad()
def admm(
    y: Tensor,
    physics: LinearOperator,
    model: StronglyConvexModel,
    *,
    rho: float | Tensor | None = None,
    strength: float | Tensor | str | None = None,
    sigma: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    order: str = "data-dual-prior",
    box: tuple[float, float] | None = None,
    returned: str = "prior",
    max_iter: int = 200,
    tol: float | None = None,
    x0: Tensor | None = None,
    strict: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructions by the alternating direction method of multipliers (PnP-ADMM).

    Minimises  1/2 ||A x - y||^2 + t rho R(x)  by data prox, dual and learned prox in this order, and
    returns the output of the learned prox. The iterates converge for rho > ||A||^2 and
    0 < alpha < 1; the published experiments used rho 10 to 70 times smaller, which `conditions`
    reports and `strict` refuses. A larger t rho weighs the prior more.

    Parameters
    ----------
    y, physics, model, strength, sigma, noise, max_iter, strict, callback, progress
        As for `pgd`. The model's `alpha` is used too. The operator's `prox_l2(z, y, gamma)` is used if it has
        one, else conjugate gradients.
    rho : float or Tensor, shape (N,), optional
        Penalty; None is 1.05 ||A||^2, or more where `strength` requires a noise level above those the network knows.
    order : str
        "data-dual-prior" (132 in the published code), "prior-data-dual" (213) or "data-prior-dual" (123). The
        theorem covers the first two.
    box : (float, float), optional
        Least and largest intensity, as a second non-smooth term, outside the theorem.
    returned : "prior" or "data"
        Which image to return: the learned prox's, where the objective is known, or the data prox's, as the
        published code does.
    tol : float, optional
        A sample has converged when ||z+ - x+|| and ||z+ - z|| are at most tol ||z+||. None: when what is left
        to come can no longer be seen (2e-3 of the norm, from the rate at which changes shrink).
    x0 : Tensor, shape (N, ...), optional
        Start of z, the dual starts at zero; None is the operator's own (`physics.start`).

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
    >>> physics = lf.physics.Blur.gaussian(1.0, boundary="full")
    >>> y = physics.A(torch.rand(2, 1, 16, 16))
    >>> result = lf.solvers.admm(y, physics, lf.ConvLPN(1, hidden=8).eval(), max_iter=5)
    >>> result.objective.shape, result.conditions["penalty"].holds
    (torch.Size([5, 2]), True)
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if returned not in ("prior", "data"):
        raise ValueError(f"returned must be 'prior' or 'data', got {returned!r}")
    if box is not None and not (len(box) == 2 and box[0] < box[1]):
        raise ValueError(f"box must be (least, largest) intensity, got {box!r}")
    problem = checked_problem(y, physics, x0=x0, max_iter=max_iter, tol=tol)
    settings = choose(
        problem,
        model,
        step_size=None if rho is None else 1 / positive("rho", rho, y),
        default_step=1 / (SAFE_FACTOR * problem.norm**2),
        strength=strength,
        sigma=sigma,
        noise=noise,
    )
    terms = 1 if box is None else 2
    conditions = admm_conditions(problem, 1 / settings.step_size, float(model.alpha), order, terms)
    method = AlternatingDirections(LearnedProx.of(model), ORDERS[order], box, returned == "data")
    return solve(
        "admm", method, problem, settings, conditions,
        max_iter=max_iter, tol=tol, strict=strict, callback=callback, progress=progress,
    )  # fmt: skip
