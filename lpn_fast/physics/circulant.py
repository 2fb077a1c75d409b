"""The circulant matrix nearest to A^T A, a preconditioner for data proxes by conjugate gradients.

    A^T A  ~  F^* diag(lambda) F,     lambda = diag(F A^T A F^*)             T. Chan, SIAM J. Sci. Stat. Comput. 9, 1988

Of all circulant matrices this is nearest in the Frobenius norm; it is exact for convolutions with periodic borders and
close for what nearly is one: other borders, projections along lines, downsampling. No entry of A has to be known:

    lambda_k = E[conj(F w)_k (F A^T A w)_k] / E|(F w)_k|^2          for white noise w,

exact from one w where A^T A is circulant. Elsewhere the mean over a few w has a standard error. It is taken to be no
smaller than that: too small a lambda_k leaves a large eigenvalue of the system as it is, and it cannot be negative, so
that I + gamma F^* diag(lambda) F is positive definite and conjugate gradients remain what they are. Where all lambda
differ by no more than by chance (masks, random rows) they are one number, and nothing is preconditioned.
"""

import weakref
from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from ..per_sample import broadcast
from .noise import without_noise
from .protocol import LinearOperator

PROBES = 8  # 16 save no further step
CHANCE = 2.0  # variance of the lambda over their squared standard error

Key = tuple[torch.Size, torch.dtype, torch.device]
_known: MutableMapping[object, dict[Key, Tensor]] = weakref.WeakKeyDictionary()


def circulant_preconditioner(
    physics: LinearOperator, like: Tensor, gamma: float | Tensor
) -> Callable[[Tensor], Tensor]:
    """(I + gamma C)^-1 on images, C the circulant matrix nearest to A^T A.

    Parameters
    ----------
    physics : LinearOperator
    like : Tensor, shape (N, C, ...)
        Any images: shape, type and device.
    gamma : float or Tensor, shape (N,)

    Returns
    -------
    callable, (N, C, ...) -> (N, C, ...)
    """
    axes, sides = _transformed(like)
    denominator = 1 + broadcast(gamma, like) * gram_spectrum(physics, like)

    def apply(r: Tensor) -> Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(r, dim=axes) / denominator, s=sides, dim=axes)

    return apply


@torch.no_grad()
def gram_spectrum(physics: LinearOperator, like: Tensor) -> Tensor:
    """lambda of images of this kind, (1, C, ..., K), or (N, C, ..., K) where samples have their own operators.

    Found once for an operator and a shape, by PROBES products with A^T A.
    """
    operator = without_noise(physics)
    select = getattr(operator, "select", None)
    own = callable(select) and select(torch.zeros(1, dtype=torch.int64, device=like.device)) is not operator
    shape = like.shape if own else torch.Size((PROBES, *like.shape[1:]))
    try:
        found = _known.setdefault(operator, {})
    except TypeError:  # an operator that takes no weak reference
        found = {}
    key = shape, like.dtype, like.device
    if key not in found:
        found[key] = _estimated(operator, torch.zeros(shape, dtype=like.dtype, device=like.device), own)
    return found[key]


def _estimated(operator: LinearOperator, like: Tensor, own: bool) -> Tensor:
    axes, _ = _transformed(like)
    generator = torch.Generator().manual_seed(0)
    products, energies = [], []  # per probe
    for _ in range(PROBES if own else 1):
        w = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        before, after = (torch.fft.rfftn(v, dim=axes) for v in (w, operator.A_adjoint(operator.A(w))))
        products.append((before.conj() * after).real)
        energies.append(before.abs().square())
    product, energy = (
        torch.stack(v) if own else v[0][:, None] for v in (products, energies)
    )  # (PROBES, N or 1, C, ..., K)
    mean = product.mean(0) / energy.mean(0)
    error = (product - mean * energy).square().mean(0).div(PROBES - 1).sqrt() / energy.mean(0)
    centre = mean.mean(dim=axes, keepdim=True)
    spread = (mean - centre).square().mean(dim=axes, keepdim=True)
    flat = spread <= CHANCE * error.square().mean(dim=axes, keepdim=True)
    return torch.where(flat, centre, torch.maximum(mean, error))


def _transformed(like: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes that are space, and their sides: all behind the channels, or the only one of plain vectors."""
    axes = tuple(range(min(2, like.dim() - 1), like.dim()))
    return axes, tuple(like.shape[axis] for axis in axes)
