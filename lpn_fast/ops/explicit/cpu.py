"""Explicit priors on the CPU, fused (csrc/cpu/isa/prior.h): only images touch memory. float32."""

import importlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...algebra.patches import Patches

if TYPE_CHECKING:
    from .level import Level
    from .potentials import Potentials

try:
    _cpu = importlib.import_module("lpn_fast._cpu")
except ImportError:  # a source tree that was never built
    _cpu = None

name = "cpu"


def refusal(level: "Level", x: Tensor) -> str | None:
    """Why this kernel does not run such a call, or None."""
    if _cpu is None:
        return "the compiled module is not here"
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"x is {x.dtype} on {x.device}, this kernel takes float32 on CPUs"
    return None


def run(
    pot: "Potentials", x: Tensor, v: Tensor | None, k: int, with_value: bool, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(R(x) (N,) float64, or zeros, grad R(x)); the second one is the Hessian times v where v is given."""
    samples, channels, height, width = x.shape
    patches = Patches(height, width, k, x)
    x, v = x.contiguous(), None if v is None else v.contiguous()
    tensors = [t.detach().contiguous() for t in pot.tensors()[:5]]
    out = torch.empty_like(x)
    value = torch.zeros(samples, dtype=torch.float64, device=x.device)
    row_weights = patches.row_weights / k**2
    _cpu.explicit_prior(
        x.data_ptr(), 0 if v is None else v.data_ptr(), value.data_ptr() if with_value else 0, out.data_ptr(),
        samples, channels, height, width, k, tensors[1].shape[1], *(t.data_ptr() for t in tensors),
        len(tensors[1]) == 1, patches.rows.data_ptr(), patches.columns.data_ptr(), row_weights.data_ptr(),
        patches.column_weights.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if with_value:
        constant = (pot.slope * pot.near.sqrt()).double().sum(1)  # [B], of every position
        value -= constant * (row_weights.double().sum() * patches.column_weights.double().sum())
    return value, out
