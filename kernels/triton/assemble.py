"""f += D^T A^T e from the per-pixel products P = A^T e: a gather, so no atomics and one order of summation.

    (A^T e)[c, h, w] = sum over taps (i, j) with S o + (i, j) - P = (h, w) of products[o, (i, j, c)]
    (D^T y)[c, h]    = weight(h) y[c, floor(h / R)]   per axis

weight is 1/2 for the two samples of a block that D averages, 0 for others, and collects what D read from repeats of
the last sample. Memory bound: products are read k^2 times through the cache, f once.
"""

import triton
import triton.language as tl
from torch import Tensor

from .launch import Geometry
from .tiles import device_of

BLOCK = 256


@triton.jit
def resize_weight(h, height, RESIZE: tl.constexpr):
    """Weight with which D reads sample h from the block floor(h / R); float32."""
    if RESIZE == 1:
        return tl.full(h.shape, 1.0, tl.float32)
    else:
        first = (h // RESIZE) * RESIZE + RESIZE // 2 - 1
        reads = (tl.minimum(first, height - 1) == h).to(tl.float32)
        reads += (tl.minimum(first + 1, height - 1) == h).to(tl.float32)
        return 0.5 * reads


@triton.jit
def assemble_kernel(
    f,  # [N, C, H, W] float32, contiguous; added to
    products,  # [PARTS, N, out_h, out_w, k k C] float32
    height, width, out_h, out_w, part_size,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RESIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(height * width, BLOCK)
    plane = tl.program_id(0) // blocks  # one axis: the others end at 65535 blocks, which are 4096^2 pixels
    n, c = plane // CHANNELS, plane % CHANNELS
    at = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    h, w = at // width, at % width
    top, left = h // RESIZE + PADDING, w // RESIZE + PADDING  # in the padded, resized image
    first_i, first_j = top % STRIDE, left % STRIDE
    TAPS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    products += n.to(tl.int64) * out_h * out_w * (KERNEL * KERNEL * CHANNELS) + c
    total = tl.zeros((BLOCK,), tl.float32)
    for a in range(TAPS):
        i = first_i + STRIDE * a
        row = (top - i) // STRIDE
        for b in range(TAPS):
            j = first_j + STRIDE * b
            col = (left - j) // STRIDE
            known = (i < KERNEL) & (j < KERNEL) & (top >= i) & (left >= j) & (row < out_h) & (col < out_w)
            known = known & (at < height * width)
            entry = (row * out_w + col).to(tl.int64) * (KERNEL * KERNEL * CHANNELS) + (i * KERNEL + j) * CHANNELS
            for part in tl.static_range(PARTS):
                total += tl.load(products + tl.full((), part, tl.int64) * part_size + entry, mask=known, other=0.0)
    total *= resize_weight(h, height, RESIZE) * resize_weight(w, width, RESIZE)
    f += plane.to(tl.int64) * height * width
    inside = at < height * width
    tl.store(f + at, tl.load(f + at, mask=inside, other=0.0) + total, mask=inside)


def assemble(f: Tensor, products: Tensor, reading: Geometry) -> None:
    """f [N, C, H, W] float32 contiguous += D^T A^T e, from products [(parts,) N, out_h, out_w, k k C] float32."""
    products = products if products.dim() == 5 else products[None]
    batch, channels, height, width = f.shape
    if not f.numel():
        return
    out_h, out_w = products.shape[2:4]
    with device_of(f):
        assemble_kernel[(batch * channels * -(-height * width // BLOCK),)](
            f, products, height, width, out_h, out_w, products[0].numel(),
            PARTS=len(products), CHANNELS=channels,
            KERNEL=reading.kernel, STRIDE=reading.stride, PADDING=reading.padding, RESIZE=reading.resize, BLOCK=BLOCK,
        )  # fmt: skip
