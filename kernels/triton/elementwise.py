"""The element-wise step alone, one pass over memory, for products that a library computed.

    out = finish(product + rest, z, e, dz)     on matrices [rows, C]: an NHWC tensor, or a batch of vectors

Traffic is the floor: each operand once. Special functions: two for FORWARD, one for the others, two for ADJOINT.
"""

import triton
import triton.language as tl
from torch import Tensor

from .activations import FORWARD, finish, within_half
from .tiles import device_of

BLOCK = 1024


@triton.jit
def elementwise_kernel(
    out,  # [rows, C]
    product, rest, bias, z, e, dz,  # like out, any of them None; bias [N or 1, C] float32
    head, head_squared, head_unit,  # [C] float32 or None; one float32 or None
    total, rows_per_bias, beta,
    CHANNELS: tl.constexpr, EPILOGUE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    channel = (at % CHANNELS).to(tl.int32)
    a = tl.zeros((BLOCK,), tl.float32)
    if product is not None:
        a += tl.load(product + at, mask=inside, other=0.0).to(tl.float32)
    if rest is not None:
        a += tl.load(rest + at, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        a += tl.load(bias + (at // CHANNELS // rows_per_bias) * CHANNELS + channel, mask=inside, other=0.0)
    z_tile = a
    e_tile = a
    dz_tile = a
    if z is not None:
        z_tile = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    if e is not None:
        e_tile = tl.load(e + at, mask=inside, other=0.0).to(tl.float32)
    if dz is not None:
        dz_tile = tl.load(dz + at, mask=inside, other=0.0).to(tl.float32)
    head_tile = None
    if head is not None:
        head_tile = tl.load(head + channel)
        if head_unit is not None:
            head_tile = head_tile * tl.load(head_unit)
    squared_tile = None
    if head_squared is not None:
        squared_tile = tl.load(head_squared + channel)
        if head_unit is not None:
            squared_tile = squared_tile * tl.load(head_unit)
    result = finish(a, z_tile, e_tile, dz_tile, head_tile, squared_tile, beta, EPILOGUE)
    if EPILOGUE == FORWARD and out.dtype.element_ty == tl.float16:
        result = within_half(result)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def elementwise(
    out: Tensor,  # [..., C] contiguous; written
    product: Tensor | None,  # like out, as are rest, z, e, dz; any dtype
    epilogue: str,
    beta: float,
    *,
    rest: Tensor | None = None,
    bias: Tensor | None = None,  # [1 or N, C] float32, where N divides the rows
    z: Tensor | None = None,
    e: Tensor | None = None,
    dz: Tensor | None = None,
    head: Tensor | None = None,  # [C] float32
    head_squared: Tensor | None = None,
    head_unit: Tensor | None = None,  # what the heads are multiplied by, one float32
) -> Tensor:
    """Launch on the current stream of out's device; returns `out`."""
    total, channels = out.numel(), out.shape[-1]
    if not total:
        return out
    rows = total // channels
    with device_of(out):
        elementwise_kernel[(-(-total // BLOCK),)](
            out, product, rest, bias, z, e, dz, head, head_squared, head_unit,
            total, rows // (1 if bias is None else bias.shape[0]), float(beta),
            CHANNELS=channels, EPILOGUE=epilogue, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out
