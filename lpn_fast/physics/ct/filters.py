"""The ramp filter of filtered back-projection.

The ramp |f|, cut at half the sampling rate, is in real space (Kak and Slaney, 1988, eq. 3.61)

    h[0] = 1 / (4 d^2),     h[n] = 0 for even n,     h[n] = -1 / (pi n d)^2 for odd n

and filtering is d (h * y) along the detector. Sampling |f| itself instead would put its zero at f = 0
onto the mean of the image, which then comes out too low. Rows are padded to twice their length, so
nothing wraps around.
"""

import functools
import math

import torch
from torch import Tensor

from ..fourier import filter_last_axis

# Factor on the ramp as a function of frequency / cutoff, in [0, 1].
WINDOWS = {
    "ramp": lambda f: torch.ones_like(f),
    "shepp-logan": lambda f: torch.special.sinc(f / 2),
    "cosine": lambda f: torch.cos(math.pi / 2 * f),
    "hamming": lambda f: 0.54 + 0.46 * torch.cos(math.pi * f),
    "hann": lambda f: 0.5 + 0.5 * torch.cos(math.pi * f),
}


def filter_rows(
    y: Tensor,  # (..., bins)
    spacing: float,
    window: str,
    cutoff: float,
) -> Tensor:  # (..., bins)
    """Rows filtered with the windowed ramp."""
    bins = y.shape[-1]
    size = 2 ** math.ceil(math.log2(max(2, 2 * bins)))
    response = _response(size, spacing, window, cutoff).to(y)
    return filter_last_axis(y, response, size)[..., :bins]


@functools.lru_cache(maxsize=8)
def _response(size: int, spacing: float, window: str, cutoff: float) -> Tensor:  # (size // 2 + 1,) float64
    with torch.inference_mode(False):
        n = torch.arange(size, dtype=torch.float64)
        n = torch.minimum(n, size - n)
        kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp_min(1) * spacing) ** 2, 0.0)
        kernel[0] = 1 / (4 * spacing**2)
        ramp = spacing * torch.fft.rfft(kernel).real
        frequency = torch.linspace(0, 1, size // 2 + 1, dtype=torch.float64) / cutoff  # 1 at the cutoff
        return ramp * torch.where(frequency <= 1, WINDOWS[window](frequency.clamp_max(1)), 0.0)
