"""Sums over all positions of k x k patches, as gradients of what gates share are: tiles of BM consecutive positions.

A tile is BM positions of one image, row by row; none is seen twice, since nothing is added up between neighbours.
Images come continued by k - 1 pixels on every side, so that all patches lie inside. Taps go (i, c, j).

A program has one block of gates, goes through some tiles and keeps its sums in registers; parts_of says how many
programs share an image, a function of shapes and of the device alone.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .activations import within_half
from .frame import HALF_GAIN
from .launch import DOT_PRECISION, MIN_SIDE, power_of_two, splits
from .tiles import TRITON_TYPE, dot_wide


@triton.jit
def place(tile, tall, wide, KERNEL: tl.constexpr, BM: tl.constexpr):
    """(row, column) of consecutive positions, and whether there are such, [BM] each; (0, 0) where there are none."""
    at = tile * BM + tl.arange(0, BM)
    columns = wide - KERNEL + 1
    there = at < columns * (tall - KERNEL + 1)
    at = tl.where(there, at, 0)
    return at // columns, at % columns, there


@triton.jit
def load_taps(x, at, tap, tall, wide, CHANNELS: tl.constexpr, KERNEL: tl.constexpr):
    """Taps (i, c, j) [BT] of the patches at offsets `at` [BM] of an image [CHANNELS, tall, wide], [BM, BT].

    All are inside; taps that there are none of read the first one, and meet zeros in A.
    """
    j, c, i = tap % KERNEL, (tap // KERNEL) % CHANNELS, tap // (KERNEL * CHANNELS)
    offset = tl.where(i < KERNEL, (c * tall + i) * wide + j, 0)
    return tl.load(x + (at[:, None] + offset[None, :]))


@triton.jit
def analysed(
    x, v, at, tall, wide, atoms,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    UNITS_BLOCK: tl.constexpr, BM: tl.constexpr, STORAGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A times the patches of x, and of v if there is one, [BM, UNITS_BLOCK] each."""
    n = tl.arange(0, UNITS_BLOCK)
    c = tl.zeros((BM, UNITS_BLOCK), tl.float32)
    dc = c
    for t0 in tl.range(0, TAPS, BT, num_stages=1):
        tap = t0 + tl.arange(0, BT)
        a_tile = tl.load(atoms + tap[:, None] * UNITS_BLOCK + n[None, :])
        c = dot_wide(load_taps(x, at, tap, tall, wide, CHANNELS, KERNEL), a_tile, c, STORAGE, PRECISION)
        if v is not None:
            dc = dot_wide(load_taps(v, at, tap, tall, wide, CHANNELS, KERNEL), a_tile, dc, STORAGE, PRECISION)
    return c, dc


@triton.jit
def in_range(square, tangent, STORAGE: tl.constexpr, GAIN: tl.constexpr):
    """c^2 and its tangent as gates' weights are multiplied by them."""
    square, tangent = square * GAIN, tangent * GAIN
    if STORAGE == tl.float16:
        square = within_half(square)
        tangent = tl.minimum(tl.maximum(tangent, -65504.0), 65504.0)
    return square, tangent


def constants(channels: int, kernel: int, units: int, gates: int, precision: str, tile) -> dict:
    """The compile-time arguments of kernels that sum over positions; tile: (BM, BT, BG, warps)."""
    positions, taps_block, block, _ = tile
    taps = channels * kernel**2
    taps_block = min(max(MIN_SIDE, power_of_two(taps)), taps_block)
    return {
        "CHANNELS": channels, "KERNEL": kernel, "TAPS": -(-taps // taps_block) * taps_block, "BT": taps_block,
        "UNITS": units,
        "UNITS_BLOCK": max(MIN_SIDE, power_of_two(units)), "GATES": gates,
        "BG": min(block, max(MIN_SIDE, power_of_two(gates))), "BM": positions,
        "STORAGE": TRITON_TYPE[precision], "PRECISION": DOT_PRECISION[precision],
        "SUMS": DOT_PRECISION["fp32" if precision == "fp32" else "tf32"],
        "GAIN": HALF_GAIN if precision == "fp16" else 1.0,
    }  # fmt: skip


def continued(t: Tensor, kernel: int, mirrored: tuple[Tensor, Tensor] | None) -> Tensor:
    """Images (N, C, H, W) with k - 1 zeros around them, or with their mirrored rows and columns; contiguous."""
    if mirrored is None:
        return F.pad(t, (kernel - 1,) * 4).contiguous()
    return t.index_select(2, mirrored[0]).index_select(3, mirrored[1]).contiguous()


def table_of(filters: Tensor, shape: dict, storage: torch.dtype) -> Tensor:
    """A [n, C, k, k] by taps, [TAPS, UNITS_BLOCK], zeros in the rest."""
    table = filters.new_zeros(shape["TAPS"], shape["UNITS_BLOCK"], dtype=storage)
    table[: filters[0].numel(), : len(filters)] = filters.permute(2, 1, 3, 0).flatten(0, 2)
    return table


def parts_of(x: Tensor, shape: dict, processors: int) -> tuple[int, int, int, int]:
    """(blocks of gates, tiles of an image, parts that they are cut into, tiles per part) for continued images x."""
    blocks, kernel = -(-shape["GATES"] // shape["BG"]), shape["KERNEL"]
    tiles = -(-(x.shape[2] - kernel + 1) * (x.shape[3] - kernel + 1) // shape["BM"])
    per_part = -(-tiles // splits(len(x) * blocks, tiles, processors))
    return blocks, tiles, -(-tiles // per_part), per_part
