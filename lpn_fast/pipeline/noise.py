"""How noisy an image is, from the image alone: the estimate of solvers/noise.py, for the manifest."""

from __future__ import annotations

from torch import Tensor

from ..solvers.noise import haar_level


def noise_level(image: Tensor) -> float | None:
    """Standard deviation of the noise in an image (C, H, W), in its units; None for one smaller than 2 x 2.

    Examples
    --------
    >>> import torch
    >>> noisy = 0.1 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    >>> round(noise_level(noisy), 2)
    0.1
    """
    return None if min(image.shape[-2:]) < 2 else float(haar_level(image[None]))
