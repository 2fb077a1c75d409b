"""D_r: resize an image or a volume by 1/r, and its exact adjoint.

For sizes that are multiples of an even r this is the bilinear resize of the published networks
(align_corners=False, no antialiasing), in three dimensions the trilinear one, which reads just two samples per axis
and block of r:

    (D_r x)_i = 1/2 (x_{r i + r/2 - 1} + x_{r i + r/2})   along each axis.

Other sizes repeat the last sample, so that D_r x has ceil(n / r) samples and stays aligned with a stack of
stride-2 correlations. The adjoint adds what falls on a repeated sample to that last sample.
"""

import functools
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
    for first, second in _pairs(factor, len(image)):
        x = x[first] + x[second]
    return x * 0.5 ** len(image)


def resize_adjoint(y: Tensor, factor: int, *image: int) -> Tensor:
    """D_r^T y for y of shape (N, C, ceil(H/r), ceil(W/r)), or with three sides; the result is (N, C, *image)."""
    if factor == 1:
        return y
    padded = y.new_zeros(*y.shape[:2], *(n * factor for n in y.shape[2:]))
    share = y * 0.5 ** len(image)
    for middle in _middles(factor, len(image)):
        padded[middle] = share
    for dim, length in enumerate(image, 2):
        padded = _fold_last(padded, length, dim)
    return padded


@functools.cache
def _pairs(factor: int, axes: int) -> tuple[tuple[tuple, tuple], ...]:
    """Axis by axis, indices of the two samples per block that D_r reads along it; cached: every call reads them."""
    first, second = _two(factor)

    def along(axis: int, place: int) -> tuple:
        return (..., slice(place, None, factor), *(slice(None),) * (axes - 1 - axis))

    return tuple((along(axis, first), along(axis, second)) for axis in range(axes))


@functools.cache
def _middles(factor: int, axes: int) -> tuple[tuple, ...]:
    """Indices of the samples of all blocks that D_r reads, one per place in a block: four in an image."""
    return tuple(
        (..., *(slice(place, None, factor) for place in places))
        for places in itertools.product(_two(factor), repeat=axes)
    )


def _two(factor: int) -> tuple[int, int]:
    """The places in the middle of a block."""
    return factor // 2 - 1, factor // 2


def _fold_last(y: Tensor, length: int, dim: int) -> Tensor:
    """Adjoint of repeating the last sample: what lies beyond `length` is added to sample length - 1."""
    if y.shape[dim] == length:
        return y
    kept, beyond = torch.split(y, [length, y.shape[dim] - length], dim)
    kept = kept.clone()
    kept.select(dim, length - 1).add_(beyond.sum(dim))
    return kept
