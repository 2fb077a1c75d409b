"""Extension of images beyond their borders by reflection, and its transpose.

    x[-1 - i] = x[i],     x[H + i] = x[H - 1 - i]          half-sample symmetric: the border pixel is repeated

The transpose adds every reflected pixel back onto its source.
"""

import torch
from torch import Tensor


def reflect(
    x: Tensor,  # (..., H, W)
    before: tuple[int, int],  # rows above, columns to the left; at most H, W
    after: tuple[int, int],  # rows below, columns to the right; at most H, W
) -> Tensor:  # (..., before + H + after, before + W + after)
    for axis, low, high in zip((-2, -1), before, after, strict=True):
        size = x.shape[axis]
        ends = x.narrow(axis, 0, low).flip(axis), x.narrow(axis, size - high, high).flip(axis)
        x = torch.cat([ends[0], x, ends[1]], dim=axis)
    return x


def fold(
    x: Tensor,  # (..., before + H + after, before + W + after)
    before: tuple[int, int],
    after: tuple[int, int],
) -> Tensor:  # (..., H, W)
    for axis, low, high in zip((-2, -1), before, after, strict=True):
        size = x.shape[axis] - low - high
        core = x.narrow(axis, low, size).clone()
        core.narrow(axis, 0, low).add_(x.narrow(axis, 0, low).flip(axis))
        core.narrow(axis, size - high, high).add_(x.narrow(axis, low + size, high).flip(axis))
        x = core
    return x
