"""psi, f and H v of a squared first stage under one stage of gates of single pixels: all on chip but sums of rows.

    c_q = A (patch under position q),   z = c^2,   u = W z + b,   e = 2 c (W^T g + h)
    f   = overlap-add of A^T e, + alpha x
    g   = w softmax(beta u)  where the gates compete,     g = w sigmoid(beta u)  where they do not
    H v = the same of delta = 2 dc (W^T g + h) + 2 c W^T dg,   dc = A v,   du = W 2 c dc,   with p = softmax(beta u)
    dg  = w beta p (du - p . du),                         dg = w beta sigmoid' du

Positions are (H + k - 1) x (W + k - 1), with zeros around the image, or with mirrored pixels: what positions send back
and their part of psi are then times w_p (algebra/patches.py). A program takes BM positions of one row, of which
BM - k + 1 pixels get all that they need from it:

    patches [BM, taps] -> c [BM, n] -> BG gates at a time -> W^T g [BM, n] -> A^T e [BM, taps]

of the taps (i, c, j) it then adds the k that differ in j, each from the position it belongs to, and stores k C sums of
rows; `fold_kernel` adds the k sums of a pixel, always in the same order. There are no atomics.

    traffic   4 C of x, 8 k C of the sums written and read, 8 C of x and f behind: 69 bytes per pixel where k = 7, C = 1
    work      2 (2 taps n + 2 n G) FLOP and G special functions per position; taps, n and G padded to powers of two
    overlap   BM / (BM - k + 1) of it, 5 % at k = 7

Gates come in blocks, with the running maximum and sum of the soft maximum, so any number of them fits. Weights are
rounded once and serve both directions: f is the gradient of the psi of the rounded weights. In half precision x and z
enter as two halves each, because c^2 decides between gates by differences that one half does not hold. In H v the
shares p are rounded before their sums are formed: what cancels in du - p . du then cancels exactly.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import LN2, LOG2E, softplus, within_half
from .launch import DOT_PRECISION, MIN_SIDE, power_of_two
from .tiles import TRITON_TYPE, device_of, dot_wide

BLOCK = 256
ROW_BYTES = 1 << 28  # for the sums: more images go in several launches
HALF_SCALE, HALF_GAIN = 256.0, 1 / 256.0  # for W and c^2 in half precision: both stay in its range, W < 255, c < 4095


@triton.jit
def load_patches(
    x, x_n, x_c, x_h, x_w,  # [N, CHANNELS, height, width] float32, and its strides
    image, row, q, tap, height, width,
    mirrored_rows, mirrored_columns,  # the pixels that rows and columns from 1 - KERNEL on repeat; None: zeros
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Taps [BT] of the patches under positions q [BM] of a row, [BM, BT].

    Position q sees the pixels q - KERNEL + 1 + j; taps lie at (i CHANNELS + c) SIDE + j.
    """
    j, c, i = tap % SIDE, (tap // SIDE) % CHANNELS, tap // (SIDE * CHANNELS)
    h, w = (row - KERNEL + 1 + i).to(tl.int64), q[:, None] - KERNEL + 1 + j[None, :]
    taps = (i < KERNEL) & (j < KERNEL)
    if mirrored_rows is None:
        seen = (taps & (h >= 0) & (h < height))[None, :] & (w >= 0) & (w < width)
    else:
        seen = taps[None, :] & ((q >= 0) & (q < width + KERNEL - 1))[:, None]
        h = tl.load(mirrored_rows + row + i, mask=taps, other=0).to(tl.int64)
        w = tl.load(mirrored_columns + q[:, None] + j[None, :], mask=seen, other=0)
    at = image.to(tl.int64) * x_n + c.to(tl.int64) * x_c + h * x_h
    return tl.load(x + at[None, :] + w * x_w, mask=seen, other=0.0)


@triton.jit
def store_sums(
    rows,  # [KERNEL, images, CHANNELS, all_rows, width] float32
    e,  # [BM, UNITS_BLOCK], what position m of the tile sends back
    atoms, image, images, row, all_rows,
    q,  # [BM] columns of the sums: column q is what positions m to m + KERNEL - 1 see of it
    width,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, SIDE: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    UNITS_BLOCK: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A^T e, added over the taps of a row, for the columns that get all that they need from this tile."""
    STEP: tl.constexpr = BM - KERNEL + 1
    m, n = tl.arange(0, BM), tl.arange(0, UNITS_BLOCK)
    for t0 in tl.range(0, TAPS, BT, num_stages=1):
        tap = t0 + tl.arange(0, BT)
        a_tile = tl.load(atoms + tap[:, None] * UNITS_BLOCK + n[None, :])
        products = tl.dot(e, tl.trans(a_tile), input_precision=PRECISION)  # [BM, BT], A^T e
        source = tl.minimum(m[:, None] + (KERNEL - 1) - tl.minimum(tap % SIDE, KERNEL - 1)[None, :], BM - 1)
        sums = tl.sum(tl.reshape(tl.gather(products, source, 0), (BM, BT // SIDE, SIDE)), 2)  # [BM, (i, c)]
        ic = t0 // SIDE + tl.arange(0, BT // SIDE)
        plane = (ic // CHANNELS).to(tl.int64) * images + image
        to = ((plane * CHANNELS + ic % CHANNELS) * all_rows + row) * width
        wanted = (m < STEP)[:, None] & (q < width)[:, None] & (ic < KERNEL * CHANNELS)[None, :]
        tl.store(rows + to[None, :] + q[:, None], sums, mask=wanted)


@triton.jit
def frame_kernel(
    rows,  # [KERNEL, N, CHANNELS, height + KERNEL - 1, width] float32; width + 2 KERNEL - 2 with mirrored pixels
    sent, turned,  # [N, height + KERNEL - 1, width + KERNEL - 1, UNITS]: e and delta, or None
    shares,  # [N, 3, height + KERNEL - 1, width + KERNEL - 1] float32: of the soft maximum the largest beta u log2(e),
    # the sum of 2^(that - largest), and p . du; or None
    psi,  # [N, height + KERNEL - 1, tiles] float32, or None
    x, x_n, x_c, x_h, x_w,  # [N, CHANNELS, height, width] float32, and its strides
    v, v_n, v_c, v_h, v_w,  # the same, or None: f is wanted, and not H v
    atoms,  # [TAPS, UNITS_BLOCK]: A by taps (i, c, j), zeros in the rest
    core,  # [GATES, UNITS]: W times core_scale
    bias,  # [N or 1, GATES] float32
    head,  # [UNITS] float32, or None
    gate_head,  # [GATES], or [1] of gates that compete, float32
    gate_unit,  # [1] float32: power of two that brings the largest gate_head to [1, 2)
    mirrored_rows, mirrored_columns,  # as load_patches has them, int32; None: zeros around the image
    row_weights, column_weights,  # [height + KERNEL - 1], [width + KERNEL - 1] float32: w_p is their product; or None
    height, width, tiles, bias_stride, beta, core_scale,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, SIDE: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    UNITS: tl.constexpr, UNITS_BLOCK: tl.constexpr, GATES: tl.constexpr, BG: tl.constexpr, BM: tl.constexpr,
    COMPETING: tl.constexpr, STORAGE: tl.constexpr, PRECISION: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    STEP: tl.constexpr = BM - KERNEL + 1
    program, all_rows = tl.program_id(0), height + KERNEL - 1
    tile = program % tiles
    row = (program // tiles) % all_rows
    image = program // (tiles * all_rows)

    m, n = tl.arange(0, BM), tl.arange(0, UNITS_BLOCK)
    column = tile * STEP + m  # of the sums, which go as far as the image that patches are taken of
    q = column if mirrored_rows is None else column - (KERNEL - 1)  # position
    coefficients = tl.zeros((BM, UNITS_BLOCK), tl.float32)
    dc = coefficients
    for t0 in tl.range(0, TAPS, BT, num_stages=1):
        tap = t0 + tl.arange(0, BT)
        a_tile = tl.load(atoms + tap[:, None] * UNITS_BLOCK + n[None, :])
        patches = load_patches(
            x, x_n, x_c, x_h, x_w, image, row, q, tap, height, width, mirrored_rows, mirrored_columns,
            CHANNELS, KERNEL, SIDE,
        )  # fmt: skip
        coefficients = dot_wide(patches, a_tile, coefficients, STORAGE, PRECISION)
        if v is not None:
            patches = load_patches(
                v, v_n, v_c, v_h, v_w, image, row, q, tap, height, width, mirrored_rows, mirrored_columns,
                CHANNELS, KERNEL, SIDE,
            )  # fmt: skip
            dc = dot_wide(patches, a_tile, dc, STORAGE, PRECISION)
    z = coefficients * coefficients
    operand = z * GAIN
    if STORAGE == tl.float16:
        operand = within_half(operand)

    tangent = 2 * coefficients * dc * GAIN  # dz, as the operand
    if STORAGE == tl.float16:
        tangent = tl.minimum(tl.maximum(tangent, -65504.0), 65504.0)
    second = tl.zeros((BM, UNITS_BLOCK), tl.float32)  # W^T (p du), or W^T dg
    total_du = tl.zeros((BM,), tl.float32)  # sum of p du

    unit = tl.load(gate_unit)
    back = tl.zeros((BM, UNITS_BLOCK), tl.float32)  # W^T g
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)  # sum of exp(beta u - largest), or sum of w softplus(u)
    for g0 in tl.range(0, GATES, BG, num_stages=1):
        g = g0 + tl.arange(0, BG)
        w_tile = tl.load(
            core + g[:, None] * UNITS + n[None, :], mask=(g < GATES)[:, None] & (n < UNITS)[None, :], other=0.0
        )
        u = dot_wide(operand, tl.trans(w_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
        u = u * (1 / (GAIN * core_scale)) + tl.load(bias + image * bias_stride + g, mask=g < GATES, other=0.0)[None, :]
        if COMPETING:
            y = tl.where((g < GATES)[None, :], u * (beta * LOG2E), float("-inf"))
            above = tl.maximum(largest, tl.max(y, 1))
            share = tl.exp2(y - above[:, None])
            fading = tl.exp2(largest - above)
            if v is not None:
                share = share.to(STORAGE).to(tl.float32)
            total = total * fading + tl.sum(share, 1)
            back = back * fading[:, None]
            largest = above
        else:
            weight = tl.load(gate_head + g, mask=g < GATES, other=0.0)[None, :]
            slope = 1 / (1 + tl.exp2(-u * (beta * LOG2E)))
            share = weight * unit * slope
            if psi is not None:
                total += tl.sum(weight * softplus(u, beta), 1)
        back = tl.dot(share.to(STORAGE), w_tile, back, input_precision=PRECISION)
        if v is not None:
            du = dot_wide(tangent, tl.trans(w_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
            du = du * (1 / (GAIN * core_scale))
            if COMPETING:
                second = second * fading[:, None]
                total_du = total_du * fading + tl.sum(share * du, 1)
                dg = share * du
            else:
                dg = share * (1 - slope) * beta * du
            second = dot_wide(dg * GAIN, w_tile, second, STORAGE, PRECISION)
    second = second / GAIN
    value = total
    if COMPETING:
        weight = tl.load(gate_head)
        second = (second - (total_du / total)[:, None] * back) * (weight * beta / (core_scale * total))[:, None]
        back = back * (weight / (core_scale * total))[:, None]
        value = weight * ((largest + tl.log2(total)) * LN2) / beta
    else:
        second = second / (unit * core_scale)
        back = back / (unit * core_scale)
    if head is not None:
        direct = tl.load(head + n, mask=n < UNITS, other=0.0)[None, :]
        back += direct
        if psi is not None:
            value += tl.sum(direct * z, 1)
    if row_weights is not None:
        there = (q >= 0) & (q < width + KERNEL - 1)
        counts = tl.load(row_weights + row) * tl.load(column_weights + q, mask=there, other=0.0)
        back, second, value = back * counts[:, None], second * counts[:, None], value * counts

    if v is None:
        e = (2 * coefficients * back).to(STORAGE)
    else:
        e = (2 * (dc * back + coefficients * second)).to(STORAGE)
    columns = width + KERNEL - 1
    if mirrored_rows is None:
        own = (q < columns) & ((m < STEP) | (tile == tiles - 1))  # the others are the next tile's
        wide = width
    else:
        own = (q >= 0) & (q < columns) & (m >= KERNEL - 1)  # the others are the tile's before
        wide = width + 2 * KERNEL - 2
    line = image.to(tl.int64) * all_rows + row
    if sent is not None:
        at = (line * columns + q)[:, None] * UNITS + n[None, :]
        kept = own[:, None] & (n < UNITS)[None, :]
        if v is None:
            tl.store(sent + at, e, mask=kept)
        else:
            tl.store(sent + at, (2 * coefficients * back).to(STORAGE), mask=kept)
            tl.store(turned + at, e, mask=kept)
    if shares is not None:
        line += 2 * image * all_rows
        tl.store(shares + line * columns + q, largest, mask=own)
        tl.store(shares + (line + all_rows) * columns + q, total, mask=own)
        if v is not None:
            tl.store(shares + (line + 2 * all_rows) * columns + q, total_du / total, mask=own)
    images = tl.num_programs(0) // (tiles * all_rows)
    store_sums(
        rows, e, atoms, image, images, row, all_rows, column, wide,
        CHANNELS, KERNEL, SIDE, TAPS, BT, UNITS_BLOCK, BM, PRECISION,
    )  # fmt: skip
    if psi is not None:
        tl.store(psi + program, tl.sum(tl.where(own, value, 0.0), 0))


@triton.jit
def fold_kernel(
    f,  # [N, CHANNELS, height, width] float32, contiguous; written
    rows,  # [KERNEL, images, CHANNELS, height + KERNEL - 1 - 2 margin, width], of store_sums
    x, x_n, x_c, x_h, x_w,  # alpha x is added, where there is an x
    images, height, width,
    margin,  # rows of f before the first and behind the last one that all taps of some position see
    alpha,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(height * width, BLOCK)
    plane = tl.program_id(0) // blocks
    at = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < height * width
    h, w = (at // width).to(tl.int64), at % width
    total = tl.zeros((BLOCK,), tl.float32)
    if x is not None:
        x += (plane // CHANNELS).to(tl.int64) * x_n + (plane % CHANNELS).to(tl.int64) * x_c
        total = alpha * tl.load(x + h * x_h + w * x_w, mask=inside, other=0.0)
    all_rows = height + KERNEL - 1 - 2 * margin
    for i in tl.static_range(KERNEL):
        line = h + (KERNEL - 1 - i) - margin
        plane_of_tap = (tl.full((), i, tl.int64) * images * CHANNELS + plane) * all_rows
        there = inside & (line >= 0) & (line < all_rows)
        total += tl.load(rows + (plane_of_tap + line) * width + w, mask=there, other=0.0)
    tl.store(f + plane.to(tl.int64) * height * width + at, total, mask=inside)


def sweep(
    x: Tensor,  # [N, C, H, W] float32, any strides
    v: Tensor | None,  # the same
    filters: Tensor,  # [n, C, k, k] float32
    core: Tensor,  # [G, n] float32, as all that follows
    bias: Tensor,  # [1 or N, G]
    head: Tensor | None,  # [n]
    gate_head: Tensor,  # [G], or [1] where the gates compete
    gate_unit: Tensor,  # [1]: power of two that brings the largest gate_head to [1, 2)
    beta: float,
    alpha: float,
    competing: bool,
    precision: str,
    with_value: bool,
    arch: int = 0,  # as in the launch table
    kept: Sequence[Tensor | None] = (None, None, None),  # `sent`, `turned`, `shares`; written
    border: Sequence[Tensor] | None = None,  # mirrored rows and columns, weights of rows and columns; None: zeros
) -> tuple[Tensor | None, Tensor]:
    """(psi without alpha/2 |x|^2 (N,) or None, f (N, C, H, W), or H v where there is a v), on x's current stream.

    With a mirrored border f, or H v, is without alpha, and that of the continued image: (N, C, H + 2k - 2, W + 2k - 2).
    """
    batch, channels, height, width = x.shape
    units, gates, kernel = len(filters), len(core), filters.shape[-1]
    beyond = 0 if border is None else kernel - 1
    tall, wide = height + 2 * beyond, width + 2 * beyond
    f = torch.empty(batch, channels, tall, wide, dtype=torch.float32, device=x.device)
    all_rows = height + kernel - 1
    tile = default_tile(units, precision, arch, v is not None, kept[0] is not None, border is not None)
    core_scale, gain = (HALF_SCALE, HALF_GAIN) if precision == "fp16" else (1.0, 1.0)
    shape = constants(channels, kernel, units, gates, precision, gain, tile) | {"COMPETING": competing}
    tiles = -(-wide // (shape["BM"] - kernel + 1))
    psi = torch.empty(batch, all_rows, tiles, dtype=torch.float32, device=x.device) if with_value else None
    if not x.numel():
        return None if psi is None else psi.sum((1, 2)), f
    storage = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    atoms = x.new_zeros(shape["TAPS"] // shape["SIDE"], shape["SIDE"], shape["UNITS_BLOCK"], dtype=storage)
    by_tap = filters.permute(2, 1, 3, 0).flatten(0, 1)  # [(i, c), j, n]
    atoms[: kernel * channels, :kernel, :units] = by_tap
    core = (core * core_scale).to(storage)
    most = max(1, ROW_BYTES // (4 * kernel * channels * all_rows * wide))
    for first in range(0, batch, most):
        some = slice(first, first + most)
        part, direction = x[some], None if v is None else v[some]
        last = part if direction is None else direction
        factors = [None if t is None else t[some] for t in kept]
        rows = torch.empty(kernel, len(part), channels, all_rows, wide, dtype=torch.float32, device=x.device)
        added = (last, *last.stride()) if border is None else (None, 0, 0, 0, 0)
        with device_of(x):
            frame_kernel[(len(part) * all_rows * tiles,)](
                rows, *factors, None if psi is None else psi[some], part, *part.stride(),
                direction, *last.stride(), atoms, core,
                bias if len(bias) == 1 else bias[some], head, gate_head, gate_unit, *(border or (None,) * 4),
                height, width, tiles, 0 if len(bias) == 1 else gates, float(beta), float(core_scale),
                **shape, num_warps=tile[-1], num_stages=1,
            )  # fmt: skip
            fold_kernel[(len(part) * channels * -(-tall * wide // BLOCK),)](
                f[some], rows, *added, len(part), tall, wide, beyond, float(alpha),
                CHANNELS=channels, KERNEL=kernel, BLOCK=BLOCK,
            )  # fmt: skip
    return None if psi is None else psi.sum((1, 2)), f


def constants(channels: int, kernel: int, units: int, gates: int, precision: str, gain: float, tile) -> dict:
    """The compile-time arguments of `frame_kernel` but COMPETING, and of `explicit_kernel`."""
    positions, taps_block, block, _ = tile
    side = power_of_two(kernel)
    taps = kernel * channels * side
    taps_block = min(max(MIN_SIDE, power_of_two(taps)), max(side, taps_block))
    return {
        "CHANNELS": channels, "KERNEL": kernel, "SIDE": side,
        "TAPS": -(-taps // taps_block) * taps_block, "BT": taps_block, "UNITS": units,
        "UNITS_BLOCK": max(MIN_SIDE, power_of_two(units)), "GATES": gates,
        "BG": min(block, max(MIN_SIDE, power_of_two(gates))), "BM": positions,
        "STORAGE": TRITON_TYPE[precision], "PRECISION": DOT_PRECISION[precision], "GAIN": gain,
    }  # fmt: skip


def default_tile(
    units: int, precision: str, arch: int, hessian: bool = False, keeps: bool = False, mirrored: bool = False
) -> tuple[int, int, int, int]:
    """(BM, BT, BG, warps) that compile without spills, for the units of the models that ship; never timed.

    `keeps`: with what gradients of the weights need, which is held in registers for longer.
    """
    if keeps and precision != "fp32":
        return 32, 64 if arch >= 100 and units <= 64 and precision != "tf32" else 32, 32, 8
    if keeps and units > 64:
        return 16, 16, 16, 8
    # the tables of mirrored pixels leave no registers for 32 taps at a time
    if mirrored and not keeps and (arch >= 100 or (hessian and arch < 90 and precision == "tf32")):
        if precision != "fp32":
            return 32, 16, 32, 4
    # below 64 positions products are mma.sync's: others do not compile there
    if arch >= 100 and precision != "fp32":
        return 32, 32, 32, 4
    if hessian:
        if precision == "fp32" and units > 64:
            return 16, 16, 16, 4
        return (64, 32, 32, 8) if precision != "fp32" and units <= 64 and arch == 90 else (32, 32, 32, 4)
    if precision != "fp32":
        return (128, 32, 32, 8) if units <= 64 else (64, 32, 32, 8)
    # three TF32 products hold both operands twice
    if units <= 64:
        return (64, 32, 32, 8) if arch == 90 else (32, 32, 32, 4)
    return 16, 16, 32, 4
