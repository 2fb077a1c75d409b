"""Memory as the kernels take it: NHWC views, weights in storage, operands that are products, mirrored borders."""

import functools

import torch
from torch import Tensor

from ....algebra.patches import Patches
from ...epilogues import Product


def relaid(weight: Tensor | None, dtype: torch.dtype, scale: float) -> Tensor | None:
    """[H, K, k, k] as [k, k, K, H] in storage, times `scale`: rounding, scaling and layout in one pass."""
    if weight is None:
        return None
    view = weight.permute(2, 3, 1, 0)
    return torch.mul(view, scale, out=torch.empty(view.shape, dtype=dtype, device=weight.device))


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b with a float32 result, of which no digit was rounded to 16 bits."""
    if torch.float32 in (a.dtype, b.dtype):
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def operand(t: Tensor | Product) -> tuple[Tensor, Tensor | None, float]:
    """(t, other, factor) as the kernels take an operand, each NHWC; `other` is t for a square."""
    if not isinstance(t, Product):
        return nhwc(t), None, 1.0
    left = nhwc(t.left)
    return left, left if t.right is t.left else nhwc(t.right), t.factor


def nhwc(t: Tensor) -> Tensor:
    """[N, C, h, w] as contiguous [N, h, w, C]: a view of channels-last memory."""
    return t.permute(0, 2, 3, 1).contiguous()


def nchw(t: Tensor) -> Tensor:
    """The view back."""
    return t.permute(0, 3, 1, 2)


def contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


@functools.cache  # for good: captured graphs read these
def mirrored_axis(side: int, k: int, where: torch.device, divisor: int = 1) -> tuple[Tensor, Tensor]:
    """Of an axis the pixels that a mirrored one repeats, (side + 2k - 2,) int32, and the weights of positions.

    The weights (side + k - 1,) are over `divisor`. From the host, which a capture refuses: what a captured kernel would
    have written is not there for others before the graph runs.
    """
    axis = Patches((side,), k, torch.empty(0, device="cpu"))
    return axis.sources[0].int().to(where), (axis.axis_weights[0] / divisor).to(where)


def power_of_two(tensors: list[Tensor]) -> Tensor:
    """A power of two, on the device, that brings the largest entry to [1, 2); 1 for zeros."""
    largest = torch.stack([t.abs().amax() if t.numel() else t.new_zeros(()) for t in tensors]).amax()
    _, exponent = torch.frexp(torch.where(largest > 0, largest, 2.0))
    return torch.ldexp(torch.ones_like(largest), 1 - exponent)
