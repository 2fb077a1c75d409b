"""Gradients of a frame's or mixture's potential in its parameters: of <v, f> + s psi, summed over positions.

With c, z, u, g, dc, dz = 2 c dc, du and dg of frame.py, e what A^T is multiplied by in f and delta in H v:

    dA = delta x_p^T + e (v + s x)_p^T
    dW = g dz^T + G z^T,   db = G,   dh = dz + s z,     G = dg + s g
    dw = sigmoid(beta u) du + s softplus(u), or where the gates compete  p . du + s log sum exp(beta u) / beta

all times w_p where the border is mirrored, which e and delta have in them.

Of a gate, dW, db and dw need of the others the soft maximum alone, which frame.py's kernel leaves behind: a program
has BG gates (positions.py) and computes all but the sums from x. Slots are added in order, in float64: the same bits
every time, without atomics.

e and delta go through memory from the kernel that makes H v, some images at a time, and dA is the product of
gradient.py; why, explicit_gradient.py says.

    traffic   8 C of x and v per pixel for every block of gates, 12 of the soft maximum; 16 n per position for dA
    work      2 (2 taps n blocks + 4 n G) FLOP and G special functions per position, and 4 taps n for dA
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import frame
from .activations import LOG2E, softplus
from .frame import HALF_SCALE
from .gradient import gradient
from .launch import Geometry, Key, config
from .positions import analysed, constants, continued, in_range, parts_of, place, table_of
from .tiles import device_of, dot_wide

STORAGE = {"fp16": torch.float16, "bf16": torch.bfloat16}
KEPT_BYTES = 1 << 28  # of e, and of delta: more images go in several launches


@triton.jit
def frame_gradient_kernel(
    of_core,  # [images, parts, GATES, UNITS] float32
    of_gates,  # [images, parts, 2, GATES] float32: of b and, where the gates do not compete, of w
    of_head,  # [images, parts, UNITS] float32, or None
    x,  # [N, CHANNELS, tall, wide] float32, contiguous: the images with zeros, or mirrored pixels, around them
    v,  # the same, or None
    scale,  # [N] float32, s, or None
    shares,  # [N, 3, positions] float32, as frame_kernel writes them; None where the gates do not compete
    atoms,  # [TAPS, UNITS_BLOCK]: A by taps (i, c, j), zeros in the rest
    core,  # [GATES, UNITS]: W times core_scale
    bias,  # [N or 1, GATES] float32
    gate_head,  # [GATES], or [1] of gates that compete, float32
    row_weights, column_weights,  # [tall - KERNEL + 1], [wide - KERNEL + 1] float32: w_p is their product; or None
    tall, wide, parts, tiles, tiles_per_part, bias_stride, beta, core_scale,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, UNITS: tl.constexpr,
    UNITS_BLOCK: tl.constexpr, GATES: tl.constexpr, BG: tl.constexpr, BM: tl.constexpr,
    STORAGE: tl.constexpr, PRECISION: tl.constexpr, SUMS: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (GATES + BG - 1) // BG
    block, slot = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    image, part = slot // parts, slot % parts
    n, g = tl.arange(0, UNITS_BLOCK), block * BG + tl.arange(0, BG)
    known = (g < GATES)[:, None] & (n < UNITS)[None, :]
    b = tl.load(bias + image * bias_stride + g, mask=g < GATES, other=0.0)[None, :]
    if shares is None:
        w = tl.load(gate_head + g, mask=g < GATES, other=0.0)[None, :]
    else:
        w = tl.load(gate_head)
    total = tl.zeros((BG, UNITS_BLOCK), tl.float32)
    sum_bias = tl.zeros((BG,), tl.float32)
    sum_weight = tl.zeros((BG,), tl.float32)
    sum_head = tl.zeros((UNITS_BLOCK,), tl.float32)
    image_at = image.to(tl.int64) * CHANNELS * tall * wide
    x += image_at
    if v is not None:
        v += image_at
    first = part * tiles_per_part
    for tile in tl.range(first, tl.minimum(first + tiles_per_part, tiles), num_stages=1):
        row, q, there = place(tile, tall, wide, KERNEL, BM)
        if row_weights is None:
            exists = tl.where(there, 1.0, 0.0)[:, None]
        else:
            exists = tl.where(there, tl.load(row_weights + row) * tl.load(column_weights + q), 0.0)[:, None]
        c, dc = analysed(
            x, v, row * wide + q, tall, wide, atoms,
            CHANNELS, KERNEL, TAPS, BT, UNITS_BLOCK, BM, STORAGE, PRECISION,
        )  # fmt: skip
        square, tangent = in_range(c * c, 2 * c * dc, STORAGE, GAIN)
        w_tile = tl.load(core + g[:, None] * UNITS + n[None, :], mask=known, other=0.0)
        u = dot_wide(square, tl.trans(w_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
        u = u * (1 / (GAIN * core_scale)) + b
        positions = (tall - KERNEL + 1) * (wide - KERNEL + 1)
        at = image.to(tl.int64) * 3 * positions + row * (wide - KERNEL + 1) + q
        if shares is None:
            odds = 1 + tl.exp2(-u * (beta * LOG2E))
            slope = exists / odds
        else:
            largest, sums = tl.load(shares + at), tl.load(shares + positions + at)
            slope = tl.exp2(u * (beta * LOG2E) - largest[:, None]) * (exists / sums[:, None])
        gate = w * slope
        of_square = tl.zeros((BM, BG), tl.float32)  # G
        if scale is not None:
            s = tl.load(scale + image)
            of_square += s * gate
            sum_head += tl.sum(s * exists * (c * c), 0)
            if shares is None:
                sum_weight += tl.sum(s * exists * softplus(u, beta), 0)
        if v is not None:
            du = dot_wide(tangent, tl.trans(w_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
            du = du * (1 / (GAIN * core_scale))
            if shares is None:
                sum_weight += tl.sum(slope * du, 0)
                of_square += beta * gate * (1 - slope if row_weights is None else 1 - 1 / odds) * du
            else:
                of_square += beta * gate * (du - tl.load(shares + 2 * positions + at)[:, None])
            sum_head += tl.sum(2 * exists * c * dc, 0)
            total = tl.dot(tl.trans(gate), 2 * c * dc, total, input_precision=SUMS)
        sum_bias += tl.sum(of_square, 0)
        total = tl.dot(tl.trans(of_square), c * c, total, input_precision=SUMS)
    slot = slot.to(tl.int64)
    tl.store(of_core + (slot * GATES + g)[:, None] * UNITS + n[None, :], total, mask=known)
    of_gates += slot * 2 * GATES + g
    tl.store(of_gates, sum_bias, mask=g < GATES)
    tl.store(of_gates + GATES, sum_weight, mask=g < GATES)
    if of_head is not None:
        tl.store(of_head + slot * UNITS + n, sum_head, mask=(n < UNITS) & (block == 0))


def gradients(
    x: Tensor,  # [N, C, H, W] float32, any strides
    v: Tensor | None,  # the same
    scale: Tensor | None,  # [N] float32
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
    arch: int = 0,  # as in the launch table
    processors: int = 1,
    border: Sequence[Tensor] | None = None,  # mirrored rows and columns, weights of rows and columns; None: zeros
) -> tuple[Tensor, list[Tensor]]:
    """(gx, of A, W, b [N, G], w, and h where there is one) of the gradient of <v, f> + sum of s psi, on x's stream.

    With a mirrored border gx is without alpha, and that of the continued image, as frame.sweep has f.
    """
    batch, channels, height, width = x.shape
    units, kernel = len(filters), filters.shape[-1]
    beyond = 0 if border is None else kernel - 1
    storage = STORAGE.get(precision, torch.float32)
    gx = torch.empty(batch, channels, height + 2 * beyond, width + 2 * beyond, dtype=torch.float32, device=x.device)
    of_bias = torch.zeros(batch, len(core), dtype=torch.float64, device=x.device)
    parameters = filters, core, gate_head, *([] if head is None else [head])
    found = [torch.zeros(t.shape, dtype=torch.float64, device=x.device) for t in parameters]
    positions = height + kernel - 1, width + kernel - 1
    most = max(1, KEPT_BYTES // (storage.itemsize * math.prod(positions) * units))
    for first in range(0, batch if x.numel() else 0, most):
        some = slice(first, first + most)
        part, direction = x[some], None if v is None else v[some]
        s = None if scale is None else scale[some, None, None, None]
        network = filters, core, bias if len(bias) == 1 else bias[some], head, gate_head, gate_unit, beta, alpha
        rest = network, competing, precision, False, arch
        factors = [
            torch.empty(len(part), *positions, units, dtype=storage, device=x.device) for t in (x, v) if t is not None
        ]
        shape = len(part), 3, *positions
        shares = torch.empty(shape, dtype=torch.float32, device=x.device) if competing else None
        sent, turned = (*factors, None)[:2]
        product = _swept(part, direction, *rest, kept=(sent, turned, shares), border=border)
        if s is None:
            gx[some] = product
        elif v is None:
            gx[some] = s * product
        else:
            gx[some] = product + s * _swept(part, None, *rest, border=border)
        mirrored, weights = (None, None) if border is None else (border[:2], border[2:])
        at, along = (None if t is None else continued(t, kernel, mirrored) for t in (part, direction))
        meets = along if s is None else s * at if along is None else along + s * at  # what e does, in dA
        pairs = [(sent, meets)] if turned is None else [(turned, at), (sent, meets)]
        tile = config(Key("gradient_image", channels * kernel**2, units, precision, arch))
        of_filters = gradient(pairs, Geometry(kernel), tile, precision, image=True, processors=processors)
        of_core, of_bias[some], of_weight, of_head = _of_gates(
            at, along, s, shares, *network[:3], gate_head, weights, beta, head is not None, precision, processors
        )
        if shares is not None:
            of_weight = _of_soft_maximum(shares, along is not None, s, weights, beta)
        sums = of_filters.permute(3, 2, 0, 1), of_core, of_weight, of_head  # the first from [k, k, C, n]
        for total, one in zip(found, sums, strict=False):
            total += one
    of_filters, of_core, of_weight, *of_head = (t.float() for t in found)
    return gx, [of_filters, of_core, of_bias.float(), of_weight, *of_head]


def _swept(x, v, network, *rest, **options) -> Tensor:
    """f, or H v."""
    return frame.sweep(x, v, *network, *rest, **options)[1]


def _of_gates(
    x, v, scale, shares, filters, core, bias, gate_head, weights, beta, with_head, precision, processors
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dW [G, n], db of every image [N, G], dw [G], dh [n] or None, float64; from continued images."""
    gates, units = core.shape
    tile = default_tile(units, precision, weights is not None)
    shape = constants(x.shape[1], filters.shape[-1], units, gates, precision, tile)
    core_scale, storage = HALF_SCALE if precision == "fp16" else 1.0, STORAGE.get(precision, torch.float32)
    blocks, tiles, parts, per_part = parts_of(x, shape, processors)
    sizes = (gates, units), (2, gates), (units,)
    slots = [torch.empty(len(x), parts, *size, dtype=torch.float32, device=x.device) for size in sizes]
    of_head = slots[2] if with_head else None
    with device_of(x):
        frame_gradient_kernel[(len(x) * parts * blocks,)](
            *slots[:2], of_head, x, v, scale, shares, table_of(filters, shape, storage),
            (core * core_scale).to(storage), bias, gate_head, *(weights or (None, None)), *x.shape[2:],
            parts, tiles, per_part, 0 if len(bias) == 1 else gates, float(beta), float(core_scale),
            **shape, num_warps=tile[-1], num_stages=1,
        )  # fmt: skip
    of_bias, of_weight = slots[1].sum(1, dtype=torch.float64).unbind(1)
    of_head = None if of_head is None else of_head.sum((0, 1), dtype=torch.float64)
    return slots[0].sum((0, 1), dtype=torch.float64), of_bias, of_weight.sum(0), of_head


def _of_soft_maximum(shares: Tensor, with_tangent: bool, scale: Tensor | None, weights, beta: float) -> Tensor:
    """dw of gates that compete, float64: p . du + s log sum exp(beta u) / beta."""
    parts, counts = [], 1.0 if weights is None else weights[0][:, None] * weights[1]
    if with_tangent:
        parts.append((shares[:, 2] * counts).sum(dtype=torch.float64))
    if scale is not None:
        energies = ((shares[:, 0] + shares[:, 1].log2()) * scale[:, 0] * counts).sum(dtype=torch.float64)
        parts.append(energies * (math.log(2) / beta))
    return sum(parts[1:], parts[0])


def default_tile(units: int, precision: str, mirrored: bool = False) -> tuple[int, int, int, int]:
    """(BM, BT, BG, warps) that compile without spills, for the units of the models that ship; never timed."""
    if units <= 64:
        return 32, 32, 32, 8 if precision == "fp32" or mirrored else 4
    return (16, 32, 32, 8) if precision == "fp32" else (32, 32, 32, 8)
