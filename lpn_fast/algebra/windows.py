"""Averages over the neighbourhood of every position, which give each of them all its weight back.

    (G l)_p = sum_q t_(q - p) a_q l_q,      a_q = w_q / sum_p t_(q - p) w_p,      hence  sum_p w_p G_pq = w_q,

t a raised cosine, w_p the weights of positions (algebra/patches.py), or one; along the rows, then along the columns.
Averages of soft maxima l, summed with weights w, then pass no more than the l themselves would: sums of the slopes
in every l_q are w_q, whatever competes at p.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def taps(side: int, like: Tensor) -> Tensor:
    """t, (side,): a raised cosine without its zeros, with half its height side / 4 from its middle."""
    at = torch.arange(1, side + 1, dtype=torch.float64, device=like.device)
    return torch.sin(math.pi * at / (side + 1)).square().to(like.dtype)


class Windows:
    """G over positions (h, w) with weights w_p = rows (h,) times columns (w,)."""

    def __init__(self, side: int, rows: Tensor, columns: Tensor):
        self._taps = taps(side, rows)  # a palindrome: the same correlation serves both ways
        self._side = side
        self._given = [self._share(rows)[:, None], self._share(columns)]

    def __call__(self, l: Tensor) -> Tensor:
        """G l, (N, C, h, w)."""
        rows, columns = self._given
        return self._correlated(l * rows * columns)

    def adjoint(self, e: Tensor) -> Tensor:
        """G^T e, (N, C, h, w)."""
        rows, columns = self._given
        return self._correlated(e) * rows * columns

    def _share(self, weights: Tensor) -> Tensor:
        seen = F.conv1d(weights[None, None], self._taps.view(1, 1, -1), padding=self._side // 2)[0, 0]
        return torch.where(seen > 0, weights / seen, 0.0)

    def _correlated(self, t: Tensor) -> Tensor:
        channels, r = t.shape[1], self._side // 2
        t = F.conv2d(t, self._taps.view(-1, 1).expand(channels, 1, -1, 1), None, 1, (r, 0), 1, channels)
        return F.conv2d(t, self._taps.view(1, -1).expand(channels, 1, 1, -1), None, 1, (0, r), 1, channels)
