"""D_r: resize an image by 1/r, and its exact adjoint.

For sizes that are multiples of an even r this is the bilinear resize of the published networks
(align_corners=False, no antialiasing), which reads just two samples per axis and block of r:

    (D_r x)_i = 1/2 (x_{r i + r/2 - 1} + x_{r i + r/2})   along each axis.

Other sizes repeat the last sample, so that D_r x has ceil(n / r) samples and stays aligned with a stack of
stride-2 correlations. The adjoint adds what falls on a repeated sample to that last sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, factor: int) -> Tensor:
    """D_r x for x of shape (N, C, H, W); the result is (N, C, ceil(H/r), ceil(W/r))."""
    if factor == 1:
        return x
    pad_h, pad_w = -x.shape[-2] % factor, -x.shape[-1] % factor
    if pad_h or pad_w:
        x = F.pad(x, (0, pad_w, 0, pad_h), mode="replicate")
    if factor == 2:
        return F.avg_pool2d(x, 2)
    a, b = factor // 2 - 1, factor // 2
    rows = x[..., a::factor, :] + x[..., b::factor, :]  # [N, C, H/r, W]
    return (rows[..., a::factor] + rows[..., b::factor]) * 0.25


def resize_adjoint(y: Tensor, factor: int, height: int, width: int) -> Tensor:
    """D_r^T y for y of shape (N, C, ceil(H/r), ceil(W/r)); the result is (N, C, H, W)."""
    if factor == 1:
        return y
    padded = y.new_zeros(y.shape[0], y.shape[1], y.shape[2] * factor, y.shape[3] * factor)
    quarter = y * 0.25
    for row in (factor // 2 - 1, factor // 2):
        for column in (factor // 2 - 1, factor // 2):
            padded[..., row::factor, column::factor] = quarter
    return _fold_last(_fold_last(padded, height, -2), width, -1)


def _fold_last(y: Tensor, length: int, dim: int) -> Tensor:
    """Adjoint of repeating the last sample: what lies beyond `length` is added to sample length - 1."""
    if y.shape[dim] == length:
        return y
    kept, beyond = torch.split(y, [length, y.shape[dim] - length], dim)
    kept = kept.clone()
    kept.select(dim, length - 1).add_(beyond.sum(dim))
    return kept
