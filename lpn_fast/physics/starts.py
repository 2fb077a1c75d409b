"""A first picture from measurements, and which measurements an operator can reach at all.

    start     c A^T y   with   c = ||A^T y||^2 / ||A A^T y||^2,      the step of steepest descent from zero (Cauchy)
    seen      entries i of y whose row of A is not zero:   (A w)_i /= 0 for a random image w

A^T y alone is not a picture: it is |A|^2 times too large, in units that are not those of x. c A^T y stays the same when
A, y and the noise are scaled together. Operators with a better answer (filtered back-projection, a fill from the
neighbours) have a `start` of their own. What A cannot reach is constant in every data term: it says nothing about x,
and neither a misfit nor an estimate of noise may count it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..per_sample import broadcast, dot, norm

PROBES = 2  # random images: a row of A that is not zero is orthogonal to both with probability zero
ROUNDING = 1e-5  # relative to the root mean square of A w: what Fourier transforms leave where nothing is measured


def start(physics, y: Tensor) -> Tensor:
    """A first picture (N, C, H, W) from measurements y: the operator's own `start`, else c A^T y.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> physics = lf.physics.Inpainting.random(32, seen=0.5)
    >>> lf.physics.start(physics, physics.A(torch.full((1, 1, 32, 32), 0.5))).mean().round(decimals=3)
    tensor(0.5000)
    """
    own = getattr(physics, "start", None)
    return own(y) if callable(own) else scaled_adjoint(physics, y)


def has_start(physics) -> bool:
    """Whether the operator has a start of its own, better than c A^T y.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.physics.has_start(lf.physics.ParallelBeamCT(32, angles=40))
    True
    """
    own = getattr(type(physics), "start", None)
    return callable(own) and not getattr(own, "is_scaled_adjoint", False)


def scaled_adjoint(physics, y: Tensor) -> Tensor:
    """c A^T y with the Cauchy factor c of every sample, (N, ...); zero where A^T y is."""
    back = physics.A_adjoint(y)
    return fitted(physics, back, back)


def fitted(physics, image: Tensor, back: Tensor) -> Tensor:
    """c `image` with c = <image, A^T y> / ||A image||^2: of all multiples the one that fits y best.

    Parameters
    ----------
    physics : object with `A`
    image : Tensor, shape (N, ...)
    back : Tensor, shape (N, ...)
        A^T y.
    """
    size = norm(physics.A(image)).square()  # (N,)
    c = torch.where(size > 0, dot(image, back) / size.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return broadcast(c, image) * image


def seen(physics, y: Tensor) -> Tensor:
    """Which entries of y the operator can reach, bool, shape of y: its own `seen`, else by random images.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> physics = lf.physics.Inpainting.random(32, seen=0.5)
    >>> int(lf.physics.seen(physics, torch.zeros(1, 1, 32, 32)).sum()) == int(physics.mask.sum())
    True
    """
    own = getattr(physics, "seen", None)
    return own(y) if callable(own) else reached(physics, y)


@torch.no_grad()
def reached(physics, y: Tensor) -> Tensor:
    """Entries of y whose row of A is not zero, found with random images; bool, shape of y."""
    like = physics.A_adjoint(torch.zeros_like(y))
    generator = torch.Generator().manual_seed(0)
    largest = torch.zeros_like(y)
    for _ in range(PROBES):
        probe = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        largest = torch.maximum(largest, physics.A(probe).abs())
    level = norm(largest) / largest[0].numel() ** 0.5  # (N,)
    return largest > broadcast(ROUNDING * level, largest)


def fill(known: Tensor, mask: Tensor) -> Tensor:
    """Images whose missing pixels are means of seen ones, near before far.

    Parameters
    ----------
    known : Tensor, shape (N, C, H, W)
        Values where the mask is true; anything elsewhere.
    mask : Tensor, shape of `known`, bool

    Returns
    -------
    Tensor, shape (N, C, H, W)
        Zero in a channel of which nothing is seen.
    """
    image, done = known.where(mask, torch.zeros_like(known)), mask
    weight, radius = mask.to(known), 1
    while radius <= 2 * max(known.shape[-2:]) and not bool(done.all()):
        side = 2 * radius + 1
        near = F.avg_pool2d(weight, side, 1, radius)
        mean = F.avg_pool2d(known * weight, side, 1, radius) / near.clamp_min(torch.finfo(known.dtype).tiny)
        new = ~done & (near > 0.5 / side**2)
        image, done = torch.where(new, mean, image), done | new
        radius *= 2
    return image
