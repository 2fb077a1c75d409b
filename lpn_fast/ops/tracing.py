"""What PyTorch is doing around a call: the short cuts of this package are for when it only computes."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

F = TypeVar("F", bound=Callable)


def uncompiled(function: F) -> F:
    """The function, left out of graphs by torch.compile.

    What torch.compiler.disable makes, once there is a compiler: it loads all of it, which takes seconds.
    """

    @functools.wraps(function)
    def call(*arguments, **options):
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*arguments, **options)
        return function(*arguments, **options)

    return call  # type: ignore[return-value]


def is_eager() -> bool:
    """Whether nobody looks inside: no compiler or tracer, no torch.func transform, no mode, no forward mode.

    Memory written by address is invisible to all of them: whatever they make of the call would lack what was written.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and _is_watched())
    )


def is_plain() -> bool:
    """Whether besides nobody records a graph: values are all that is asked for."""
    return not torch.is_grad_enabled() and is_eager()


def is_traced() -> bool:
    """Whether torch.jit.trace records: it cannot save a Function, so where no gradient is required operators serve."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def _is_watched() -> bool:
    """Whether a mode sees torch's functions, other than the one that is torch's default device."""
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
