"""An explicit prior on a GPU: R and its derivatives by kernels/triton/explicit.py and explicit_gradient.py."""

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....algebra.patches import folded
from . import device
from .device import launchers
from .fused import MOST_UNITS
from .layouts import mirrored_axis

if TYPE_CHECKING:
    from ...explicit.level import Level
    from ...explicit.potentials import Potentials

MOST_SIDE = 15  # a tile's positions must see more pixels than one patch
name = "triton"
must_be_checked = device.is_unproven


def refusal(level: "Level", x: Tensor) -> str | None:
    """Why this kernel does not run such a call, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; torch brings it on Linux with CUDA"
    if level.ndim != 2:
        return "volumes are not covered"
    if level.atoms > MOST_UNITS or level.kernel > MOST_SIDE:
        return f"patches of {level.channels} x {level.kernel}^2 pixels are more than a block's registers were made for"
    return device.refusal(x, "fp32")


def run(
    pot: "Potentials", x: Tensor, v: Tensor | None, k: int, with_value: bool, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(R(x) (N,) float64, or zeros, grad R(x)); the second one is the Hessian times v where v is given."""
    atoms, *potentials = (t.detach().contiguous() for t in pot.tensors()[:5])
    mirrored, weights = _tables(x.shape[2], x.shape[3], k, x.device)
    value, result = launchers().explicit.sweep(
        x, v, atoms, *potentials, k, mirrored, weights, precision, with_value, device.facts(x.device)[0]
    )
    result = folded(result, k)
    return x.new_zeros(len(x), dtype=torch.float64) if value is None else value, result


def gradients(
    pot: "Potentials", x: Tensor, v: Tensor | None, scale: Tensor | None, k: int, precision: str = "fp32"
) -> tuple[Tensor, ...]:
    """The gradient of  sum over samples of <v, grad R(x)> + scale R(x)  in the tensors of a level; scale (N,)."""
    tensors = [t.detach().contiguous() for t in pot.tensors()[:5]]
    mirrored, weights = _tables(x.shape[2], x.shape[3], k, x.device)
    return launchers().explicit_gradient.gradients(
        x, v, scale, *tensors, k, mirrored, weights, precision, *device.facts(x.device)
    )


def _tables(height: int, width: int, k: int, where: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Mirrored rows and columns; weights of the same, whose product is w_p / k^2."""
    rows, row_weights = mirrored_axis(height, k, where, k**2)
    columns, column_weights = mirrored_axis(width, k, where)
    return (rows, columns), (row_weights, column_weights)
