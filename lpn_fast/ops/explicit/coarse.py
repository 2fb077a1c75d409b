"""The coarse level: potentials of patches of patch means.

    R_coarse(x) = 1/k^2 sum_s R_2(D_s x),      D_s x: sums over k x k blocks / k, the blocks of a tiling shifted by s

Every block that lies inside the image is in one of the k^2 tilings, and its sum / k is the coefficient of the constant
atom of a patch of the fine level, whose potentials leave that atom alone. Hence 1/k^2 sum_s |D_s x|^2 is at most what
the constant atoms have of k^2 |x|^2 / k^2, and a curvature of mu on either level is one of mu altogether: the coarse
level spends what the fine one may not. D_s is orthonormal, so the unit of the noise stays.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def means(x: Tensor, k: int) -> Tensor:
    """Sums over all k x k blocks, divided by k: (N, C, H - k + 1, W - k + 1)."""
    return F.avg_pool2d(x, k, stride=1) * k


def means_adjoint(z: Tensor, k: int) -> Tensor:
    """The adjoint of `means`, (N, C, H, W)."""
    return means(F.pad(z, (k - 1,) * 4), k)


class Tilings:
    """The images D_s x, stacked where they have one size."""

    def __init__(self, height: int, width: int, k: int):  # size of the means
        self.places = [(rows, columns) for rows in _phases(height, k) for columns in _phases(width, k)]

    def split(self, z: Tensor) -> Iterator[Tensor]:
        """(N S, C, h, w), the S tilings of a size for every sample."""
        for rows, columns in self.places:
            part = z[:, :, rows[:, :, None, None], columns]  # (N, C, h, i, w, j)
            n, channels, h, i, w, j = part.shape
            yield part.permute(0, 3, 5, 1, 2, 4).reshape(n * i * j, channels, h, w)

    def joined(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """The inverse of `split`."""
        z = torch.empty_like(like)
        for (rows, columns), part in zip(self.places, parts, strict=True):
            _, channels, h, w = part.shape
            images = part.view(len(like), rows.shape[1], columns.shape[1], channels, h, w)
            z[:, :, rows[:, :, None, None], columns] = images.permute(0, 3, 4, 1, 5, 2)
        return z


def _phases(length: int, k: int) -> list[Tensor]:
    """Indices (tiles, shifts) of the shifts that have as many tiles; none without a tile."""
    long = length % k
    parts = [(length // k + 1, 0, long), (length // k, long, k)]
    return [torch.arange(h)[:, None] * k + torch.arange(a, b) for h, a, b in parts if h and b > a]
