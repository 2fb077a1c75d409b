"""Correlations of few input channels as matrix products with patches: the skips A_l on the CPU.

    columns   X [N, C k^2, L]: column p holds the patch of x under output pixel p (zero padding), L = h w;
              of volumes [N, C k^3, L], L = d h w
    apply     A x   = X^T A^T        [N, L, H]: channels-last as it stands
    adjoint   A^T e = fold(A^T e^T)
    gradient  e (x) x = sum_n e_n^T X_n^T

A library convolution with one or three input channels pads them to its vector width and returns a layout that
must be copied; the product wastes nothing and the columns serve forward, tangent and gradient.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this many columns per pixel the patches cost more memory traffic than the convolution saves.
MAX_COLUMNS = 256


def columns(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Patches of x (N, C, H, W) or (N, C, D, H, W), shape (N, C k^2, L) or (N, C k^3, L)."""
    if x.dim() == 4:
        return F.unfold(x, kernel, padding=padding, stride=stride)
    x = F.pad(x, (padding,) * 6)
    for axis in (2, 3, 4):
        x = x.unfold(axis, kernel, stride)  # views [N, C, d, h, w, k, k, k] in the end
    return x.permute(0, 1, 5, 6, 7, 2, 3, 4).flatten(1, 4).flatten(2)


def apply(patches: Tensor, weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """A x, (N, H, *size) channels-last, from patches (N, C k^2, L) and weight (H, C, k, k), or of volumes."""
    rows = torch.matmul(patches.transpose(1, 2), weight.flatten(1).T)  # [N, L, H]
    return rows.view(rows.shape[0], *size, rows.shape[2]).movedim(-1, 1)


def adjoint(e: Tensor, weight: Tensor, size: tuple[int, ...], stride: int, padding: int) -> Tensor:
    """A^T e, (N, C, *size), from e (N, H, h, w) channels-last and weight (H, C, k, k), or of volumes."""
    patches = torch.matmul(weight.flatten(1).T, _rows(e).transpose(1, 2))  # [N, C k^2, L]
    if len(size) == 2:
        return F.fold(patches, size, weight.shape[-1], padding=padding, stride=stride)
    patches = patches.view(len(e), *weight.shape[1:], *e.shape[2:])  # [N, C, k, k, k, d, h, w]
    total = e.new_zeros(len(e), weight.shape[1], *(n + 2 * padding for n in size))
    for tap in itertools.product(range(weight.shape[-1]), repeat=3):
        under = tuple(slice(i, i + stride * (n - 1) + 1, stride) for i, n in zip(tap, e.shape[2:], strict=True))
        total[(..., *under)] += patches[(slice(None), slice(None), *tap)]
    return total[(..., *(slice(padding, padding + n) for n in size))].contiguous()


def gradient(e: Tensor, patches: Tensor) -> Tensor:
    """Sum over batch and pixels of e (x) x, (H, C k^2) or (H, C k^3), from e (N, H, h, w) channels-last."""
    return torch.matmul(patches, _rows(e)).sum(0).T


def _rows(e: Tensor) -> Tensor:
    """[N, H, h, w] channels-last as [N, L, H], without a copy."""
    return e.movedim(1, -1).flatten(1, -2)
