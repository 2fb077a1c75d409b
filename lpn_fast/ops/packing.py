"""Packing: parameters -> P, with the projection onto W, w, g >= 0 inside.

Whatever an optimizer did to the weights, what reaches a kernel is non-negative, so every evaluation is an
exact prox. Going back, a clamped weight receives its gradient only when a descent step would raise it
(gradient < 0): the projected-gradient rule. A weight that would only be pushed further below zero stays.
NaN passes through, to be seen.
"""

import torch
from torch import Tensor

from ..algebra.parameters import layout, parameter_count
from ..algebra.spec import Spec


def constrained(spec: Spec) -> Tensor:
    """Which entries of P must be non-negative, bool (parameter_count,)."""
    mask = torch.zeros(parameter_count(spec), dtype=torch.bool)
    for slot in layout(spec):
        mask[slot.offset : slot.end] = slot.nonnegative
    return mask


def pack(parameters: list[Tensor], mask: Tensor) -> Tensor:
    """P, shape (parameter_count,), from the parameters in layout order; mask as `constrained` gives it."""
    flat = torch.cat([t.reshape(-1) for t in parameters])
    if not torch.is_grad_enabled():  # the rule for gradients is not needed, and calling it costs more than the rest
        return _projected(flat, mask)
    function = _ProjectCompiled if torch.compiler.is_compiling() else _Project
    return function.apply(flat, mask)


def _projected(flat: Tensor, mask: Tensor) -> Tensor:
    """max(P, 0) where the mask is set; -0.0 becomes 0.0, NaN stays."""
    return flat.masked_fill(mask & (flat <= 0), 0.0)


class _ProjectCompiled(torch.autograd.Function):
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
        return gradient.masked_fill(mask & (flat <= 0) & (gradient >= 0), 0.0), None


class _Project(_ProjectCompiled):
    """The same with a forward derivative: clamped weights have tangent zero."""

    @staticmethod
    def jvp(ctx, tangent, _):
        flat, mask = ctx.saved_tensors
        return tangent.masked_fill(mask & (flat <= 0), 0.0)
