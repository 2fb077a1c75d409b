"""R, grad R and Hessian products of an explicit prior (ops/explicit/potentials.py): all on chip but sums of rows.

    c_p = A (patch p of E x),   u = U c^2,   g = a / sqrt(b + u) - e / sqrt(max(u, e^2))
    R   = 1/k^2 sum_p w_p sum_g P(u),        grad R = 1/k^2 E^T overlap-add of w_p A^T (c U^T g)
    H v = the same of  dc (U^T g) - c U^T (g3 U (c dc)),   dc = A v,   g3 = a (b + u)^(-3/2) - e u^(-3/2) where u > e^2

As kernels/triton/frame.py, whose pieces these are, with mirrored pixels where that one has zeros: the continued image
E x is read by the tables of its mirrored rows and columns and stored nowhere. What goes back to the pixels beyond the
border is summed there, in an image of H + 2k - 2 rows, whose margins `Patches.folded` adds to those they repeat.
A sample has energies and potentials of its own, or all share them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import within_half
from .frame import BLOCK, HALF_GAIN, HALF_SCALE, ROW_BYTES, constants, fold_kernel, load_patches, store_sums
from .tiles import device_of, dot_wide


@triton.jit
def explicit_kernel(
    rows,  # [KERNEL, N, CHANNELS, height + KERNEL - 1, width + 2 KERNEL - 2] float32, or None
    sent, turned,  # [N, height + KERNEL - 1, width + KERNEL - 1, UNITS]: w_p times what A^T is multiplied by in
    # grad R, and in H v; None where nobody asks
    value,  # [N, height + KERNEL - 1, tiles] float32, or None
    x, x_n, x_c, x_h, x_w,  # [N, CHANNELS, height, width] float32, and its strides
    v, v_n, v_c, v_h, v_w,  # the same, or None: grad R is wanted, and not H v
    atoms,  # [TAPS, UNITS_BLOCK]: A by taps (i, c, j), zeros in the rest
    core,  # [N or 1, GATES, UNITS]: U times core_scale
    slope, near, far,  # [N or 1, GATES] float32: a, b, e
    mirrored_rows, mirrored_columns,  # [height + 2 KERNEL - 2], [width + 2 KERNEL - 2] int32
    row_weights, column_weights,  # [height + KERNEL - 1], [width + KERNEL - 1] float32: w_p / k^2 is their product
    height, width, tiles,
    own,  # 1, or 0 where all samples share the potentials
    core_scale,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, SIDE: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    UNITS: tl.constexpr, UNITS_BLOCK: tl.constexpr, GATES: tl.constexpr, BG: tl.constexpr, BM: tl.constexpr,
    STORAGE: tl.constexpr, PRECISION: tl.constexpr, GAIN: tl.constexpr,
    HOIST: tl.constexpr,  # whether what all groups share may be held in registers from before their loop
):  # fmt: skip
    STEP: tl.constexpr = BM - KERNEL + 1
    program, all_rows = tl.program_id(0), height + KERNEL - 1
    tile = program % tiles
    row = (program // tiles) % all_rows
    image = program // (tiles * all_rows)
    m, n = tl.arange(0, BM), tl.arange(0, UNITS_BLOCK)
    column = tile * STEP + m  # of the continued image
    q = column - (KERNEL - 1)  # position
    there = (q >= 0) & (q < width + KERNEL - 1)

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
    operand = coefficients * coefficients * GAIN
    tangent = coefficients * dc * GAIN
    if STORAGE == tl.float16:
        operand = within_half(operand)
        tangent = tl.minimum(tl.maximum(tangent, -65504.0), 65504.0)

    back = tl.zeros((BM, UNITS_BLOCK), tl.float32)  # U^T g
    second = tl.zeros((BM, UNITS_BLOCK), tl.float32)  # U^T (g3 U (c dc))
    total = tl.zeros((BM,), tl.float32)  # sum of P(u)
    potentials = image.to(tl.int64) * own * GATES
    core, slope, near, far = core + potentials * UNITS, slope + potentials, near + potentials, far + potentials
    for g0 in tl.range(0, GATES, BG, num_stages=1, disable_licm=not HOIST):
        g = g0 + tl.arange(0, BG)
        u_tile = tl.load(
            core + g[:, None] * UNITS + n[None, :], mask=(g < GATES)[:, None] & (n < UNITS)[None, :], other=0.0
        )
        # ones where there is no group: its energies are 0, and g and P with them
        a = tl.load(slope + g, mask=g < GATES, other=1.0)[None, :]
        b = tl.load(near + g, mask=g < GATES, other=1.0)[None, :]
        e = tl.load(far + g, mask=g < GATES, other=1.0)[None, :]
        u = dot_wide(operand, tl.trans(u_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
        u = u * (1 / (GAIN * core_scale))
        outer = tl.maximum(u, e * e)
        inverse_near, inverse_far = tl.rsqrt(b + u), tl.rsqrt(outer)
        gate = a * inverse_near - e * inverse_far
        back = dot_wide(gate, u_tile, back, STORAGE, PRECISION)
        if value is not None:  # without the difference of roots, and Huber's function of sqrt(u)
            rising = a * u / ((b + u) * inverse_near + tl.sqrt(b))
            total += tl.sum(rising - (e * outer * inverse_far - (outer - u + e * e) / 2), 1)
        if v is not None:
            third = a * inverse_near * inverse_near * inverse_near
            third -= tl.where(u > e * e, e * inverse_far * inverse_far * inverse_far, 0.0)
            du = dot_wide(tangent, tl.trans(u_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
            second = dot_wide(third * du * (1 / (GAIN * core_scale)), u_tile, second, STORAGE, PRECISION)
    weight = tl.load(row_weights + row) * tl.load(column_weights + q, mask=there, other=0.0)
    if v is None:
        product = coefficients * back
    else:
        product = dc * back - coefficients * second
    product *= (weight / core_scale)[:, None]
    alone = m >= KERNEL - 1  # the others are the tile's before
    if rows is not None:
        images = tl.num_programs(0) // (tiles * all_rows)
        store_sums(
            rows, product.to(STORAGE), atoms, image, images, row, all_rows, column, width + 2 * KERNEL - 2,
            CHANNELS, KERNEL, SIDE, TAPS, BT, UNITS_BLOCK, BM, PRECISION,
        )  # fmt: skip
    if sent is not None:
        position = (image.to(tl.int64) * all_rows + row) * (width + KERNEL - 1) + q
        at, kept = position[:, None] * UNITS + n[None, :], (alone & there)[:, None] & (n < UNITS)[None, :]
        if turned is not None:
            tl.store(turned + at, product.to(STORAGE), mask=kept)
            product = coefficients * back * (weight / core_scale)[:, None]
        tl.store(sent + at, product.to(STORAGE), mask=kept)
    if value is not None:
        tl.store(value + program, tl.sum(tl.where(alone, total * weight, 0.0), 0))


def sweep(
    x: Tensor,  # [N, C, H, W] float32, any strides
    v: Tensor | None,  # the same
    atoms: Tensor,  # [n, C k k] float32, as all that follows
    energies: Tensor,  # [N or 1, G, n]
    slope: Tensor,  # [N or 1, G], as near and far
    near: Tensor,
    far: Tensor,
    kernel: int,
    mirrored: tuple[Tensor, Tensor],  # rows [H + 2k - 2], columns [W + 2k - 2], int32
    weights: tuple[Tensor, Tensor],  # rows [H + k - 1], columns [W + k - 1]; their products are w_p / k^2
    precision: str,
    with_value: bool,
    arch: int = 0,  # as in the launch table
    kept: tuple[Tensor, Tensor | None] | None = None,  # `sent` and, where there is a v, `turned`; written
) -> tuple[Tensor | None, Tensor | None]:
    """(R (N,) float64 or None, grad R or H v of the continued image (N, C, H + 2k - 2, W + 2k - 2)), on x's stream.

    With `kept`, that is all that is made, and the second one is None.
    """
    batch, channels, height, width = x.shape
    units, gates = energies.shape[2], energies.shape[1]
    all_rows, wide, tall = height + kernel - 1, width + 2 * kernel - 2, height + 2 * kernel - 2
    tile = default_tile(units, kernel, precision, arch, v is not None, kept is not None)
    core_scale, gain = (HALF_SCALE, HALF_GAIN) if precision == "fp16" else (1.0, 1.0)
    shape = constants(channels, kernel, units, gates, precision, gain, tile)
    shape["HOIST"] = hoists(units, kernel, arch, v is not None)
    tiles = -(-wide // (shape["BM"] - kernel + 1))
    out = None if kept else torch.empty(batch, channels, tall, wide, dtype=torch.float32, device=x.device)
    value = torch.empty(batch, all_rows, tiles, dtype=torch.float32, device=x.device) if with_value else None
    if x.numel():
        table = x.new_zeros(shape["TAPS"] // shape["SIDE"], shape["SIDE"], shape["UNITS_BLOCK"])
        by_tap = atoms.view(units, channels, kernel, kernel).permute(2, 1, 3, 0)
        table[: kernel * channels, :kernel, :units] = by_tap.flatten(0, 1)
        storage = torch.float16 if precision == "fp16" else torch.float32
        table, core = table.to(storage), (energies * core_scale).to(storage)
        own = int(len(core) > 1)
        most = max(1, ROW_BYTES // (4 * kernel * channels * all_rows * wide))
        for first in range(0, batch, most):
            some = slice(first, first + most)
            part, direction = x[some], None if v is None else v[some]
            potentials = [t[some] if own else t for t in (core, slope, near, far)]
            sums = kernel, len(part), channels, all_rows, wide
            rows = None if kept else torch.empty(sums, dtype=torch.float32, device=x.device)
            sent, turned = (None if t is None else t[some] for t in kept or (None, None))
            with device_of(x):
                explicit_kernel[(len(part) * all_rows * tiles,)](
                    rows, sent, turned, None if value is None else value[some], part, *part.stride(),
                    direction, *(part if direction is None else direction).stride(), table,
                    *potentials, *mirrored, *weights, height, width, tiles, own, float(core_scale),
                    **shape, num_warps=tile[-1], num_stages=1,
                )  # fmt: skip
                if out is None:
                    continue
                fold_kernel[(len(part) * channels * -(-tall * wide // BLOCK),)](
                    out[some], rows, None, 0, 0, 0, 0, len(part), tall, wide, kernel - 1, 0.0,
                    CHANNELS=channels, KERNEL=kernel, BLOCK=BLOCK,
                )  # fmt: skip
    return None if value is None else value.double().sum((1, 2)), out


def default_tile(
    units: int, kernel: int, precision: str, arch: int, hessian: bool = False, keeps: bool = False
) -> tuple[int, int, int, int]:
    """(BM, BT, BG, warps) that compile without spills; never timed.

    `keeps`: what gradients in the potentials need is stored, and not the sums of rows.
    """
    if precision == "fp16":
        return (32, 32, 32, 4) if hessian else (64, 32, 32, 8)
    if units <= 64:
        return 32, 32, 16, 4
    if kernel <= 8:
        return 16, 16, 16, 8 if hessian else 4
    # a tile of 16 positions would have few pixels to itself
    if not hessian:
        return 32, 64, 32, 8
    return (32, 16, 16, 8) if arch == 90 or (keeps and arch == 80) else (16, 16, 16, 8)


def hoists(units: int, kernel: int, arch: int, hessian: bool) -> bool:
    """Whether the loop over groups leaves registers for what does not change in it."""
    return not (hessian and units > 64 and kernel > 8 and arch == 90)
