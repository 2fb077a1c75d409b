"""Explicit priors on the CPU, fused (csrc/cpu/isa/prior.h, prior_gradient.h): only images touch memory. float32."""

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
    if level.ndim != 2:
        return "volumes are not covered"
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"x is {x.dtype} on {x.device}, this kernel takes float32 on CPUs"
    return None


def run(
    pot: "Potentials", x: Tensor, v: Tensor | None, k: int, with_value: bool, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(R(x) (N,) float64, or zeros, grad R(x)); the second one is the Hessian times v where v is given."""
    x, v = x.contiguous(), None if v is None else v.contiguous()
    out = torch.empty_like(x)
    value = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    patches = Patches(x.shape[2:], k, x)
    tensors, geometry = _contiguous(pot), _geometry(patches)
    _cpu.explicit_prior(
        x.data_ptr(), 0 if v is None else v.data_ptr(), value.data_ptr() if with_value else 0, out.data_ptr(),
        **_described(tensors, geometry, x, k),
    )  # fmt: skip
    if with_value:
        constant = (pot.slope * pot.near.sqrt()).double().sum(1)  # [B], of every position
        value -= constant * (geometry[2].double().sum() * geometry[3].double().sum())
    return value, out


def gradients(
    pot: "Potentials", x: Tensor, v: Tensor | None, scale: Tensor | None, k: int, precision: str = "fp32"
) -> tuple[Tensor, ...]:
    """The gradient of  sum over samples of <v, grad R(x)> + scale R(x)  in the tensors of a level.

    The B potentials are those of N / B samples each, one after another.
    """
    x = x.contiguous()
    tensors, geometry = _contiguous(pot), _geometry(Patches(x.shape[2:], k, x))
    total = tuple(torch.zeros_like(t) for t in tensors)
    for given in ((v, None), (None, scale)):  # one kernel each
        given = [None if t is None else t.to(x).contiguous() for t in given]
        if all(t is None for t in given):
            continue
        found = [torch.empty_like(t) for t in tensors]
        _cpu.explicit_prior_gradient(
            x.data_ptr(), *(0 if t is None else t.data_ptr() for t in given), *(t.data_ptr() for t in found),
            **_described(tensors, geometry, x, k),
        )  # fmt: skip
        for t, part in zip(total, found, strict=True):
            t += part
    return total


def _contiguous(pot: "Potentials") -> list[Tensor]:
    return [t.detach().contiguous() for t in pot.tensors()[:5]]


def _geometry(patches: Patches) -> tuple[Tensor, ...]:
    """Rows and columns that are repeated, weights of rows, 1 / k^2 included, and of columns."""
    rows, columns = patches.axis_weights
    return *patches.sources, rows / patches.pixels, columns


def _described(tensors: list[Tensor], geometry: tuple[Tensor, ...], x: Tensor, k: int) -> dict[str, int]:
    """What all kernels are told of potentials and patches."""
    samples, channels, height, width = x.shape
    sets, groups, n = tensors[1].shape
    sizes = {"images": samples, "channels": channels, "height": height, "width": width, "kernel": k}
    names = ("atoms", "energies", "slope", "near", "far", "rows", "columns", "row_weights", "column_weights")
    addresses = {name: t.data_ptr() for name, t in zip(names, (*tensors, *geometry), strict=True)}
    return sizes | {"n": n, "groups": groups, "sets": sets} | addresses | {"threads": torch.get_num_threads()}
