"""Training through the minimiser of an inverse problem: where a solver stops, not where a denoiser is asked once.

    b = A x + noise,   x^ = argmin_z 1/2 |A z - b|^2 + R(z) / eta  by fista,   loss(x^, x)

At the minimiser x^ = f(u), u = x^ - eta A^T (A x^ - b), no iterate of the solver is kept. With H = grad f(u)
symmetric and P = 1 - eta A^T A, the derivative v of the loss in x^ becomes

    w = (1 - P H)^-1 v = v + P q,      (1 - H P) q = H v

of which the parameters get the gradient of <w, f(u)>. 1 - H P is symmetric in the inner product of P, and positive
definite at a strict minimum, hence conjugate gradients in that inner product. An explicit prior has no f to ask, and
needs none: the minimiser is where A^T (A x^ - b) + grad R(x^) / eta is zero, and

    (A^T A + Hess R / eta) q = v,         the parameters get the gradient of -<q, grad R(x^)> / eta.

The noise of the measurements has the standard deviation sigma / sqrt(eta), for which sigma is the choice of MAP
(solvers/automatic.py). A denoiser's prior weighs too much there: it is the one of a posterior mean. A prior trained
like this has the weight that the solvers choose by themselves, at the cost of f as a denoiser. f is an exact prox all
along: only what it learns from differs.
"""

import torch
from torch import Tensor

from ..networks import ExplicitLPN
from ..per_sample import broadcast, dot
from ..solvers import fista, gradient

STEP = 0.98  # eta; the operators have norm one
WITHOUT_PROX = 4  # iterations of an explicit prior for one with a prox: solves that stop early train another minimiser
FLAT = 1e-3  # curvature of the objective, relative to the strongest, below which a direction is left alone


def equilibrium(
    model,
    physics,
    measured: Tensor,
    start: Tensor,  # (N, C, H, W)
    sigma: Tensor | None,
    iterations: int,
    inner: int,
    tol=1e-4,
) -> Tensor:
    """The minimiser x^ of h + R / STEP, (N, C, H, W), differentiable in the parameters of `model`.

    `physics` has A, A_adjoint and norm at most one. The solver begins at `start`, and stops after `iterations` or at
    relative changes of `tol`; `inner` steps of conjugate gradients find the derivative. A sample whose objective is
    flat in a direction that these meet gets the part of w found before.
    """
    options = {"sigma": sigma, "strength": 1.0, "step_size": STEP, "max_iter": iterations, "tol": tol}
    if isinstance(model, ExplicitLPN):
        options["max_iter"] = WITHOUT_PROX * iterations
        return _explicit(model, physics, gradient(measured, physics, model, x0=start, **options).x, sigma, inner)
    x = fista(measured, physics, model, x0=start, **options).x
    u = x - STEP * physics.A_adjoint(physics.A(x) - measured)
    out = model(u, sigma)

    def damped(v: Tensor) -> Tensor:  # P v
        return v - STEP * physics.A_adjoint(physics.A(v))

    def implicit(v: Tensor) -> Tensor:  # (1 - P H)^-1 v
        with torch.no_grad():
            return v + damped(_solved(lambda p: model.hvp(u, p, sigma), damped, v, inner))

    if out.requires_grad:
        out.register_hook(implicit)
    return out


def _explicit(model: ExplicitLPN, physics, x: Tensor, sigma: Tensor | None, inner: int) -> Tensor:
    """The minimiser x of h + R / STEP, differentiable in the parameters of R."""
    slope = model.grad_prior(x, sigma)
    out = x - (slope - slope.detach()) / STEP

    def curvature(v: Tensor) -> Tensor:
        return physics.A_adjoint(physics.A(v)) + model.hessian_product(x, v, sigma) / STEP

    if out.requires_grad:
        out.register_hook(lambda v: _conjugate(curvature, v, inner))
    return out


@torch.no_grad()
def _conjugate(matrix, v: Tensor, iterations: int) -> Tensor:
    """q of (matrix) q = v, each sample by itself; a flat direction ends a sample's iterations."""
    q, r, d, size = torch.zeros_like(v), v, v, dot(v, v)
    curved = size > 0
    for _ in range(iterations):
        image = matrix(d)
        curvature = dot(d, image)
        curved = curved & (curvature > FLAT * dot(d, d)) & (size > 0)
        length = broadcast(torch.where(curved, size / curvature, 0), v)
        q, r = q + length * d, r - length * image
        before, size = size, dot(r, r)
        d = r + broadcast(torch.where(curved, size / before, 0), v) * d
    return q


def _solved(hessian, damped, v: Tensor, iterations: int) -> Tensor:
    """q of (1 - H P) q = H v, each sample by itself, by conjugate gradients in the inner product of P."""
    q = hessian(v)
    r = hessian(damped(q))
    damped_r = damped(r)
    d, damped_d, size = r, damped_r, dot(r, damped_r)
    curved = size > 0
    for _ in range(iterations):
        image = d - hessian(damped_d)
        curvature = dot(damped_d, image)
        curved = curved & (curvature > FLAT * dot(damped_d, d)) & (size > 0)
        length = broadcast(torch.where(curved, size / curvature, 0), v)
        q = q + length * d
        r = r - length * image
        damped_r = damped(r)
        before, size = size, dot(r, damped_r)
        ratio = broadcast(torch.where(curved, size / before, 0), v)
        d, damped_d = r + ratio * d, damped_r + ratio * damped_d
    return q
