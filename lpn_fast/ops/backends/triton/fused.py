"""A frame under one stage of gates of single pixels, or a mixture: psi and f by kernels/triton/frame.py."""

from torch import Tensor

from ....algebra.parameters import unpack
from ....algebra.spec import Spec
from ..cpu import frame
from . import device
from .device import launchers
from .layouts import power_of_two

MOST_UNITS, MOST_SIDE = 128, 8  # what a block's registers and rows were compiled for


def covers(spec: Spec) -> bool:
    """Whether that kernel computes networks of `spec`."""
    first = spec.stages[0]
    small = first.width <= MOST_UNITS and first.skip_kernel <= MOST_SIDE
    return small and len(spec.stages) == 2 and frame.supports(spec)


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool, precision: str
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W) float32, P (P,), noise features (N, F) or None."""
    psi, f = _sweep(spec, x, None, packed, features, with_value, precision)
    if psi is not None:
        psi = psi.add_(x.square().sum((1, 2, 3)), alpha=spec.alpha / 2)
    return psi, f


def hvp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor, precision: str) -> Tensor:
    """H v, like x; v (N, C, H, W)."""
    return _sweep(spec, x, v, packed, features, False, precision)[1]


def _sweep(spec: Spec, x, v, packed, features, with_value: bool, precision: str) -> tuple[Tensor | None, Tensor]:
    first, gate = unpack(spec, packed).stages
    bias = gate.bias[None] if gate.noise is None else (features @ gate.noise.T).add_(gate.bias)
    head = None if first.head is None else first.head.contiguous()
    return launchers().frame.sweep(
        x, v, first.skip, gate.core.flatten(1), bias.contiguous(), head, gate.head.contiguous(),
        power_of_two([gate.head]).view(1), spec.beta, spec.alpha, spec.stages[1].competing, precision, with_value,
        device.facts(x.device)[0],
    )  # fmt: skip
