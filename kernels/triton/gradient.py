"""Gradients of the weights as one GEMM whose contraction runs over pixels, twice.

dW[i, j] = sum over pixels o of   z[S o + (i, j) - P] d_o^T  +  dz[S o + (i, j) - P] e_o^T       (core)
dA[(i, j, c)] = the same with the patches of x and of v for z and dz                             (skip)

tile     BM input channels (or skip columns) x BN output channels of one tap, accumulated in float32
loop     over tiles of BP pixels, both products into the same accumulator: K doubled, nothing packed or copied
split    the sum over pixels is cut into parts that fill the device; each part writes its own slice of a float32
         workspace, and the slices are added in order: the result is the same bits every time, without atomics
work     2 x 2 k^2 C_in C_out FLOP per pixel; at C = 256 there are 18 tiles of 128 x 256, hence the split
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import DOT_PRECISION, Config, Geometry, splits, tile_shape
from .tiles import PRODUCT, TRITON_TYPE, device_of, load_columns, load_operand, load_pixels, pairing, pixel, stages_of


@triton.jit
def accumulate(
    acc,  # [BM, BN]
    d, t, other, gain,  # [N, out_h, out_w, C_OUT]; [N, in_h, in_w, C_IN] (tiles.py: load_operand) or the image
    first, last,  # tiles of pixels
    batch, in_h, in_w, out_h, out_w, tiles_h, tiles_w, x_n, x_c, x_h, x_w,
    i, j, row0_in, channel0,  # the tap (core), the first input channel or column, the first output channel
    C_IN: tl.constexpr, C_OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RESIZE: tl.constexpr, IMAGE: tl.constexpr, PAIR: tl.constexpr, STORAGE: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """acc + sum over pixels of the tiles first .. last - 1 of t d^T."""
    for tile in tl.range(first, last, num_stages=STAGES):
        w0 = (tile % tiles_w) * BW
        h0 = ((tile // tiles_w) % tiles_h) * BH
        n0 = (tile // (tiles_w * tiles_h)) * BI
        right = load_pixels(d, batch, out_h, out_w, n0, h0, w0, channel0, C_OUT, 1, BI, BH, BW, BN, TMA)
        if IMAGE:
            image, row, col = pixel(BI, BH, BW)
            wide = load_columns(
                t, x_n, x_c, x_h, x_w, batch, in_h, in_w, n0 + image, h0 + row, w0 + col, row0_in,
                C_IN, KERNEL, STRIDE, PADDING, RESIZE, BM,
            )  # fmt: skip
            high = wide.to(STORAGE)
            acc = tl.dot(tl.trans(high), right, acc, input_precision=PRECISION)
            if STORAGE != tl.float32:
                low = (wide - high.to(tl.float32)).to(STORAGE)
                acc = tl.dot(tl.trans(low), right, acc)
        else:
            left = load_operand(
                t, other, batch, in_h, in_w, n0, h0 * STRIDE + i - PADDING, w0 * STRIDE + j - PADDING, row0_in, gain,
                C_IN, STRIDE, PAIR, BI, BH, BW, BM, TMA,
            )  # fmt: skip
            acc = tl.dot(tl.trans(left), right, acc, input_precision=PRECISION)
    return acc


@triton.jit
def gradient_kernel(
    parts,  # [splits, rows, C_OUT] float32; rows = k k C_IN
    d, t, other, e, dt, dother,  # two pairs (d, t other) and (e, dt dother); the second may be None
    batch, in_h, in_w, out_h, out_w, tiles_h, tiles_w, tiles, tiles_per_part,
    x_n, x_c, x_h, x_w, v_n, v_c, v_h, v_w, gain, dgain,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RESIZE: tl.constexpr, IMAGE: tl.constexpr, PAIR: tl.constexpr, DPAIR: tl.constexpr,
    STORAGE: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr, DSTAGES: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = KERNEL * KERNEL * C_IN
    BLOCKS_N: tl.constexpr = (C_OUT + BN - 1) // BN
    BLOCKS_M: tl.constexpr = (ROWS + BM - 1) // BM if IMAGE else (C_IN + BM - 1) // BM
    program, part = tl.program_id(0), tl.program_id(1)
    channel0 = (program % BLOCKS_N) * BN
    row0_in = ((program // BLOCKS_N) % BLOCKS_M) * BM
    tap = program // (BLOCKS_N * BLOCKS_M)
    i, j = tap // KERNEL, tap % KERNEL
    first = part * tiles_per_part
    last = tl.minimum(first + tiles_per_part, tiles)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = accumulate(
        acc, d, t, other, gain, first, last, batch, in_h, in_w, out_h, out_w, tiles_h, tiles_w, x_n, x_c, x_h, x_w,
        i, j, row0_in, channel0, C_IN, C_OUT, KERNEL, STRIDE, PADDING, RESIZE, IMAGE, PAIR, STORAGE, PRECISION,
        BI, BH, BW, BM, BN, TMA, STAGES,
    )  # fmt: skip
    if e is not None:
        acc = accumulate(
            acc, e, dt, dother, dgain, first, last, batch, in_h, in_w, out_h, out_w, tiles_h, tiles_w,
            v_n, v_c, v_h, v_w, i, j, row0_in, channel0,
            C_IN, C_OUT, KERNEL, STRIDE, PADDING, RESIZE, IMAGE, DPAIR, STORAGE, PRECISION,
            BI, BH, BW, BM, BN, TMA, DSTAGES,
        )  # fmt: skip
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    row = row0_in + m
    known = (row < (ROWS if IMAGE else C_IN))[:, None] & (channel0 + n < C_OUT)[None, :]
    at = (part.to(tl.int64) * ROWS + tap * C_IN + row)[:, None] * C_OUT + (channel0 + n)[None, :]
    tl.store(parts + at, acc, mask=known)


def gradient(
    pairs: list[tuple[Tensor, Tensor]],  # one or two of (d [N, out_h, out_w, C_out], t [N, in_h, in_w, C_in]),
    geometry: Geometry,  # or with t the image [N, C, H, W] float32, any strides
    config: Config,
    precision: str,
    image: bool = False,
    processors: int = 1,
    others: tuple[Tensor | None, Tensor | None] = (None, None),  # like the t: of a pair (d, gain t other)
    gains: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """sum over the pairs of t d^T, [k, k, C_in, C_out] float32."""
    (d, t), (e, dt) = pairs[0], (pairs[1] if len(pairs) == 2 else (None, None))
    batch, out_h, out_w, c_out = d.shape
    c_in, in_h, in_w = t.shape[1:] if image else (t.shape[3], t.shape[1], t.shape[2])
    k = geometry.kernel
    if not d.numel():
        return d.new_zeros(k, k, c_in, c_out, dtype=torch.float32)
    tma = config.tma and not image
    bi, bh, bw = tile_shape(config.pixels, batch, out_h, out_w, tma)
    tiles_h, tiles_w = -(-out_h // bh), -(-out_w // bw)
    tiles = -(-batch // bi) * tiles_h * tiles_w
    rows = k * k * c_in
    blocks = -(-c_out // config.channels) * (-(-rows // config.depth) if image else k * k * -(-c_in // config.depth))
    count = splits(blocks, tiles, processors)
    per_part = -(-tiles // count)
    count = -(-tiles // per_part)
    strides = [s.stride() if image else (0, 0, 0, 0) for s in (t, t if dt is None else dt)]
    pair, dpair = pairing(t, others[0]), pairing(dt, others[1])
    other, dother = (o if p == PRODUCT.value else None for o, p in zip(others, (pair, dpair), strict=True))
    operands = [d, t, other, e, dt, dother]
    if tma:
        read = geometry.stride, config.depth
        boxes = [(1, config.channels), read, read] * 2
        operands = [
            None if o is None else _descriptor(o, *b, (bi, bh, bw)) for o, b in zip(operands, boxes, strict=True)
        ]
    parts = torch.empty((count, rows, c_out), dtype=torch.float32, device=d.device)
    with device_of(d):
        gradient_kernel[blocks, count](
            parts, *operands, batch, in_h, in_w, out_h, out_w, tiles_h, tiles_w, tiles, per_part,
            *strides[0], *strides[1], *map(float, gains),
            C_IN=c_in, C_OUT=c_out, KERNEL=k, STRIDE=geometry.stride, PADDING=geometry.padding,
            RESIZE=geometry.resize, IMAGE=image, PAIR=pair, DPAIR=dpair,
            STORAGE=TRITON_TYPE[precision], PRECISION=DOT_PRECISION[precision],
            BI=bi, BH=bh, BW=bw, BM=config.depth, BN=config.channels, TMA=tma,
            STAGES=stages_of(pair, config), DSTAGES=stages_of(dpair, config),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return (parts[0] if count == 1 else parts.sum(0)).view(k, k, c_in, c_out)


def _descriptor(t: Tensor, stride: int, channels: int, box: tuple[int, int, int]) -> TensorDescriptor:
    """The descriptor of an activation, by parity at stride 2 (tiles.py)."""
    n, h, w, c = t.shape
    if stride == 1:
        return TensorDescriptor.from_tensor(t, [*box, channels])
    return TensorDescriptor.from_tensor(t.view(n, h // 2, 2, w // 2, 2 * c), [box[0], box[1], 1, box[2], channels])
