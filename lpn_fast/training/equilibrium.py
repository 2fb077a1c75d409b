"""Training through the minimiser of deblurring problems: where a solver stops, not where a denoiser is asked once.

    b = A x + noise,   x^ = argmin_z 1/2 |A z - b|^2 + R(z) / eta  by fista,   loss(x^, x)

At the minimiser x^ = f(u), u = x^ - eta A^T (A x^ - b), no iterate of the solver is kept. With H = grad f(u)
symmetric and P = 1 - eta A^T A, the derivative v of the loss in x^ becomes

    w = (1 - P H)^-1 v = v + P q,      (1 - H P) q = H v

of which the parameters get the gradient of <w, f(u)>. 1 - H P is symmetric in the inner product of P, and positive
definite at a strict minimum, hence conjugate gradients in that inner product.

A is a circular Gaussian blur of random width per sample, and the noise has the standard deviation sigma / sqrt(eta) for
which sigma is the choice of MAP (solvers/automatic.py). A denoiser's prior weighs too much there: it is the one of a
posterior mean. A prior trained like this has the weight that the solvers choose by themselves, at the cost of f as a
denoiser. f is an exact prox all along: only what it learns from differs.
"""

import torch
from torch import Tensor

from ..per_sample import column, dot
from ..physics import Blur
from ..physics.kernels import gaussian_kernel
from ..solvers import fista

STEP = 0.98  # eta; the blurs have norm one
SIDE = 17  # of the kernels, in pixels
FLAT = 1e-3  # curvature of the objective, relative to the strongest, below which a direction is left alone


class Deblurring:
    """Deblurring problems, solved to their minimiser, with derivatives.

    Parameters
    ----------
    blur : (float, float)
        Range of the standard deviation of the Gaussian blurs, in pixels.
    iterations : int
        Of the solver, at most.
    inner : int
        Of conjugate gradients.

    Raises
    ------
    ValueError
        A range that is not increasing and positive, or numbers below one.
    """

    def __init__(self, blur: tuple[float, float] = (0.3, 2.5), iterations: int = 50, inner: int = 12):
        if not 0 < blur[0] <= blur[1]:
            raise ValueError(f"blur must be an increasing pair of positive widths, got {blur}")
        for name, value in (("iterations", iterations), ("inner", inner)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.blur, self.iterations, self.inner = tuple(blur), iterations, inner

    def __call__(
        self,
        model,
        x: Tensor,  # (N, C, H, W)
        noise: Tensor,  # (N, C, H, W)
        sigma: Tensor | None,  # (N,)
        generator: torch.Generator,
    ) -> Tensor:
        """Minimisers x^ (N, C, H, W) for the truths x, with `noise` of standard deviation sigma in the measurements.

        The result is differentiable in the parameters of `model`, an LPN; `generator`, on the CPU, draws the widths.
        """
        low, high = self.blur
        widths = low + (high - low) * torch.rand(len(x), generator=generator, dtype=torch.float64)
        physics = Blur(torch.stack([gaussian_kernel(width, SIDE) for width in widths.tolist()]).to(x))
        measured = physics.A(x) + noise / STEP**0.5
        return equilibrium(model, physics, measured, sigma, self.iterations, self.inner)


def equilibrium(
    model, physics, measured: Tensor, sigma: Tensor | None, iterations: int, inner: int, tol=1e-4
) -> Tensor:
    """The minimiser x^ of h + R / STEP, (N, ...), differentiable in the parameters of `model`.

    `physics` has A, A_adjoint and norm at most one. The solver starts from `measured`, of the shape of images, and
    stops after `iterations` or at relative changes of `tol`; `inner` steps of conjugate gradients find the derivative.
    A sample whose objective is flat in a direction that these meet gets the part of w found before.
    """
    start = {"x0": measured, "sigma": sigma, "strength": 1.0, "step_size": STEP}
    x = fista(measured, physics, model, max_iter=iterations, tol=tol, **start).x
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
        length = column(torch.where(curved, size / curvature, 0), v)
        q = q + length * d
        r = r - length * image
        damped_r = damped(r)
        before, size = size, dot(r, damped_r)
        ratio = column(torch.where(curved, size / before, 0), v)
        d, damped_d = r + ratio * d, damped_r + ratio * damped_d
    return q
