"""How many special functions a device evaluates per second: chains of exp2 that stay in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import device_of

BLOCK, CHAIN, PROGRAMS = 1024, 4096, 4096


@triton.jit
def exponentials_kernel(out, CHAIN: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.arange(0, BLOCK) / BLOCK
    for _ in range(CHAIN):
        x = tl.exp2(-x)
    tl.store(out + tl.program_id(0), tl.sum(x, 0))


def exponentials(like: Tensor, programs: int = PROGRAMS, chain: int = CHAIN) -> int:
    """Evaluate that many, on the device of `like`."""
    out = torch.empty(programs, dtype=torch.float32, device=like.device)
    with device_of(out):
        exponentials_kernel[(programs,)](out, CHAIN=chain, BLOCK=BLOCK)
    return programs * chain * BLOCK
