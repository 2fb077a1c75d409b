"""Implicit-GEMM correlation over NHWC tensors, forward and transposed, with the stage's element-wise step inside.

    forward     a_o = sum_taps W[i, j]^T t[S o + (i, j) - P] + A x_o     K = C_in k^2, and twice C k_x^2
    transposed  a_p = sum over (i, j) with S o + (i, j) - P = p of W[i, j] t_o

then `finish` of activations.py. One kernel: both directions walk over taps, and differ in which taps a pixel meets.
A transposed stride S splits the output into S^2 parity classes; class p meets taps i = i0, i0 + S, ... with
i0 = (p + P) mod S, at inputs that differ by whole pixels. So no product is wasted, and the class with most taps goes
first, because the last wave should be short. Both directions read one buffer of weights [k k, C_in, C_out], the
transposed one by swapped strides: forward and backward weights are the same bits by construction.

    tile     BM = BI BH BW pixels x BN channels, accumulated in float32; BN = all channels where registers allow,
             so that a pixel's inputs are fetched once
    loop     one flat loop over taps x channel blocks with scalar div/mod: pipelines, and costs nothing beside the dots
    skip     BX columns at a time, gathered from the image (tiles.py): stage 1 is nothing but this loop
    work     2 k^2 C_in C_out FLOP per output pixel; (C_in + C_out) elements of traffic, + z for the backward step

Weights in fp16 are stored times 2^8, an exact factor that keeps small ones (the published start has 4.5e-5, next to
fp16's smallest normal number) out of the subnormals; `unscale` undoes it in float32, before the skip is added. e and
delta are stored in units of a power of two of their stage (units.py): `product_unit` and `head_unit` bring the terms
of the step into them.

The first stage's e (or delta) serves nothing but A^T e: where no tape keeps it, `projection` forms that product from
the tile in registers, k k C sums per pixel instead of C_OUT values that another kernel would read back. A block sees
BN of the channels, so each block of channels leaves its own part of the sum, and assemble.py adds the parts in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .activations import FORWARD, finish, within_half
from .launch import DOT_PRECISION, MIN_SIDE, Config, Geometry, power_of_two, tile_shape
from .tiles import PRODUCT, TRITON_TYPE, device_of, dot_wide, load_columns, load_operand, pairing, pixel, stages_of


@triton.jit
def correlate_kernel(
    out,  # [N, out_h, out_w, C_OUT]
    t, other,  # [N, in_h, in_w, C_IN] each, or their descriptors with TMA; `other` None but for a product of two
    weight,  # [k k, C_IN, C_OUT], or transposed [k k, C_OUT, C_IN]; its descriptor [k k C, C] with TMA
    x, skip,  # image and its strides below; [columns, C_OUT]
    bias,  # [N or 1, C_OUT] float32 or None
    z, e, dz,  # [N, out_h, out_w, C_OUT] or None
    head, head_squared,  # [HEAD] float32 or None
    product_unit, head_unit,  # one float32 each, or None: what the product and the heads are multiplied by
    projection,  # [PROJECTED, C_OUT] or None: A as rows (i, j, c)
    projected, projected_unit,  # [blocks of channels, N, out_h, out_w, PROJECTED] float32; one float32 or None
    batch, in_h, in_w, out_h, out_w, tiles_h, tiles_w, image_h, image_w, x_n, x_c, x_h, x_w, bias_stride,
    gain, unscale, beta,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, HEAD: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, TRANSPOSED: tl.constexpr,
    CHANNELS: tl.constexpr, SKIP_KERNEL: tl.constexpr, SKIP_STRIDE: tl.constexpr, SKIP_PADDING: tl.constexpr,
    RESIZE: tl.constexpr, PAIR: tl.constexpr, EPILOGUE: tl.constexpr, STORAGE: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BX: tl.constexpr,
    TMA: tl.constexpr, PROJECTED: tl.constexpr, PROJECTED_BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    CLASSES: tl.constexpr = STRIDE if TRANSPOSED else 1  # per axis
    IN_STRIDE: tl.constexpr = 1 if TRANSPOSED else STRIDE
    BLOCKS_K: tl.constexpr = (C_IN + BK - 1) // BK  # 0: the stage reads the image only
    BLOCKS_N: tl.constexpr = (C_OUT + BN - 1) // BN

    # program -> (parity class, tile of pixels, tile of channels), the classes with most taps first
    program = tl.program_id(0)
    channel0 = (program % BLOCKS_N) * BN
    tile = program // BLOCKS_N
    tile_w = tile % tiles_w
    tile_h = (tile // tiles_w) % tiles_h
    tiles_n = tl.cdiv(batch, BI)
    tile_n = (tile // (tiles_w * tiles_h)) % tiles_n
    klass = tile // (tiles_w * tiles_h * tiles_n)
    HEAVIEST: tl.constexpr = (CLASSES - PADDING % CLASSES) % CLASSES  # the class whose first tap is 0
    class_h = (klass // CLASSES + HEAVIEST) % CLASSES
    class_w = (klass % CLASSES + HEAVIEST) % CLASSES
    n0, h0, w0 = tile_n * BI, tile_h * BH, tile_w * BW  # in the grid of the class

    # taps i = first + CLASSES a at input row  h IN_STRIDE + shift + a STEP
    first_h, first_w = (class_h + PADDING) % CLASSES, (class_w + PADDING) % CLASSES
    if TRANSPOSED:
        shift_h, shift_w = (class_h + PADDING - first_h) // CLASSES, (class_w + PADDING - first_w) // CLASSES
    else:
        shift_h, shift_w = tl.zeros((), tl.int32) - PADDING, tl.zeros((), tl.int32) - PADDING
    STEP: tl.constexpr = -1 if TRANSPOSED else 1
    taps_h = (KERNEL - first_h + CLASSES - 1) // CLASSES
    taps_w = (KERNEL - first_w + CLASSES - 1) // CLASSES

    channel = channel0 + tl.arange(0, BN)
    acc = tl.zeros((BI * BH * BW, BN), tl.float32)
    if C_IN > 0:
        for step in tl.range(0, taps_h * taps_w * BLOCKS_K, num_stages=STAGES):
            tap, k0 = step // BLOCKS_K, (step % BLOCKS_K) * BK
            a, b = tap // taps_w, tap % taps_w
            slab = (first_h + CLASSES * a) * KERNEL + first_w + CLASSES * b
            row0, col0 = h0 * IN_STRIDE + shift_h + a * STEP, w0 * IN_STRIDE + shift_w + b * STEP
            left = load_operand(
                t, other, batch, in_h, in_w, n0, row0, col0, k0, gain, C_IN, IN_STRIDE, PAIR, BI, BH, BW, BK, TMA
            )  # fmt: skip
            if TMA:
                if TRANSPOSED:
                    right = weight.load([slab * C_OUT + channel0, k0]).T
                else:
                    right = weight.load([slab * C_IN + k0, channel0])
            else:
                k = k0 + tl.arange(0, BK)
                if TRANSPOSED:
                    at = (slab * C_OUT + channel)[None, :] * C_IN + k[:, None]
                else:
                    at = (slab * C_IN + k)[:, None] * C_OUT + channel[None, :]
                if C_IN % BK == 0 and C_OUT % BN == 0:
                    right = tl.load(weight + at)
                else:
                    right = tl.load(weight + at, mask=(k < C_IN)[:, None] & (channel < C_OUT)[None, :], other=0.0)
            acc = tl.dot(left, right, acc, input_precision=PRECISION)
    acc = acc * unscale
    if product_unit is not None:
        acc = acc * tl.load(product_unit)

    image, row, col = pixel(BI, BH, BW)
    n = n0 + image
    if SKIP_KERNEL > 0:
        COLUMNS: tl.constexpr = CHANNELS * SKIP_KERNEL * SKIP_KERNEL
        for c0 in tl.range(0, COLUMNS, BX, num_stages=1):  # a gather has nothing to gain from a pipeline
            left = load_columns(
                x, x_n, x_c, x_h, x_w, batch, image_h, image_w, n, h0 + row, w0 + col, c0,
                CHANNELS, SKIP_KERNEL, SKIP_STRIDE, SKIP_PADDING, RESIZE, BX,
            )  # fmt: skip
            column = c0 + tl.arange(0, BX)
            known = (column < COLUMNS)[:, None] & (channel < C_OUT)[None, :]
            right = tl.load(skip + column[:, None] * C_OUT + channel[None, :], mask=known, other=0.0)
            acc = dot_wide(left, right, acc, STORAGE, PRECISION)

    out_row, out_col = (h0 + row) * CLASSES + class_h, (w0 + col) * CLASSES + class_w
    inside = (n < batch) & (out_row < out_h) & (out_col < out_w)
    known = channel < C_OUT
    mask = inside[:, None] & known[None, :]
    first_pixel = (n0.to(tl.int64) * out_h + h0 * CLASSES + class_h) * out_w + w0 * CLASSES + class_w
    pixels = (image * out_h + row * CLASSES) * out_w + col * CLASSES  # from the first on
    at = first_pixel * C_OUT + channel0 + (pixels[:, None] * C_OUT + tl.arange(0, BN)[None, :])

    if bias is not None:
        acc += tl.load(bias + n[:, None] * bias_stride + channel[None, :], mask=mask, other=0.0)
    z_tile = acc
    e_tile = acc
    dz_tile = acc
    if z is not None:
        z_tile = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
    if e is not None:
        e_tile = tl.load(e + at, mask=mask, other=0.0).to(tl.float32)
    if dz is not None:
        dz_tile = tl.load(dz + at, mask=mask, other=0.0).to(tl.float32)
    head_row = None
    if head is not None:
        head_row = tl.load(head + channel % HEAD, mask=known, other=0.0)[None, :]
        if head_unit is not None:
            head_row = head_row * tl.load(head_unit)
    squared_row = None
    if head_squared is not None:
        squared_row = tl.load(head_squared + channel % HEAD, mask=known, other=0.0)[None, :]
        if head_unit is not None:
            squared_row = squared_row * tl.load(head_unit)
    result = finish(acc, z_tile, e_tile, dz_tile, head_row, squared_row, beta, EPILOGUE)
    if EPILOGUE == FORWARD and STORAGE == tl.float16:
        result = within_half(result)
    if PROJECTED == 0:
        tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)
    else:
        column = tl.arange(0, PROJECTED_BLOCK)
        wanted = column < PROJECTED
        right = tl.load(
            projection + column[None, :] * C_OUT + channel[:, None], mask=wanted[None, :] & known[:, None], other=0.0
        )
        part = tl.dot(result.to(STORAGE), right, input_precision=PRECISION)
        if projected_unit is not None:
            part = part * tl.load(projected_unit)
        plane = (program % BLOCKS_N).to(tl.int64) * batch * out_h * out_w
        to = (plane + first_pixel) * PROJECTED + (pixels[:, None] * PROJECTED + column[None, :])
        tl.store(projected + to, part, mask=inside[:, None] & wanted[None, :])


def correlate(
    out: Tensor,  # [N, out_h, out_w, C_out] contiguous; written, unless there is a projection
    t: Tensor | None,  # [N, in_h, in_w, C_in] contiguous; None: nothing but the skip
    weight: Tensor | None,  # [k k, C_in, C_out]; transposed: [k k, C_out, C_in]
    core: Geometry,
    epilogue: str,
    config: Config,
    precision: str,
    transposed: bool = False,
    *,
    image: Tensor | None = None,  # [N, C, H, W] float32, any strides
    skip: Tensor | None = None,  # [C k_x^2, C_out], rows (i, j, c)
    reading: Geometry = Geometry(),  # the skip's  # noqa: B008
    bias: Tensor | None = None,  # [1 or N, C_out] float32 contiguous
    z: Tensor | None = None,  # like out, as e and dz
    e: Tensor | None = None,
    dz: Tensor | None = None,
    head: Tensor | None = None,  # [h] float32, where h divides C_out: channel c has entry c mod h
    head_squared: Tensor | None = None,
    beta: float = 1.0,
    unscale: float = 1.0,
    other: Tensor | None = None,  # like t: the operand is gain t other, where `other` may be t itself
    gain: float = 1.0,
    product_unit: Tensor | None = None,  # one float32, as the others
    head_unit: Tensor | None = None,
    projection: Tensor | None = None,  # [k, k, C, C_out], contiguous
    projected_unit: Tensor | None = None,
) -> Tensor:
    """Launch on the current stream of out's device; returns `out`, or with a `projection` the parts of A^T times what
    would have been stored, [parts, N, out_h, out_w, k k C] float32."""
    batch, out_h, out_w, c_out = out.shape
    columns = 0 if projection is None else projection.shape[:-1].numel()
    projected = None
    if columns:
        parts = -(-c_out // config.channels)
        projected = torch.empty((parts, batch, out_h, out_w, columns), dtype=torch.float32, device=out.device)
    if not out.numel():
        return out if projected is None else projected
    classes = core.stride if transposed else 1
    grid_h, grid_w = -(-out_h // classes), -(-out_w // classes)
    tma, pair = config.tma and t is not None, pairing(t, other)
    bi, bh, bw = tile_shape(config.pixels, batch, grid_h, grid_w, tma)
    in_h, in_w, c_in = t.shape[1:] if t is not None else (1, 1, 0)
    other = other if pair == PRODUCT.value else None
    if tma:
        stride, box = 1 if transposed else core.stride, (bi, bh, bw)
        other = None if other is None else _activation(other, stride, box, config)
        t, weight = _activation(t, stride, box, config), _matrix(weight, transposed, config)
    tiles = -(-batch // bi) * -(-grid_h // bh) * -(-grid_w // bw)
    x_strides = image.stride() if skip is not None else (0, 0, 0, 0)
    heads = [h for h in (head, head_squared) if h is not None]
    with device_of(out):
        correlate_kernel[(classes * classes * tiles * -(-c_out // config.channels),)](
            out, t, other, weight, image if skip is not None else None, skip, bias, z, e, dz, head, head_squared,
            product_unit, head_unit, projection, projected, projected_unit,
            batch, in_h, in_w, out_h, out_w, -(-grid_h // bh), -(-grid_w // bw),
            *(image.shape[2:] if skip is not None else (1, 1)), *x_strides,
            0 if bias is None or bias.shape[0] == 1 else c_out,
            float(gain), float(unscale), float(beta),
            C_IN=c_in, C_OUT=c_out, HEAD=heads[0].shape[0] if heads else 1,
            KERNEL=core.kernel if t is not None else 0, STRIDE=core.stride, PADDING=core.padding,
            TRANSPOSED=transposed,
            CHANNELS=image.shape[1] if skip is not None else 1, SKIP_KERNEL=reading.kernel if skip is not None else 0,
            SKIP_STRIDE=reading.stride, SKIP_PADDING=reading.padding, RESIZE=reading.resize,
            PAIR=pair, EPILOGUE=epilogue, STORAGE=TRITON_TYPE[precision], PRECISION=DOT_PRECISION[precision],
            BI=bi, BH=bh, BW=bw, BN=config.channels, BK=config.depth, BX=config.columns, TMA=tma,
            PROJECTED=columns, PROJECTED_BLOCK=max(MIN_SIDE, power_of_two(columns)),
            STAGES=stages_of(pair, config), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return out if projected is None else projected


def _activation(t: Tensor, stride: int, box: tuple[int, int, int], config: Config) -> TensorDescriptor:
    """TMA descriptor of an activation, by parity at stride 2."""
    batch, height, width, channels = t.shape
    if stride == 1:
        return TensorDescriptor.from_tensor(t, [*box, config.depth])
    by_parity = t.view(batch, height // 2, 2, width // 2, 2 * channels)
    return TensorDescriptor.from_tensor(by_parity, [box[0], box[1], 1, box[2], config.depth])


def _matrix(weight: Tensor, transposed: bool, config: Config) -> TensorDescriptor:
    """TMA descriptor of the weights as a matrix."""
    block = [config.channels, config.depth] if transposed else [config.depth, config.channels]
    return TensorDescriptor.from_tensor(weight.view(-1, weight.shape[-1]), block)
