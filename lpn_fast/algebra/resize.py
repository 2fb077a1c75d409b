"""D_r: resize an image or a volume by 1/r, and its exact adjoint.

For sizes that are multiples of an even r this is the bilinear resize of the published networks
(align_corners=False, no antialiasing), in three dimensions the trilinear one, which reads just two samples per axis
and block of r:

    (D_r x)_i = 1/2 (x_{r i + r/2 - 1} + x_{r i + r/2})   along each axis.

Other sizes repeat the last sample, so that D_r x has ceil(n / r) samples and stays aligned with a stack of
stride-2 correlations. The adjoint adds what falls on a repeated sample to that last sample.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, factor: int) -> Tensor:
    """D_r x for x of shape (N, C, H, W) or (N, C, D, H, W); the result has ceil(n / r) for each of those sides n."""
    if factor == 1:
        return x
    image = x.shape[2:]
    if any(n % factor for n in image):
        x = F.pad(x, [p for n in reversed(image) for p in (0, -n % factor)], mode="replicate")
    if factor == 2:
        return F.avg_pool2d(x, 2) if len(image) == 2 else F.avg_pool3d(x, 2)
    for dim in range(2, x.dim()):
        x = x[_every(factor, factor // 2 - 1, dim)] + x[_every(factor, factor // 2, dim)]
    return x * 0.5 ** len(image)


def resize_adjoint(y: Tensor, factor: int, *image: int) -> Tensor:
    """D_r^T y for y of shape (N, C, ceil(H/r), ceil(W/r)), or with three sides; the result is (N, C, *image)."""
    if factor == 1:
        return y
    padded = y.new_zeros(*y.shape[:2], *(n * factor for n in y.shape[2:]))
    share = y * 0.5 ** len(image)
    for places in itertools.product((factor // 2 - 1, factor // 2), repeat=len(image)):
        padded[(..., *(slice(place, None, factor) for place in places))] = share
    for dim, length in enumerate(image, 2):
        padded = _fold_last(padded, length, dim)
    return padded


def _every(step: int, first: int, dim: int) -> tuple[slice, ...]:
    """The index of every `step`-th sample along axis `dim`, from `first` on."""
    return *(slice(None),) * dim, slice(first, None, step)


def _fold_last(y: Tensor, length: int, dim: int) -> Tensor:
    """Adjoint of repeating the last sample: what lies beyond `length` is added to sample length - 1."""
    if y.shape[dim] == length:
        return y
    kept, beyond = torch.split(y, [length, y.shape[dim] - length], dim)
    kept = kept.clone()
    kept.select(dim, length - 1).add_(beyond.sum(dim))
    return kept
