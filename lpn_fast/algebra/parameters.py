"""All parameters of a network in one flat vector P: the layout that every backend reads.

Exactly two differentiable tensors cross the operator boundary, x and P. The order below is the contract:

    stage by stage  W_l or V, A_l, b_l, B_l, w_l, g_l, log s   (those present),   then  c, c0, K.
"""

import functools
import math
from dataclasses import dataclass

from torch import Tensor

from .spec import Spec


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in P."""

    name: str  # as in the module's state_dict
    shape: tuple[int, ...]
    offset: int
    nonnegative: bool  # W, V, w, g: the projection clamps these

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.size


@functools.cache
def layout(spec: Spec) -> tuple[Slot, ...]:
    """Slots of P in order."""
    slots, offset = [], 0

    def add(name, shape, nonnegative=False):
        nonlocal offset
        slot = Slot(name, tuple(shape), offset, nonnegative)
        slots.append(slot)
        offset = slot.end

    def matrix(rows, columns, kernel):
        return (rows, columns, *(kernel,) * len(spec.axes))

    before = 0
    for index, stage in enumerate(spec.stages):
        prefix = f"stages.{index}."
        if stage.window:
            add(prefix + "odds", (max(1, len(spec.noise_levels)), stage.width, before), nonnegative=True)
        elif index:
            add(prefix + "core", matrix(stage.width, before, stage.kernel), nonnegative=True)
        if stage.skip_kernel:
            add(prefix + "skip", matrix(stage.width, spec.channels, stage.skip_kernel))
        if stage.bias:
            add(prefix + "bias", (stage.width,))
        if spec.noise_levels and not (spec.square_first and index == 0):
            add(prefix + "noise", (stage.width, len(spec.noise_levels)))
        if "linear" in stage.heads:
            add(prefix + "head", (1 if stage.competing else stage.width,), nonnegative=True)
        if "squared" in stage.heads:
            add(prefix + "head_squared", (stage.width,), nonnegative=True)
        if stage.window:
            add(prefix + "sharpness", (max(1, len(spec.noise_levels)),))
        before = stage.width
    if spec.linear:
        add("linear", (spec.channels,))
    if spec.constant:
        add("constant", (1,))
    if spec.quadratic:
        add("quadratic", matrix(spec.quadratic, spec.channels, spec.quadratic_kernel))
    return tuple(slots)


def parameter_count(spec: Spec) -> int:
    """Length of P."""
    return layout(spec)[-1].end


@dataclass(frozen=True)
class StageParameters:
    """Views into P for one stage; None where the spec has no such parameter."""

    core: Tensor | None = None  # [H_l, H_{l-1}(, k, ..)] W_l >= 0
    skip: Tensor | None = None  # [H_l, C(, k, ..)]       A_l
    bias: Tensor | None = None  # [H_l]                   b_l
    noise: Tensor | None = None  # [H_l, features]        B_l
    head: Tensor | None = None  # [H_l], competing: [1]   w_l >= 0
    head_squared: Tensor | None = None  # [H_l]           g_l >= 0
    odds: Tensor | None = None  # [features or 1, H_l, H_{l-1}]  V >= 0
    sharpness: Tensor | None = None  # [features or 1]    log s


@dataclass(frozen=True)
class Parameters:
    """Views into P, by name."""

    stages: tuple[StageParameters, ...]
    linear: Tensor | None = None  # [C]                   c
    constant: Tensor | None = None  # [1]                 c0
    quadratic: Tensor | None = None  # [M, C(, k, ..)]    K


def unpack(spec: Spec, packed: Tensor) -> Parameters:
    """Views of P `packed`, shape (parameter_count,), in the shapes of the layout; no copy."""
    stages: list[dict[str, Tensor]] = [{} for _ in spec.stages]
    rest: dict[str, Tensor] = {}
    for slot in layout(spec):
        view = packed[slot.offset : slot.end].view(slot.shape)
        *prefix, name = slot.name.split(".")
        (stages[int(prefix[1])] if prefix else rest)[name] = view
    return Parameters(stages=tuple(StageParameters(**stage) for stage in stages), **rest)
