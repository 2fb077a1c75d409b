"""Squared first stages under gates of single pixels on the CPU, all stages in one pass (csrc/cpu/isa/frame.h).

    c = K x,   z_1 = c^2,   z_l = softplus(W_l z_{l-1} + b_l)  W_l of 1 x 1;  psi = sum_l w_l . z_l + alpha/2 |x|^2

The networks of `FrameLPN` with the default gates. Only x, psi and f touch memory, so there is no tape.
"""

import importlib

import torch
from torch import Tensor

from ..algebra.parameters import unpack
from ..algebra.spec import Spec, Stage


def supports(spec: Spec) -> bool:
    """Whether these kernels compute networks of `spec`."""
    if spec.is_dense or not spec.square_first or spec.linear or spec.constant or spec.quadratic:
        return False
    first, *gates = spec.stages
    whole = first.skip_stride == 1 and first.resize == 1 and first.skip_padding == first.skip_kernel - 1
    return whole and all(_is_gate(stage) for stage in gates) and "linear" in spec.stages[-1].heads


def _is_gate(stage: Stage) -> bool:
    reading = stage.kernel, stage.stride, stage.padding, stage.skip_kernel
    return reading == (1, 1, 0, 0) and "squared" not in stage.heads


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W), P (P,), noise features (N, F) or None, all float32."""
    x, packed = x.contiguous(), packed.contiguous()
    psi = torch.empty(len(x), dtype=torch.float64) if with_value else None
    f = torch.empty_like(x)
    network = _Arguments(spec, packed, features)
    importlib.import_module("lpn_fast._cpu").frame_value_prox(
        x.data_ptr(), *network.first, network.gates, *network.sizes(x), spec.beta, spec.alpha,
        psi.data_ptr() if with_value else 0, f.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return None if psi is None else psi.to(x.dtype), f


class _Arguments:
    """Parameters and sizes as csrc takes them; it reads P where it lies."""

    def __init__(self, spec: Spec, packed: Tensor, features: Tensor | None):
        first, *gates = unpack(spec, packed).stages
        self._spec, self._kept = spec, [packed]
        self.first = _at(first.skip), _at(first.head)
        self.gates: list[int] = []  # a stage after the other, as frame_bindings.cpp says
        for gate in gates:
            width, below = gate.core.shape[:2]
            bias = gate.bias
            if gate.noise is not None:
                bias = features @ gate.noise.T  # [N, H_l]
                bias = (bias if gate.bias is None else bias + gate.bias).contiguous()
            self._kept.append(bias)
            self.gates += [width, below, _at(gate.core), _at(bias), _at(gate.head), gate.noise is not None]

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        """(units, images, channels, height, width, kernel)."""
        first = self._spec.stages[0]
        return first.width, *x.shape, first.skip_kernel


def _at(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
