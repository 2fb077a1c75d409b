"""A frame under one stage of gates of single pixels, or a mixture: all of it by kernels/triton/frame*.py."""

import torch
from torch import Tensor

from ....algebra.parameters import unpack
from ....algebra.patches import folded
from ....algebra.spec import Spec
from ..cpu import frame
from . import device
from .device import launchers
from .layouts import mirrored_axis, power_of_two

MOST_UNITS, MOST_SIDE = 128, 8  # what a block's registers and rows were compiled for


def covers(spec: Spec) -> bool:
    """Whether that kernel computes networks of `spec`."""
    first = spec.stages[0]
    small = first.width <= MOST_UNITS and first.skip_kernel <= MOST_SIDE
    return small and len(spec.stages) == 2 and frame.supports(spec)


def covers_gradients(spec: Spec, precision: str) -> bool:
    """Whether gradients of the weights are those kernels' as well, which keep no tape.

    Not of wide frames in float32: three TF32 products leave registers for tiles of 16 positions, and arithmetic is for
    stages (`python -m bench.gpu.arithmetic --work gradient`).
    """
    return covers(spec) and (precision != "fp32" or spec.stages[0].width <= MOST_UNITS // 2)


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool, precision: str
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W) float32, P (P,), noise features (N, F) or None."""
    psi, f = _sweep(spec, x, None, packed, features, with_value, precision)
    f = _within(spec, f, x)
    if psi is not None:
        psi = psi.add_(x.square().sum((1, 2, 3)), alpha=spec.alpha / 2)
    return psi, f


def hvp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor, precision: str) -> Tensor:
    """H v, like x; v (N, C, H, W)."""
    return _within(spec, _sweep(spec, x, v, packed, features, False, precision)[1], v)


def vjp(
    spec: Spec,
    x: Tensor,
    packed: Tensor,
    features: Tensor | None,
    p: Tensor | None,
    v: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Gradient of sum p psi + <v, f> in x and P; p (N,), v (N, C, H, W), either may be None. Nothing is kept for it."""
    gx, parts = launchers().frame_gradient.gradients(
        x, v, p, *_network(spec, packed, features), precision, *device.facts(x.device), _border(spec, x)
    )
    terms = [t for t in (v, None if p is None else p.view(-1, 1, 1, 1) * x) if t is not None]
    gx = _within(spec, gx, sum(terms[1:], terms[0]))
    of_filters, of_core, of_bias, of_weight, *of_head = parts
    gradient = torch.empty_like(packed, memory_format=torch.contiguous_format)
    first, gate = unpack(spec, gradient).stages
    first.skip.copy_(of_filters)
    gate.core.copy_(of_core.view_as(gate.core))
    gate.head.copy_(of_weight)
    torch.sum(of_bias, 0, out=gate.bias)
    if gate.noise is not None:
        torch.mm(of_bias.T, features, out=gate.noise)
    if first.head is not None:
        first.head.copy_(*of_head)
    return gx, gradient


def _sweep(spec: Spec, x, v, packed, features, with_value: bool, precision: str) -> tuple[Tensor | None, Tensor]:
    network = _network(spec, packed, features)
    arch = device.facts(x.device)[0]
    return launchers().frame.sweep(x, v, *network, precision, with_value, arch, border=_border(spec, x))


def _border(spec: Spec, x: Tensor) -> tuple[Tensor, ...] | None:
    """Mirrored rows and columns of x, and the weights of positions along both; None where there are zeros."""
    if not spec.is_mirrored:
        return None
    (rows, row_weights), (columns, column_weights) = (
        mirrored_axis(side, spec.stages[0].skip_kernel, x.device) for side in x.shape[2:]
    )
    return rows, columns, row_weights, column_weights


def _within(spec: Spec, result: Tensor, x: Tensor) -> Tensor:
    """What a kernel gives of a continued image, in the image: its margins go to the pixels that they repeat."""
    if not spec.is_mirrored:
        return result
    return folded(result, spec.stages[0].skip_kernel).add_(x, alpha=spec.alpha)


def _network(spec: Spec, packed: Tensor, features: Tensor | None) -> tuple:
    """What describes the network to kernels."""
    first, gate = unpack(spec, packed).stages
    bias = gate.bias[None] if gate.noise is None else (features @ gate.noise.T).add_(gate.bias)
    head = None if first.head is None else first.head.contiguous()
    return (
        first.skip, gate.core.flatten(1), bias.contiguous(), head, gate.head.contiguous(),
        power_of_two([gate.head]).view(1), spec.beta, spec.alpha, spec.stages[1].competing,
    )  # fmt: skip
