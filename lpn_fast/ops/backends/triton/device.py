"""Facts of a device, and the kernels' launchers: Triton is imported at the first call."""

import functools
from types import SimpleNamespace

import torch

from ....kernels.triton.interpreter import interpreted, mend


@functools.cache
def launchers():
    """The kernels' launchers, loaded at the first call: importing Triton takes a while."""
    if interpreted():
        mend()
    from ....kernels.triton import frame, launch
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
        frame=frame,
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
