"""A price on expansion: keep |f(u + d) - f(u)| <= |d|, so that the learned R is (nearly) convex where it is used.

    ratio = |f(u + d) - f(u)|^2 / |d|^2,        penalty = mean over samples of max(ratio - 1, 0)

f = prox_R is nonexpansive exactly when R is convex, and then PGD and ADMM cannot run away. An MMSE denoiser
expands along the directions in which it sharpens, and a solver amplifies those that its operator does not
see. d points along the top eigenvector of the Jacobian grad^2 psi(u), found by power iteration, with a random
length: the penalty needs first derivatives of f only, and finite steps reach beyond the training images.
Compare the spectral penalties of arXiv 2201.13256 (Prox-PnP), which act on the residual of a general denoiser.
"""

import torch
from torch import Tensor

from ..per_sample import broadcast

POWER_STEPS = 3
LONGEST = 1.0  # largest 2-norm of d; its energy sits on a few pixels, images in [0, 1]


def expansion_penalty(model, u: Tensor, f_u: Tensor, sigma: Tensor | None, generator: torch.Generator) -> Tensor:
    """The penalty, scalar, differentiable in the parameters.

    Parameters
    ----------
    model : LPN
    u : Tensor, shape (N, C, H, W) or (N, C, D, H, W)
        Where to look.
    f_u : Tensor, shape of u
        f(u), with its graph.
    sigma : Tensor, shape (N,), or None
    generator : torch.Generator
    """
    d = torch.randn(u.shape, generator=generator, dtype=u.dtype).to(u.device)
    with torch.no_grad():
        for _ in range(POWER_STEPS):
            d = _normalised(model.hvp(u, _normalised(d), sigma))
        length = LONGEST * (0.1 + 0.9 * torch.rand(len(u), generator=generator, dtype=u.dtype)).to(u.device)
        d = d * broadcast(length, d)
    ratio = _square(model(u + d, sigma) - f_u) / length.square()
    return (ratio - 1).clamp(min=0).mean()


def _square(t: Tensor) -> Tensor:
    """|t_n|^2, (N,)."""
    return t.flatten(1).square().sum(1)


def _normalised(t: Tensor) -> Tensor:
    """t_n / |t_n|; zero stays zero."""
    return t / broadcast(_square(t).sqrt().clamp_min(torch.finfo(t.dtype).tiny), t)
