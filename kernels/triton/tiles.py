"""Tiles of pixels: how a block of BM = BI BH BW pixels of an NHWC tensor reaches registers or shared memory.

A tile is BI images x BH rows x BW columns. `pixel(...)` gives the position of each of its BM rows in the tile.

    load_pixels   [BM, BK] of an activation [N, H, W, C] at pixels (n, row0 + STRIDE h, col0 + STRIDE w), channels
                  from k0 on; what lies outside of the image is zero: that is the padding of the correlation
    load_columns  [BM, BX] of the patches of the image x that the skips multiply, gathered from x itself:
                  column (i, j, c) of output pixel (r, t) is (D x)[c, S r + i - P, S t + j - P], zero outside.
                  D (algebra/resize.py) is applied in the gather, so no resized image and no patch matrix exist.
    load_operand  load_pixels of a tensor, of its square, or of the product of two: gain t, gain t^2, gain t t'.
                  What a first stage z = u^2 hands on is never stored, u is; the product is formed in float32.

With TMA an activation comes as a descriptor; the copy engine zero-fills outside coordinates. At stride 2 the
descriptor views it as [N, H/2, 2, W/2, 2C], rank 5 = TMA's maximum: a tap then is a box at one parity, and no
fetched element is thrown away. That view needs even H and W; odd sizes take the pointer path.

Offsets: a tile's base is int64, positions within a tile are int32 (a tile spans a few rows of one image, or a few
small images), so tensors above 2^31 elements work and address arithmetic stays in 32 bits.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config

# What a tile of an operand is made of.
ALONE: tl.constexpr = tl.constexpr("alone")
SQUARE: tl.constexpr = tl.constexpr("square")
PRODUCT: tl.constexpr = tl.constexpr("product")

TRITON_TYPE = {"fp32": tl.float32, "tf32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}


def device_of(t: Tensor):
    """Makes t's device the current one for a launch; nothing for CPU tensors, which the interpreter takes."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def pairing(t: Tensor | None, other: Tensor | None) -> str:
    """PAIR of an operand t, t^2 (`other` is t) or t times `other`."""
    return ALONE.value if other is None else SQUARE.value if other is t else PRODUCT.value


def stages_of(pair: str, config: Config) -> int:
    """In how many stages a loop over products runs. Of an operand that is formed in registers in one: Triton 3.6 lets
    the next iteration write to registers that the last one's product still reads (hazards.py)."""
    return config.stages if pair == ALONE.value else 1


@triton.jit
def pixel(BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """(image, row, column) within the tile, each [BI BH BW]."""
    m = tl.arange(0, BI * BH * BW)
    return m // (BH * BW), (m // BW) % BH, m % BW


@triton.jit
def load_pixels(
    t,  # [N, H, W, C] pointer, or its descriptor with TMA
    batch, height, width,
    n0, row0, col0, k0,  # first image, row, column (may lie outside), channel
    CHANNELS: tl.constexpr, STRIDE: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Tile [BM, BK], zero outside of the image and beyond the channels."""
    if TMA:
        if STRIDE == 1:
            box = t.load([n0, row0, col0, k0])
        else:
            r, c = row0 + 256, col0 + 256  # even and large: // and % of a negative number round towards zero
            box = t.load([n0, r // 2 - 128, r % 2, c // 2 - 128, (c % 2) * CHANNELS + k0])
        tile = box.reshape(BI * BH * BW, BK)
    else:
        image, row, col = pixel(BI, BH, BW)
        k = k0 + tl.arange(0, BK)
        h, w = row0 + row * STRIDE, col0 + col * STRIDE
        inside = (n0 + image < batch) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        base = ((n0.to(tl.int64) * height + row0) * width + col0) * CHANNELS
        offset = ((image * height + row * STRIDE) * width + col * STRIDE) * CHANNELS
        mask = inside[:, None]
        if CHANNELS % BK != 0:
            mask = mask & (k < CHANNELS)[None, :]
        tile = tl.load(t + base + (offset[:, None] + k[None, :]), mask=mask, other=0.0)
    return tile


@triton.jit
def load_operand(
    t, other,  # [N, H, W, C] each, as load_pixels takes them; `other` is read for PRODUCT alone
    batch, height, width, n0, row0, col0, k0, gain,
    CHANNELS: tl.constexpr, STRIDE: tl.constexpr, PAIR: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Tile [BM, BK] in t's type; a gain is for products alone."""
    tile = load_pixels(t, batch, height, width, n0, row0, col0, k0, CHANNELS, STRIDE, BI, BH, BW, BK, TMA)
    if PAIR == ALONE:
        return tile
    else:
        wide = tile.to(tl.float32)
        if PAIR == SQUARE:
            product = wide * wide
        else:
            factor = load_pixels(
                other, batch, height, width, n0, row0, col0, k0, CHANNELS, STRIDE, BI, BH, BW, BK, TMA
            )  # fmt: skip
            product = wide * factor.to(tl.float32)
        return (product * gain).to(tile.dtype)


@triton.jit
def load_columns(
    x, x_n, x_c, x_h, x_w,  # the image [N, C, H, W], float32, and its strides
    batch, height, width,
    n, row, col,  # [BM] pixels of the stage
    c0,  # first column
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, RESIZE: tl.constexpr,
    BX: tl.constexpr,
):  # fmt: skip
    """Tile [BM, BX] of patches, float32."""
    column = c0 + tl.arange(0, BX)
    c, j, i = column % CHANNELS, (column // CHANNELS) % KERNEL, column // (CHANNELS * KERNEL)
    h = row[:, None] * STRIDE + (i - PADDING)[None, :]
    w = col[:, None] * STRIDE + (j - PADDING)[None, :]
    inside = (h >= 0) & (h < tl.cdiv(height, RESIZE)) & (w >= 0) & (w < tl.cdiv(width, RESIZE))
    inside = inside & (n < batch)[:, None] & (i < KERNEL)[None, :]
    plane = n.to(tl.int64)[:, None] * x_n + (c * x_c)[None, :]
    if RESIZE == 1:
        return tl.load(x + plane + (h * x_h + w * x_w), mask=inside, other=0.0)
    else:
        first = RESIZE // 2 - 1  # D averages samples first, first + 1 of each block; the last sample repeats
        top, bottom = tl.minimum(h * RESIZE + first, height - 1), tl.minimum(h * RESIZE + first + 1, height - 1)
        left, right = tl.minimum(w * RESIZE + first, width - 1), tl.minimum(w * RESIZE + first + 1, width - 1)
        total = tl.load(x + plane + (top * x_h + left * x_w), mask=inside, other=0.0)
        total += tl.load(x + plane + (top * x_h + right * x_w), mask=inside, other=0.0)
        total += tl.load(x + plane + (bottom * x_h + left * x_w), mask=inside, other=0.0)
        total += tl.load(x + plane + (bottom * x_h + right * x_w), mask=inside, other=0.0)
        return total * 0.25


@triton.jit
def dot_wide(a, b, acc, STORAGE: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b for float32 a [M, K] and b [K, N] in storage: a as two halves, so that only b is rounded."""
    if STORAGE == tl.float32:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        high = a.to(STORAGE)
        low = (a - high.to(tl.float32)).to(STORAGE)
        acc = tl.dot(high, b, acc)
        acc = tl.dot(low, b, acc)
    return acc
