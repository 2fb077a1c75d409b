"""A network as one node of autograd's graph: from its own parameters and x to (psi, f).

    forward    P = pack(parameters);   psi, f = evaluate(x, P)
    backward   gx, gP = vjp(x, P, p, v);   the rule of packing.py on gP;   the slots of gP, as the parameters' gradients

What a training step needs, in two operator calls and without a graph over the pieces of P. Whoever needs more than
first derivatives (a graph of the gradient, torch.func, forward mode, a compiler) gets `pack` and functions.py one
after the other, which compute the same numbers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from ..algebra.spec import Spec
from . import functions
from .packing import pack, projected_gradient
from .tracing import is_eager, is_plain

_ops = torch.ops.lpn_fast
Hook = Callable[[Tensor], Tensor]


def evaluate(
    spec: Spec,
    x: Tensor,
    parameters: Sequence[Tensor],
    mask: Tensor,
    features: Tensor | None,
    with_value: bool,
    precision: str = "fp32",
    hook: Hook | None = None,
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), differentiable in x and the parameters.

    Parameters
    ----------
    parameters : sequence of Tensor, in layout order
    mask : bool Tensor, shape (parameter_count,), as packing.constrained gives it
    hook : callable, optional
        Receives the gradient of P, (parameter_count,), before the rule for clamped weights, and returns what to use.
    """
    if is_eager():
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
            out = _Network.apply(spec, mask, features, precision, with_value, hook, x, *parameters)
            return out if with_value else (None, out)
        with torch.no_grad():
            packed = pack(spec, parameters, mask)
            return _ops.evaluate.default(x, packed, features, spec.encoded, precision, with_value, False)[:2]
    packed = hooked(pack(spec, parameters, mask), hook)
    return functions.evaluate(spec, x, packed, features, with_value, precision)


def hooked(packed: Tensor, hook: Hook | None) -> Tensor:
    """P whose gradient goes through `hook`."""
    if hook is not None and packed.requires_grad:
        packed.register_hook(hook)
    return packed


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spec, mask, features, precision, with_value, hook, x, *parameters):
        packed = pack(spec, parameters, mask)
        psi, f, tape = _ops.evaluate.default(x, packed, features, spec.encoded, precision, with_value, True)
        ctx.save_for_backward(x, packed, features, f, *tape)
        # The parameters themselves are not saved: an optimizer may move them before backward, P stays what it was.
        ctx.call = spec, mask, precision, hook, parameters
        ctx.with_value = with_value
        ctx.set_materialize_grads(False)
        return (psi, f) if with_value else f

    @staticmethod
    def backward(ctx, *cotangents):
        p, v = cotangents if ctx.with_value else (None, *cotangents)
        if p is None and v is None:
            return (None,) * len(ctx.needs_input_grad)
        x, packed, features, f, *tape = ctx.saved_tensors
        spec, mask, precision, hook, parameters = ctx.call
        plain = is_plain()
        if not plain and torch.is_grad_enabled():
            packed = _packed_again(packed, spec, parameters, mask)
        if v is not None:
            v = v.contiguous()
        if not any(ctx.needs_input_grad[7:]):
            gx = functions.gradient_in_x(spec, x, packed, features, p, v, f, precision, tape)
            return (None,) * 6 + (gx,) + (None,) * len(parameters)
        if plain:
            gx, gP = _ops.vjp.default(x, packed, features, p, v, tape, spec.encoded, precision)
        else:
            gx, gP = functions.vjp(spec, x, packed, features, p, v, precision, tape)
        gP = projected_gradient(spec, gP if hook is None else hook(gP), packed, mask)
        return (None,) * 6 + (gx, *_unflatten_dense_tensors(gP, parameters))


def _packed_again(before: Tensor, spec: Spec, parameters: Sequence[Tensor], mask: Tensor) -> Tensor:
    """P with the graph to its parameters, for whoever differentiates the gradient."""
    packed = pack(spec, parameters, mask)
    if not torch.equal(packed, before):
        raise RuntimeError("a parameter was changed after the forward pass: the graph of its gradient is gone")
    return packed
