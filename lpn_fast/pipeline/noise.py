"""How noisy an image is, from the image alone: the estimate of solvers/noise.py, for the manifest."""

from torch import Tensor

from ..solvers.noise import haar_level

# Enough for a standard error below 1 %, and few enough that torch starts no threads beside the solver's.
MOST_BLOCKS = 2**14


def noise_level(image: Tensor) -> float | None:
    """Standard deviation of the noise in an image (C, H, W), in its units; None for one smaller than 2 x 2.

    Of a large image the pairs of rows are spread evenly, for MOST_BLOCKS blocks of 2 x 2 pixels at most.

    Examples
    --------
    >>> import torch
    >>> noisy = 0.1 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    >>> round(noise_level(noisy), 2)
    0.1
    """
    channels, height, width = image.shape
    if min(height, width) < 2:
        return None
    pairs = image[:, : height // 2 * 2].unflatten(1, (height // 2, 2))  # (C, H / 2, 2, W)
    step = -(-channels * (height // 2) * (width // 2) // MOST_BLOCKS)
    return float(haar_level(pairs[:, ::step].flatten(1, 2)[None]))
