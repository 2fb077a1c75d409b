"""The operators `torch.ops.lpn_fast.*`: schemas, shape functions, and the hand-over to a backend.

    evaluate   (psi, f, tape)   psi is empty without `value`, tape is empty without `tape`
    hvp        grad^2 psi(x) v
    vjp        gradient of sum (p psi + <v, f>) with respect to x and P

    x, v, f (N, C), (N, C, H, W) or (N, C, D, H, W);   P (P,);   features (N, F) or None;   psi, p (N,)
    tape    what evaluate leaves behind for hvp and vjp at the same x; empty: they recompute it.
            conv    z_1..z_L, e_1..e_L, in the storage type of the named precision; nothing of what one kernel
                    computes, on the CPU (backends/cpu/frame.py) or on a GPU (backends/triton/fused.py), where storing
                    costs more than computing it again
            dense   what the backend that made it understands, in a layout of its own (no rows can be picked from it),
                    or nothing: beyond the caches a dense network is cheaper to recompute than to store

The operators are opaque: compilers see shapes, a backend sees plain tensors. Their derivatives are
defined outside, in functions.py.
"""

import functools

import torch
from torch import Tensor

from ..algebra.parameters import parameter_count
from ..algebra.spec import Spec, decode
from . import registry
from .backends.cpu import frame
from .backends.triton import fused
from .device_check import HESSIAN, PROX, TRAINING, VALUE
from .maps import channels_last
from .precision import storage

_library = torch.library.Library("lpn_fast", "DEF")
_library.define(
    "evaluate(Tensor x, Tensor packed, Tensor? features, str spec, str precision, bool value, bool tape)"
    " -> (Tensor psi, Tensor f, Tensor[] tape)"
)
_library.define(
    "hvp(Tensor x, Tensor packed, Tensor? features, Tensor v, Tensor[] tape, str spec, str precision) -> Tensor"
)
_library.define(
    "vjp(Tensor x, Tensor packed, Tensor? features, Tensor? p, Tensor? v, Tensor[] tape, str spec, str precision)"
    " -> (Tensor gx, Tensor gP)"
)


def _evaluate(x, packed, features, spec, precision, value, tape):
    spec = decode(spec)
    keep = tape and _has_tape(spec, x, precision)
    work = TRAINING if keep else VALUE if value else PROX
    backend = registry.select(spec, x, precision, work)
    psi, f, kept = backend.evaluate(spec, x, packed, features, value, keep, precision)
    return (x.new_empty(0) if psi is None else psi), f, kept


def _hvp(x, packed, features, v, tape, spec, precision):
    spec = decode(spec)
    work = TRAINING if tape else HESSIAN  # a tape goes back to the backend that left it
    return registry.select(spec, x, precision, work).hvp(spec, x, packed, features, v, tape, precision)


def _vjp(x, packed, features, p, v, tape, spec, precision):
    spec = decode(spec)
    backend = registry.select(spec, x, precision, TRAINING)
    return backend.vjp(spec, x, packed, features, p, v, tape, precision)


def _apart(implementation):
    """Outside autocast, which would round products of the backends to 16 bits behind the back of their kernels, and
    below autograd: graphs that hold the bare operator call it with parameters that require gradients."""

    @functools.wraps(implementation)
    def run(x, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            if not torch.is_autocast_enabled(x.device.type):
                return implementation(x, *arguments)
            with torch.autocast(x.device.type, enabled=False):
                return implementation(x, *arguments)

    return run


for _name, _implementation in (("evaluate", _evaluate), ("hvp", _hvp), ("vjp", _vjp)):
    _library.impl(_name, _apart(_implementation), "CompositeExplicitAutograd")


@torch.library.register_fake("lpn_fast::evaluate", lib=_library)
def _evaluate_fake(x, packed, features, spec, precision, value, tape):
    spec = decode(spec)
    psi = x.new_empty(x.shape[0] if value else 0)
    kept = _tape_like(spec, x, precision) if tape and _has_tape(spec, x, precision) else []
    return psi, torch.empty_like(x, memory_format=torch.contiguous_format), kept


@torch.library.register_fake("lpn_fast::hvp", lib=_library)
def _hvp_fake(x, packed, features, v, tape, spec, precision):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("lpn_fast::vjp", lib=_library)
def _vjp_fake(x, packed, features, p, v, tape, spec, precision):
    gx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return gx, x.new_empty(parameter_count(decode(spec)))


def _has_tape(spec: Spec, x: Tensor, precision: str) -> bool:
    """Whether a tape is kept: by every backend or by none, so that shapes are known before one is chosen."""
    if spec.has_contexts:
        return False
    if x.device.type == "cpu":
        return not frame.supports(spec)
    return not (x.device.type == "cuda" and x.dtype == torch.float32 and fused.covers_gradients(spec, precision))


def _tape_like(spec: Spec, x: Tensor, precision: str) -> list[Tensor]:
    if spec.is_dense:
        return registry.select(spec, x, precision, TRAINING).dense_tape(spec, x)
    like = {"dtype": storage(spec, precision, x.dtype), "device": x.device, "memory_format": channels_last(x.dim())}
    sizes = spec.stage_sizes(*x.shape[2:])
    tensors = [
        torch.empty((x.shape[0], stage.width, *size), **like) for stage, size in zip(spec.stages, sizes, strict=True)
    ]
    return tensors + [torch.empty_like(t) for t in tensors]
