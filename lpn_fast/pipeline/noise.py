"""How noisy an image is, from the image alone.

The finest diagonal Haar coefficients  d = (x_00 - x_01 - x_10 + x_11) / 2  of white noise of level sigma have
that same level, and smooth regions and straight edges contribute nothing to most of them. The median of |d| of a
Gaussian is 0.6745 sigma and does not mind the few coefficients that hold texture (Donoho and Johnstone, 1994).
Texture everywhere raises the estimate; blurred noise lowers it.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAUSSIAN_MEDIAN = 0.6744897501960817  # of |n|, n standard normal


def noise_level(image: Tensor) -> float | None:
    """Standard deviation of the noise in an image (C, H, W), in its units; None for one smaller than 2 x 2.

    Examples
    --------
    >>> noisy = 0.1 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    >>> round(noise_level(noisy), 2)
    0.1
    """
    height, width = (side - side % 2 for side in image.shape[-2:])
    if height == 0 or width == 0:
        return None
    x = image[..., :height, :width]
    d = (x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 2
    return float(torch.median(d.abs()) / GAUSSIAN_MEDIAN)
