"""How noisy an image is, from the image alone: the estimate of solvers/noise.py, for jobs."""

import numpy as np
import torch
from torch import Tensor

from ..solvers.noise import SMALLEST_SIDE, TILE, haar_level

# 8,000 blocks: a standard error of 1.3 %; 32,000 pixels: torch starts no threads beside the solver's, from 32,768 on.
MOST_TILES = 500
FEW_TILES = 64  # a standard error of 4 %: enough to doubt a level that was given


@torch.inference_mode()
def noise_levels(images: list[Tensor], most_tiles: int = MOST_TILES) -> list[float | None]:
    """Standard deviation of the noise in images (C, H, W), in their units; None for one smaller than 8 x 8.

    Of a large image only `most_tiles` tiles count, evenly spread. What is estimated together, where the tiles allow it,
    takes a fraction of the time.

    Examples
    --------
    >>> noisy = 0.1 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    >>> [round(level, 2) for level in noise_levels([noisy])]
    [0.1]
    """
    tiles = [_tiles(image, most_tiles) if min(image.shape[1:]) >= SMALLEST_SIDE else None for image in images]
    if {type(one) for one in tiles} == {Tensor} and len({one.shape for one in tiles}) == 1:
        return haar_level(torch.stack(tiles)).tolist()
    return [None if one is None else float(haar_level(one[None])) for one in tiles]


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
