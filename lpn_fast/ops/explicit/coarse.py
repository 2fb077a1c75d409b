"""The coarse level: potentials of patches of patch means.

    R_coarse(x) = 1/k^2 sum_s R_2(D_s x),      D_s x: sums over k x k blocks / k, the blocks of a tiling shifted by s

Every block that lies inside the image is in one of the k^2 tilings, and its sum / k is the coefficient of the constant
atom of a patch of the fine level, whose potentials leave that atom alone. Hence 1/k^2 sum_s |D_s x|^2 is at most what
the constant atoms have of k^2 |x|^2 / k^2, and a curvature of mu on either level is one of mu altogether: the coarse
level spends what the fine one may not. D_s is orthonormal, so the unit of the noise stays. In volumes k^3 and k^(3/2)
stand for k^2 and k.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def means(x: Tensor, k: int) -> Tensor:
    """Sums over all k x k blocks, divided by k: (N, C, H - k + 1, W - k + 1)."""
    if x.dim() == 4:
        return F.avg_pool2d(x, k, stride=1) * k
    return F.avg_pool3d(x, k, stride=1) * k**1.5


def means_adjoint(z: Tensor, k: int) -> Tensor:
    """The adjoint of `means`, (N, C, H, W)."""
    return means(F.pad(z, (k - 1,) * 2 * (z.dim() - 2)), k)


class Tilings:
    """The images D_s x, stacked where they have one size."""

    def __init__(self, size: Sequence[int], k: int):  # of the means
        # of every axis an index (tiles, shifts)
        self.places = list(itertools.product(*(_phases(side, k) for side in size)))

    def split(self, z: Tensor) -> Iterator[Tensor]:
        """(N S, C, h, w), the S tilings of a size for every sample."""
        axes = z.dim() - 2
        for place in self.places:
            part = z[(..., *_grid(place))].view(*z.shape[:2], *(side for index in place for side in index.shape))
            shifts = [3 + 2 * axis for axis in range(axes)]  # (N, C, h, i, w, j)
            part = part.movedim(shifts, list(range(1, 1 + axes)))  # (N, i, j, C, h, w)
            yield part.reshape(-1, *part.shape[1 + axes :])

    def joined(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """The inverse of `split`."""
        z, axes = torch.empty_like(like), like.dim() - 2
        for place, part in zip(self.places, parts, strict=True):
            images = part.view(len(like), *(index.shape[1] for index in place), *part.shape[1:])
            images = images.movedim(list(range(1, 1 + axes)), [3 + 2 * axis for axis in range(axes)])
            grid = _grid(place)
            z[(..., *grid)] = images.reshape(*like.shape[:2], *(index.numel() for index in grid))
        return z


def _grid(place: tuple[Tensor, ...]) -> list[Tensor]:
    """Indices along the axes that broadcast to those of all pixels."""
    return [i.flatten().view(-1, *(1,) * (len(place) - 1 - axis)) for axis, i in enumerate(place)]


def _phases(length: int, k: int) -> list[Tensor]:
    """Indices (tiles, shifts) of the shifts that have as many tiles; none without a tile."""
    long = length % k
    parts = [(length // k + 1, 0, long), (length // k, long, k)]
    return [torch.arange(h)[:, None] * k + torch.arange(a, b) for h, a, b in parts if h and b > a]
