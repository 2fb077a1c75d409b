"""All patches of an image, as a tight frame up to and including its borders.

    sum_p w_p |patch_p(E x)|^2 = k^d |x|^2,      d = 2 axes of images, 3 of volumes

E continues x by k - 1 mirrored pixels on every side, and p runs over all (H + k - 1)(W + k - 1) positions of k x k
windows in it. Along an axis w is 1 where the window lies inside x and 1/2 where it crosses the border; in several axes
it is the product. A pixel i < k of an axis is then seen by i + 1 inner windows, by k - 1 - i that cross the border, and
as often through its mirror image: i + 1 + (k - 1 - i) = k. Axes shorter than k - 1 are mirrored again and again, w is
reduced until no pixel is seen more than k times, and no position and its mirror image count more than one window
inside, and = becomes <=.

With a `spacing` of 2 there are positions at every second place of an axis alone, from the first one on. Where k is even
they are mirrored onto each other, and every pixel is seen k / 2 times, at the border as well.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIONS = 4096  # that go together: coefficients, energies and gates of so many stay in L2


class Patches:
    """Geometry of the patches of images, or volumes, of one size, at every position or every second one of each axis.

    Attributes
    ----------
    pixels : int
        k^d, of a patch.
    sources : list of Tensor, shape (side + 2 k - 2,), int64
        Of every axis: pixel of x that every pixel of E x repeats.
    axis_weights : list of Tensor, shape (side + k - 1,)
        w along the axes; of the positions alone.
    weights : Tensor, shape (H + k - 1, W + k - 1) or (D + k - 1, H + k - 1, W + k - 1)
        w, their products.
    """

    def __init__(self, size: Sequence[int], k: int, like: Tensor, spacing: int = 1):
        self.k, self.pixels = k, k ** len(size)
        # made where x is: a copy from the host would wait, and could not be captured
        self.sources = [_mirrored(side, k, like.device) for side in size]
        self.axis_weights = [_weights(side, k, spacing, like.device).to(like.dtype) for side in size]
        self.weights = functools.reduce(lambda a, b: a[..., None] * b, self.axis_weights)

    def extended(self, x: Tensor) -> Tensor:
        """E x, (N, C, H + 2 k - 2, W + 2 k - 2)."""
        for axis, source in enumerate(self.sources, 2):
            x = x.index_select(axis, source)
        return x

    def folded(self, extended: Tensor) -> Tensor:
        """E^T: the adjoint, (N, C, H, W)."""
        return folded(extended, self.k)

    def blocks(self) -> Iterator[slice]:
        """Rows, or slices, of positions that go together."""
        height, *across = self.weights.shape
        step = max(1, POSITIONS // math.prod(across))
        for first in range(0, height, step):
            yield slice(first, min(first + step, height))

    def gather(self, extended: Tensor, block: slice) -> Tensor:
        """Patches of E x at the positions of a block, (N, C k^d, P)."""
        part, axes = extended[:, :, block.start : block.stop + self.k - 1], extended.dim() - 2
        if axes == 2:
            return F.unfold(part, self.k)
        for axis in range(2, 2 + axes):
            part = part.unfold(axis, self.k, 1)  # positions stay, the taps of each axis follow at the end
        part = part.movedim(tuple(range(-axes, 0)), tuple(range(2, 2 + axes)))
        return part.reshape(len(extended), extended.shape[1] * self.pixels, -1)

    def scatter(self, patches: Tensor, extended: Tensor, block: slice) -> None:
        """Add patches, (N, C k^d, P), to where they were gathered."""
        part = extended[:, :, block.start : block.stop + self.k - 1]
        if part.dim() == 4:
            part += F.fold(patches, part.shape[2:], self.k)
            return
        places = [side - self.k + 1 for side in part.shape[2:]]
        taps = patches.view(*part.shape[:2], self.pixels, *places)
        for tap, first in enumerate(itertools.product(range(self.k), repeat=len(places))):
            under = [slice(i, i + n) for i, n in zip(first, places, strict=True)]
            part[(slice(None), slice(None), *under)] += taps[:, :, tap]

    def weights_of(self, block: slice) -> Tensor:
        """w_p of the positions of a block, (P,)."""
        return self.weights[block].flatten()


def _mirrored(side: int, k: int, where: torch.device | str = "cpu") -> Tensor:
    if side >= k - 1:  # nothing but slices, which exporters know where they leave the size open
        index = torch.arange(side, device=where)
        return torch.cat([index[: k - 1].flip(0), index, index[side - k + 1 :].flip(0)])
    index = torch.arange(1 - k, side + k - 1, device=where) % (2 * side)
    return torch.where(index < side, index, 2 * side - 1 - index)


def folded(extended: Tensor, k: int) -> Tensor:
    """E^T of a continued image (N, C, H + 2 k - 2, W + 2 k - 2), or volume."""
    for axis in range(2, extended.dim()):
        extended = _unmirrored(extended, axis, k)
    return extended


def _unmirrored(extended: Tensor, axis: int, k: int) -> Tensor:
    """The adjoint of mirroring along an axis: run by run, so that the order of sums is the same on every device."""
    length = extended.shape[axis]
    side = length - 2 * k + 2
    total = extended.narrow(axis, k - 1, side).clone()
    runs = -(-(k - 1) // side) if side else 0
    for run in range(-runs, runs + 1):
        start = k - 1 + run * side
        first, last = max(start, 0), min(start + side, length)
        if run == 0 or last <= first:
            continue
        part, at = extended.narrow(axis, first, last - first), first - start
        if run % 2:  # every second one is mirrored
            part, at = part.flip(axis), start + side - last
        total.narrow(axis, at, last - first).add_(part)
    return total


def _weights(side: int, k: int, spacing: int, where: torch.device | str = "cpu") -> Tensor:
    weights = _halved(side, k, where)[::spacing]
    return weights if side >= k - 1 else weights / _excess(side, k, spacing)


def _halved(side: int, k: int, where: torch.device | str = "cpu") -> Tensor:
    if side < k:
        return torch.full((side + k - 1,), 0.5, dtype=torch.float64, device=where)
    crossing = torch.full((k - 1,), 0.5, dtype=torch.float64, device=where)
    return torch.cat([crossing, torch.ones(side - k + 1, dtype=torch.float64, device=where), crossing])


@functools.cache
def _excess(side: int, k: int, spacing: int) -> float:
    """How often a pixel of an axis is seen at most, with these weights, in units of k / spacing; at least 1."""
    seen, weights = torch.zeros(side, dtype=torch.float64), _halved(side, k)[::spacing]
    for tap in range(k):
        seen.index_add_(0, _mirrored(side, k)[tap : tap + side + k - 1][::spacing], weights)
    if not side:
        return 1.0
    period = torch.zeros(2 * side, dtype=torch.float64)
    period.index_add_(0, torch.arange(1 - k, side, spacing) % (2 * side), weights)
    pairs = period + period[(-k - torch.arange(2 * side)) % (2 * side)]  # of a position and its mirror image
    return max(1.0, seen.max().item() * spacing / k, pairs.max().item())
