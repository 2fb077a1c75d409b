"""All patches of an image, as a tight frame up to and including its borders.

    sum_p w_p |patch_p(E x)|^2 = k^2 |x|^2

E continues x by k - 1 mirrored pixels on every side, and p runs over all (H + k - 1)(W + k - 1) positions of k x k
windows in it. Along an axis w is 1 where the window lies inside x and 1/2 where it crosses the border; in two axes it
is the product. A pixel i < k of an axis is then seen by i + 1 inner windows, by k - 1 - i that cross the border, and as
often through its mirror image: i + 1 + (k - 1 - i) = k. Axes shorter than k - 1 are mirrored again and again, w is
reduced until no pixel is seen more than k times, and = becomes <=.
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIONS = 4096  # that go together: coefficients, energies and gates of so many stay in L2


class Patches:
    """Geometry of the patches of images of one size.

    Attributes
    ----------
    rows, columns : Tensor, shape (H + 2 k - 2,), (W + 2 k - 2,), int64
        Pixel of x that every pixel of E x repeats.
    row_weights, column_weights : Tensor, shape (H + k - 1,), (W + k - 1,)
        w along the axes.
    weights : Tensor, shape (H + k - 1, W + k - 1)
        w, their products.
    """

    def __init__(self, height: int, width: int, k: int, like: Tensor):
        self.k = k
        self.rows, self.columns = (_mirrored(side, k).to(like.device) for side in (height, width))
        self.row_weights, self.column_weights = (_weights(side, k).to(like) for side in (height, width))
        self.weights = torch.outer(self.row_weights, self.column_weights)

    def extended(self, x: Tensor) -> Tensor:
        """E x, (N, C, H + 2 k - 2, W + 2 k - 2)."""
        return x.index_select(2, self.rows).index_select(3, self.columns)

    def folded(self, extended: Tensor) -> Tensor:
        """E^T: the adjoint, (N, C, H, W)."""
        return folded(extended, self.k)

    def blocks(self) -> Iterator[slice]:
        """Rows of positions that go together."""
        height, width = self.weights.shape
        step = max(1, POSITIONS // width)
        for first in range(0, height, step):
            yield slice(first, min(first + step, height))

    def gather(self, extended: Tensor, block: slice) -> Tensor:
        """Patches of E x at the positions of a block, (N, C k^2, P)."""
        return F.unfold(extended[:, :, block.start : block.stop + self.k - 1], self.k)

    def scatter(self, patches: Tensor, extended: Tensor, block: slice) -> None:
        """Add patches, (N, C k^2, P), to where they were gathered."""
        part = extended[:, :, block.start : block.stop + self.k - 1]
        part += F.fold(patches, part.shape[2:], self.k)

    def weights_of(self, block: slice) -> Tensor:
        """w_p of the positions of a block, (P,)."""
        return self.weights[block].flatten()


def _mirrored(side: int, k: int) -> Tensor:
    if side >= k - 1:  # nothing but slices, which exporters know where they leave the size open
        index = torch.arange(side)
        return torch.cat([index[: k - 1].flip(0), index, index[side - k + 1 :].flip(0)])
    index = torch.arange(1 - k, side + k - 1) % (2 * side)
    return torch.where(index < side, index, 2 * side - 1 - index)


def folded(extended: Tensor, k: int) -> Tensor:
    """E^T of a continued image (N, C, H + 2 k - 2, W + 2 k - 2)."""
    return _unmirrored(_unmirrored(extended, 2, k), 3, k)


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


def _weights(side: int, k: int) -> Tensor:
    return _halved(side, k) if side >= k - 1 else _halved(side, k) / _excess(side, k)


def _halved(side: int, k: int) -> Tensor:
    if side < k:
        return torch.full((side + k - 1,), 0.5, dtype=torch.float64)
    crossing = torch.full((k - 1,), 0.5, dtype=torch.float64)
    return torch.cat([crossing, torch.ones(side - k + 1, dtype=torch.float64), crossing])


@functools.cache
def _excess(side: int, k: int) -> float:
    """How often a pixel of an axis is seen at most, with these weights, in units of k; at least 1."""
    seen = torch.zeros(side, dtype=torch.float64)
    for tap in range(k):
        seen.index_add_(0, _mirrored(side, k)[tap : tap + side + k - 1], _halved(side, k))
    return max(1.0, seen.max().item() / k) if side else 1.0
