"""Packing: parameters -> P, with the projection onto W, w, g >= 0 inside.

Whatever an optimizer did to the weights, what reaches a kernel is non-negative, so every evaluation is an
exact prox. Going back, a clamped weight receives its gradient only when a descent step would raise it
(gradient < 0): the projected-gradient rule. A weight that would only be pushed further below zero stays.
NaN passes through, to be seen.

P is made anew for every evaluation: nothing tells reliably that a weight was written to (`weight.data.clamp_` does
not bump `_version`), and one C++ call makes it in a few microseconds.
"""

import functools
import importlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from ..algebra.parameters import layout, parameter_count
from ..algebra.spec import Spec
from .tracing import is_plain, is_traced

try:
    _cpu = importlib.import_module("lpn_fast._cpu")
except ImportError:  # a source tree that was never built: torch's operations serve
    _cpu = None


def constrained(spec: Spec) -> Tensor:
    """Which entries of P must be non-negative, bool (parameter_count,)."""
    mask = torch.zeros(parameter_count(spec), dtype=torch.bool)
    for slot in layout(spec):
        mask[slot.offset : slot.end] = slot.nonnegative
    return mask


def pack(spec: Spec, parameters: Sequence[Tensor], mask: Tensor) -> Tensor:
    """P, shape (parameter_count,), from the parameters in layout order; mask as `constrained` gives it."""
    if is_plain():  # the rule for gradients is not needed, and calling it costs more than the rest
        if _on_cpu(parameters):
            packed = parameters[0].new_empty(mask.numel())
            addresses = [p.data_ptr() for p in parameters]
            _cpu.pack(addresses, _segments(spec).data_ptr(), packed.data_ptr(), torch.get_num_threads())
            return packed
        return _projected(_flat(parameters), mask)
    flat = _flat(parameters)
    if is_traced() and not flat.requires_grad:
        return _projected(flat, mask)
    function = _ProjectWeightsCompiled if torch.compiler.is_compiling() else _ProjectWeights
    return function.apply(flat, mask)


def projected_gradient(spec: Spec, gradient: Tensor, packed: Tensor, mask: Tensor) -> Tensor:
    """The rule: the gradient of P, zero where a descent step would push a clamped weight further below zero.

    Shapes (parameter_count,). `packed` may be P or what it was before the projection. The gradient may be
    overwritten where nobody differentiates.
    """
    if is_plain() and _on_cpu((gradient, packed)):
        segments = _segments(spec)
        _cpu.project_gradient(
            packed.data_ptr(), gradient.data_ptr(), segments.data_ptr(), len(segments), torch.get_num_threads()
        )
        return gradient
    return _gradient_by_the_rule(gradient, packed, mask)


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in parameters])


def _projected(flat: Tensor, mask: Tensor) -> Tensor:
    """max(P, 0) where the mask is set; -0.0 becomes 0.0, NaN stays."""
    return flat.masked_fill(mask & (flat <= 0), 0.0)


def _gradient_by_the_rule(gradient: Tensor, flat: Tensor, mask: Tensor) -> Tensor:
    return gradient.masked_fill(mask & (flat <= 0) & (gradient >= 0), 0.0)


def _on_cpu(tensors: Sequence[Tensor]) -> bool:
    """Whether C++ can read the tensors where they lie: float32 on the CPU, without gaps, nobody's subclass."""
    if _cpu is None:
        return False
    for t in tensors:
        kind = type(t)
        if not (kind is Parameter or kind is Tensor) or t.dtype is not torch.float32:
            return False
        if not (t.is_cpu and t.is_contiguous()):
            return False
    return True


@functools.cache
def _segments(spec: Spec) -> Tensor:
    """Size of every slot and whether it must be non-negative, int64 [slots, 2]: csrc's view of the layout.

    On the CPU by name, as all that is cached or read by address: whoever calls first may have another default device.
    """
    return torch.tensor([[slot.size, slot.nonnegative] for slot in layout(spec)], dtype=torch.int64, device="cpu")


@functools.cache
def parameter_table(spec: Spec) -> Tensor:
    """Where a dense network's compiled kernels find P's entries, int64 (6 L + 2,).

    Per stage its width and the offsets of W, A, b, w and g, then those of c and c0; -1 for what is absent.
    """
    offsets = {slot.name: slot.offset for slot in layout(spec)}
    table = []
    for index, stage in enumerate(spec.stages):
        names = (f"stages.{index}.{name}" for name in ("core", "skip", "bias", "head", "head_squared"))
        table += [stage.width, *(offsets.get(name, -1) for name in names)]
    return torch.tensor(
        [*table, offsets.get("linear", -1), offsets.get("constant", -1)], dtype=torch.int64, device="cpu"
    )


class _ProjectWeightsCompiled(torch.autograd.Function):
    """max(P, 0) where the mask is set. Dynamo refuses Functions with a jvp, so this one has none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(flat, mask):
        return _projected(flat, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        flat, mask = inputs
        ctx.save_for_backward(flat, mask)
        ctx.save_for_forward(flat, mask)

    @staticmethod
    def backward(ctx, gradient):
        flat, mask = ctx.saved_tensors
        return _gradient_by_the_rule(gradient, flat, mask), None


class _ProjectWeights(_ProjectWeightsCompiled):
    """The same with a forward derivative: clamped weights have tangent zero."""

    @staticmethod
    def jvp(ctx, tangent, _):
        flat, mask = ctx.saved_tensors
        return tangent.masked_fill(mask & (flat <= 0), 0.0)
