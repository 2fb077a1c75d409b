"""Facts of a device, and the kernels' launchers: Triton is imported at the first call."""

import contextlib
import functools
from types import SimpleNamespace

import torch
from torch import Tensor

from ....kernels.triton.interpreter import interpreted, mend

LEAST_CAPABILITY = (8, 0)  # bf16 and TF32 products, asynchronous copies
# From here on Triton has other products (tcgen05), and is known to have miscompiled two into one accumulator.
UNPROVEN_CAPABILITY = (10, 0)


_pointers_alone = False


@contextlib.contextmanager
def without_tma():
    """Kernels read by pointers, in every thread, wherever the copy engine would fetch tiles."""
    global _pointers_alone
    before, _pointers_alone = _pointers_alone, True
    try:
        yield
    finally:
        _pointers_alone = before


def tma_is_allowed() -> bool:
    return not _pointers_alone


def refusal(x: Tensor, precision: str) -> str | None:
    """Why no kernel runs on tensors like x, or None."""
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, this backend takes float32 (and rounds inside, as the precision says)"
    if x.device.type == "cuda":
        capability = torch.cuda.get_device_capability(x.device)
        if capability < LEAST_CAPABILITY:
            return f"the device has compute capability {capability}, {LEAST_CAPABILITY} is needed"
    elif not interpreted():
        return f"x is on {x.device}, this backend runs on CUDA"
    elif precision == "bf16":
        return "Triton's interpreter does not round to bfloat16 correctly"
    return None


def is_unproven(x: Tensor) -> bool:
    """Whether x's device is of a kind on which no kernel was ever seen to work."""
    return x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) >= UNPROVEN_CAPABILITY


@functools.cache
def launchers():
    """The kernels' launchers, loaded at the first call: importing Triton takes a while."""
    if interpreted():
        mend()
    from ....kernels.triton import explicit, explicit_gradient, frame, frame_gradient, launch
    from ....kernels.triton.assemble import assemble
    from ....kernels.triton.correlate import correlate
    from ....kernels.triton.elementwise import elementwise
    from ....kernels.triton.gradient import gradient
    from ....kernels.triton.units import units_of

    return SimpleNamespace(
        launch=launch,
        Geometry=launch.Geometry,
        assemble=assemble,
        correlate=correlate,
        elementwise=elementwise,
        explicit=explicit,
        explicit_gradient=explicit_gradient,
        frame=frame,
        frame_gradient=frame_gradient,
        gradient=gradient,
        units_of=units_of,
    )


@functools.cache
def facts(device: torch.device) -> tuple[int, int]:
    """(architecture as in the launch table, multiprocessors)."""
    if device.type != "cuda":
        return 0, 1
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


@functools.cache
def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the interpreter"
