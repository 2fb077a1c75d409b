"""Gradients of an explicit prior in its atoms and potentials.

With c, u, g, g3, dc and w_p of explicit.py (w_p with its 1 / k^2), t = w U (c dc), and e = w c (U^T g):

    <v, grad R>         dA = delta x_p^T + e v_p^T,     delta = w dc (U^T g) - c (U^T (g3 t))
                        dU = w g (c dc)^T - g3 t (c^2)^T / 2
                        da = t (b + u)^(-1/2),   db = -t a/2 (b + u)^(-3/2),   de = -t u^(-1/2) where u > e^2
    s R, of a sample    dA = s e x_p^T,   dU = s w g (c^2)^T / 2
                        da = s w r,   db = -s w a r / (2 sqrt(b (b + u))),   de = -s w (sqrt(u) - e) where u > e^2
                        r = sqrt(b + u) - sqrt(b)

summed over positions p. Of a group, dU and the rest need nothing of the other groups: a program has BG of them, goes
through tiles of BM consecutive positions of an image, and keeps its sums in registers:

    patches [BM, taps] -> c, dc [BM, n] -> u, t [BM, BG] -> dU [BG, n], da, db, de [BG]

and writes them to a slot of its own. Slots are added in order, in float64: the same bits every time, without atomics.

dA does need all groups, and its taps x n sums beside c, dc, U^T g and U^T (g3 t) leave no registers in float32's
precision. So e and delta, which explicit.py's kernel has at hand, go through memory, some images at a time, and dA is
the product of gradient.py. By arithmetic that is faster, too, than to compute them at both places: 16 n bytes per
position are 2.8 ms of 64 images of 512^2 on an H200 where n = 49, the products they save 10 ms in float32.

    traffic   8 C of x and v per pixel for every block of groups; 16 n per position for dA
    work      2 (2 taps n blocks + 4 n G) FLOP per position, and as much as a Hessian product and 4 taps n for dA

Sums over positions have float32's digits (three TF32 products) or, where weights have fewer, TF32's.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import explicit
from .frame import HALF_SCALE
from .gradient import gradient
from .launch import Geometry, Key, config
from .positions import analysed, constants, continued, in_range, parts_of, place, table_of
from .tiles import device_of, dot_wide

KEPT_BYTES = 1 << 28  # of e, and of delta: more images go in several launches


@triton.jit
def explicit_gradient_kernel(
    of_core,  # [images, parts, GATES, UNITS] float32
    of_gates,  # [images, parts, 3, GATES] float32: of a, b and e
    x,  # [N, CHANNELS, tall, wide] float32, contiguous: the continued images
    v,  # the same, or None
    scale,  # [N] float32, s, or None
    atoms,  # [TAPS, UNITS_BLOCK]: A by taps (i, c, j), zeros in the rest
    core,  # [N or 1, GATES, UNITS]: U times core_scale
    slope, near, far,  # [N or 1, GATES] float32: a, b, e
    row_weights, column_weights,  # [tall - KERNEL + 1], [wide - KERNEL + 1] float32: w_p is their product
    tall, wide, parts, tiles, tiles_per_part,
    own,  # 1, or 0 where all samples share the potentials
    core_scale,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, UNITS: tl.constexpr,
    UNITS_BLOCK: tl.constexpr, GATES: tl.constexpr, BG: tl.constexpr, BM: tl.constexpr,
    STORAGE: tl.constexpr, PRECISION: tl.constexpr, SUMS: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (GATES + BG - 1) // BG
    block, slot = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    image, part = slot // parts, slot % parts
    n, g = tl.arange(0, UNITS_BLOCK), block * BG + tl.arange(0, BG)
    group = image.to(tl.int64) * own * GATES + g
    known = (g < GATES)[:, None] & (n < UNITS)[None, :]
    a, b, e = of_groups(slope, near, far, group, g, GATES)
    total = tl.zeros((BG, UNITS_BLOCK), tl.float32)
    sum_slope = tl.zeros((BG,), tl.float32)
    sum_near = tl.zeros((BG,), tl.float32)
    sum_far = tl.zeros((BG,), tl.float32)
    image_at = image.to(tl.int64) * CHANNELS * tall * wide
    x += image_at
    if v is not None:
        v += image_at
    first = part * tiles_per_part
    for tile in tl.range(first, tl.minimum(first + tiles_per_part, tiles), num_stages=1):
        row, q, there = place(tile, tall, wide, KERNEL, BM)
        weight = tl.where(there, tl.load(row_weights + row) * tl.load(column_weights + q), 0.0)
        at = row * wide + q
        c, dc = analysed(
            x, v, at, tall, wide, atoms, CHANNELS, KERNEL, TAPS, BT, UNITS_BLOCK, BM, STORAGE, PRECISION
        )  # fmt: skip
        square, tangent = in_range(c * c, c * dc, STORAGE, GAIN)
        u_tile = tl.load(core + group[:, None] * UNITS + n[None, :], mask=known, other=0.0)
        u = dot_wide(square, tl.trans(u_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
        u = u * (1 / (GAIN * core_scale))
        inverse_near, bent, gate = bends(u, a, b, e)
        gate *= weight[:, None]
        of_square = tl.zeros((BM, BG), tl.float32)
        if scale is not None:
            share = (tl.load(scale + image) * weight)[:, None]
            of_square += 0.5 * tl.load(scale + image) * gate
            rise = u / ((b + u) * inverse_near + tl.sqrt(b))  # without the difference of roots
            sum_slope += tl.sum(share * rise, 0)
            sum_near -= 0.5 * tl.sum(share * a * rise * inverse_near * tl.rsqrt(b), 0)
            outer = tl.maximum(u, e * e)
            sum_far -= tl.sum(share * (outer - e * e) / (tl.sqrt(outer) + e), 0)
        if v is not None:
            t = dot_wide(tangent, tl.trans(u_tile), tl.zeros((BM, BG), tl.float32), STORAGE, PRECISION)
            t = t * (1 / (GAIN * core_scale)) * weight[:, None]
            steep = a * inverse_near * inverse_near * inverse_near
            of_square -= 0.5 * t * (steep - e * bent * bent * bent)
            total = tl.dot(tl.trans(gate), c * dc, total, input_precision=SUMS)
            sum_slope += tl.sum(t * inverse_near, 0)
            sum_near -= 0.5 * tl.sum(t * steep, 0)
            sum_far -= tl.sum(t * bent, 0)
        total = tl.dot(tl.trans(of_square), c * c, total, input_precision=SUMS)
    slot = slot.to(tl.int64)
    tl.store(of_core + (slot * GATES + g)[:, None] * UNITS + n[None, :], total, mask=known)
    of_gates += slot * 3 * GATES + g
    tl.store(of_gates, sum_slope, mask=g < GATES)
    tl.store(of_gates + GATES, sum_near, mask=g < GATES)
    tl.store(of_gates + 2 * GATES, sum_far, mask=g < GATES)


@triton.jit
def of_groups(slope, near, far, group, g, GATES: tl.constexpr):
    """a, b and e, [1, BG]; ones where there is no group: its energies are 0, and all that it sends back with them."""
    a = tl.load(slope + group, mask=g < GATES, other=1.0)[None, :]
    b = tl.load(near + group, mask=g < GATES, other=1.0)[None, :]
    e = tl.load(far + group, mask=g < GATES, other=1.0)[None, :]
    return a, b, e


@triton.jit
def bends(u, a, b, e):
    """(b + u)^(-1/2); u^(-1/2) where u > e^2, else 0; and g."""
    inverse_near, inverse_far = tl.rsqrt(b + u), tl.rsqrt(tl.maximum(u, e * e))
    return inverse_near, tl.where(u > e * e, inverse_far, 0.0), a * inverse_near - e * inverse_far


def gradients(
    x: Tensor,  # [N, C, H, W] float32, any strides
    v: Tensor | None,  # the same
    scale: Tensor | None,  # [N] float32
    atoms: Tensor,  # [n, C k k] float32, as all that follows
    energies: Tensor,  # [N or 1, G, n]
    slope: Tensor,  # [N or 1, G], as near and far
    near: Tensor,
    far: Tensor,
    kernel: int,
    mirrored: tuple[Tensor, Tensor],  # rows [H + 2k - 2], columns [W + 2k - 2], int32
    weights: tuple[Tensor, Tensor],  # rows [H + k - 1], columns [W + k - 1]; their products are w_p / k^2
    precision: str,
    arch: int = 0,  # as in the launch table
    processors: int = 1,
) -> tuple[Tensor, ...]:
    """The gradient of <v, grad R> + sum of s R in atoms, energies, a, b and e, shaped as they are; on x's stream."""
    batch, channels, height, width = x.shape
    units, own = energies.shape[2], len(energies) > 1
    storage = torch.float16 if precision == "fp16" else torch.float32
    found = [torch.zeros(t.shape, dtype=torch.float64, device=x.device) for t in (atoms, energies, slope, near, far)]
    positions = (height + kernel - 1, width + kernel - 1, units)
    most = max(1, KEPT_BYTES // (storage.itemsize * math.prod(positions)))
    for first in range(0, batch if x.numel() else 0, most):
        some = slice(first, first + most)
        part, direction = x[some], None if v is None else v[some]
        s = None if scale is None else scale[some]
        potentials = [t[some] if own else t for t in (energies, slope, near, far)]
        kept = [torch.empty(len(part), *positions, dtype=storage, device=x.device) for t in (x, v) if t is not None]
        sent, turned = (*kept, None)[:2]
        explicit.sweep(
            part, direction, atoms, *potentials, kernel, mirrored, weights, precision, False, arch, (sent, turned)
        )
        at, along = (None if t is None else continued(t, kernel, mirrored) for t in (part, direction))
        meets = along if s is None else s[:, None, None, None] * at  # what e does, in dA
        if s is not None and along is not None:
            meets = meets + along
        pairs = [(sent, meets)] if turned is None else [(turned, at), (sent, meets)]
        tile = config(Key("gradient_image", channels * kernel**2, units, precision, arch))
        of_atoms = gradient(pairs, Geometry(kernel), tile, precision, image=True, processors=processors)
        found[0] += of_atoms.permute(3, 2, 0, 1).reshape(atoms.shape)  # from [k, k, C, n]
        of_groups = _of_groups(at, along, s, atoms, *potentials, kernel, weights, precision, arch, processors)
        for total, sums in zip(found[1:], of_groups, strict=True):
            total[some if own else slice(None)] += sums if own else sums.sum(0, keepdim=True)
    return tuple(t.float() for t in found)


def _of_groups(
    x, v, scale, atoms, energies, slope, near, far, kernel, weights, precision, arch, processors
) -> tuple[Tensor, ...]:  # fmt: skip
    """dU [N, G, n], da, db and de [N, G] of every sample, float64; from the continued images."""
    batch, channels, tall, wide = x.shape
    units, gates = energies.shape[2], energies.shape[1]
    tile = default_tile(units, precision)
    shape = constants(channels, kernel, units, gates, precision, tile)
    core_scale = HALF_SCALE if precision == "fp16" else 1.0
    storage = torch.float16 if precision == "fp16" else torch.float32
    table = table_of(atoms.view(-1, channels, kernel, kernel), shape, storage)
    blocks, tiles, parts, per_part = parts_of(x, shape, processors)
    of_core = torch.empty(batch, parts, gates, units, dtype=torch.float32, device=x.device)
    of_gates = torch.empty(batch, parts, 3, gates, dtype=torch.float32, device=x.device)
    with device_of(x):
        explicit_gradient_kernel[(batch * parts * blocks,)](
            of_core, of_gates, x, v, scale, table, (energies * core_scale).to(storage), slope, near, far, *weights,
            tall, wide, parts, tiles, per_part, int(len(energies) > 1), float(core_scale),
            **shape, num_warps=tile[-1], num_stages=1,
        )  # fmt: skip
    return of_core.sum(1, dtype=torch.float64), *of_gates.sum(1, dtype=torch.float64).unbind(1)


def default_tile(units: int, precision: str) -> tuple[int, int, int, int]:
    """(BM, BT, BG, warps) that compile without spills; never timed."""
    if units <= 64:
        return 32, 32, 32, 4
    return (16, 32, 32, 8) if precision == "fp32" else (32, 32, 32, 8)
