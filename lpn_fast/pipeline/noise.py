"""How noisy an image is, from the image alone: the estimate of solvers/noise.py, for jobs."""

import numpy as np
import torch
from torch import Tensor

from ..solvers.noise import SMALLEST_SIDE, TILE, haar_level

# 8,000 blocks: a standard error of 1.3 %; 32,000 pixels: torch starts no threads beside the solver's, from 32,768 on.
MOST_TILES = 500
FEW_TILES = 64  # a standard error of 4 %: enough to doubt a level that was given


def noise_level(image: Tensor, most_tiles: int = MOST_TILES) -> float | None:
    """Standard deviation of the noise in an image (C, H, W), in its units; None for one smaller than 8 x 8.

    Of a large image only `most_tiles` tiles count, evenly spread.

    Examples
    --------
    >>> noisy = 0.1 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    >>> round(noise_level(noisy), 2)
    0.1
    """
    return noise_levels([image], most_tiles)[0]


@torch.inference_mode()
def noise_levels(images: list[Tensor], most_tiles: int = MOST_TILES) -> list[float | None]:
    """That of each image; what is estimated together, where the tiles allow it, takes a fraction of the time."""
    if any(min(image.shape[1:]) < SMALLEST_SIDE for image in images):
        return [None if min(i.shape[1:]) < SMALLEST_SIDE else noise_level(i, most_tiles) for i in images]
    tiles = [_tiles(image, most_tiles) for image in images]
    if len({one.shape for one in tiles}) == 1:
        return haar_level(torch.stack(tiles)).tolist()
    return [float(haar_level(one[None])) for one in tiles]


def _tiles(image: Tensor, most: int) -> Tensor:
    """Some of an image (C, H, W), below each other, (1, tiles TILE, TILE), or all of it."""
    channels, height, width = image.shape
    rows, columns = height // TILE, width // TILE
    total = channels * rows * columns
    if total <= most:
        return image
    chosen = np.arange(most) * total // most
    channel, row, column = chosen // (rows * columns), chosen // columns % rows, chosen % columns
    whole = image[:, : rows * TILE, : columns * TILE].numpy()
    tiles = whole.reshape(channels, rows, TILE, columns, TILE)[channel, row, :, column]  # (tiles, TILE, TILE)
    return torch.from_numpy(tiles.reshape(1, -1, TILE))
