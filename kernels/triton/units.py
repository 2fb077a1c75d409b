"""Powers of two that keep e and delta within the range of half precision, one per stage, from the weights alone.

    B_L = max w_L;   B_l = max(B_{l+1} max_c sum_o W_{l+1}[o, c], max w_l, 2 max g_l)       |e_l| <= B_l for z <= 1
    E_l = the power of two in (B_l / 2, B_l], times 2^-4

What is stored is e_l / E_l <= 2^5, and delta_l / E_l, which is larger by about beta |A v|: 2^10 of room are left for
it. The published start has e near 1e-9 at its first stage, below half precision's smallest number 6e-8; here it is
stored near 1. Of a squared first stage e / u = 2 (W_2^T e_2 + w) is kept, which is never small beside its bound, but
is multiplied by u when e is needed: there E_1 = the power of two itself, so that u may reach 2^14. All factors are
exact. Nothing is read back: the host never learns them, so a call can be captured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import device_of

WIDE = 4  # floats per unit: 16 bytes, so that every address is as well aligned as the first


@triton.jit
def power_of_two(b):
    """The power of two in (b / 2, b], 1 for zero, infinity and NaN; float32."""
    bits = b.to(tl.int32, bitcast=True) & 0x7F800000
    kept = tl.minimum(tl.maximum(bits, 27 << 23), 227 << 23)
    kept = tl.where((bits == 0) | (bits == 0x7F800000), 127 << 23, kept)
    return kept.to(tl.float32, bitcast=True)


@triton.jit
def units_kernel(
    units, bounds, weight_scale, STAGES: tl.constexpr, SQUARE_FIRST: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    # bounds [3, STAGES]: largest sums of W over its outputs, largest w, largest g; units [3, STAGES, WIDE]
    above = tl.zeros((), tl.float32)
    unit_above = tl.zeros((), tl.float32) + 1.0
    for step in range(STAGES):
        l = STAGES - 1 - step
        head, squared = tl.load(bounds + STAGES + l), tl.load(bounds + 2 * STAGES + l)
        bound = tl.maximum(above, tl.maximum(head, 2.0 * squared))
        room = 1.0 / 16.0
        if SQUARE_FIRST:
            room = tl.where(l == 0, 1.0, room)
        unit = power_of_two(bound) * room
        tl.store(units + l * WIDE, unit)
        if step > 0:
            tl.store(units + (STAGES + l + 1) * WIDE, unit_above / (unit * weight_scale))
        tl.store(units + (2 * STAGES + l) * WIDE, 1.0 / unit)
        above = bound * tl.load(bounds + l)
        unit_above = unit


def units_of(
    cores: list[Tensor | None],  # W_l [H_l, H_{l-1}, k, k]
    heads: list[Tensor | None],  # w_l [H_l]
    squared: list[Tensor | None],  # g_l [H_l]
    weight_scale: float,  # what stored cores are multiplied by
    square_first: bool = False,
) -> Tensor:
    """[3, L, WIDE], [..., 0] of it: E_l; what W_l^T e_l is multiplied by to be in units of E_{l-1}; 1 / E_l."""
    sums = [None if core is None else core.sum((0, 2, 3)) for core in cores]
    present = [t for t in (*sums, *heads, *squared) if t is not None]
    largest = iter(torch._foreach_norm(present, float("inf")))
    zero = present[0].new_zeros(())
    bounds = torch.stack([zero if t is None else next(largest) for t in (*sums, *heads, *squared)])
    units = torch.empty((3, len(cores), WIDE), dtype=torch.float32, device=bounds.device)
    with device_of(units):
        units_kernel[(1,)](
            units, bounds, float(weight_scale), STAGES=len(cores), SQUARE_FIRST=square_first, WIDE=WIDE, num_warps=1
        )
    return units
