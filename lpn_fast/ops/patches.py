"""Correlations of few input channels as matrix products with patches: the skips A_l on the CPU.

    columns   X [N, C k^2, L]: column p holds the patch of x under output pixel p (zero padding), L = h w
    apply     A x   = X^T A^T        [N, L, H]: channels-last as it stands
    adjoint   A^T e = fold(A^T e^T)
    gradient  e (x) x = sum_n e_n^T X_n^T

A library convolution with one or three input channels pads them to its vector width and returns a layout that
must be copied; the product wastes nothing and the columns serve forward, tangent and gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this many columns per pixel the patches cost more memory traffic than the convolution saves.
MAX_COLUMNS = 256


def columns(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Patches of x (N, C, H, W), shape (N, C k^2, L)."""
    return F.unfold(x, kernel, padding=padding, stride=stride)


def apply(patches: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A x, (N, H, h, w) channels-last, from patches (N, C k^2, h w) and weight (H, C, k, k)."""
    rows = torch.matmul(patches.transpose(1, 2), weight.flatten(1).T)  # [N, L, H]
    return rows.view(rows.shape[0], *size, rows.shape[2]).permute(0, 3, 1, 2)


def adjoint(e: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """A^T e, (N, C, *size), from e (N, H, h, w) channels-last and weight (H, C, k, k)."""
    patches = torch.matmul(weight.flatten(1).T, _rows(e).transpose(1, 2))  # [N, C k^2, L]
    return F.fold(patches, size, weight.shape[-1], padding=padding, stride=stride)


def gradient(e: Tensor, patches: Tensor) -> Tensor:
    """Sum over batch and pixels of e (x) x, (H, C k^2), from e (N, H, h, w) channels-last."""
    return torch.matmul(patches, _rows(e)).sum(0).T


def _rows(e: Tensor) -> Tensor:
    """[N, H, h, w] channels-last as [N, L, H], without a copy."""
    return e.permute(0, 2, 3, 1).flatten(1, 2)
