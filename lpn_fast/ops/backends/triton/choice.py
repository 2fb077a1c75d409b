"""Whether a stage's product is the library's convolution with our step after it, or one of our kernels."""

from torch import Tensor

from ....algebra.spec import Spec
from . import device


def choice(spec: Spec, l: int, sizes, x: Tensor, precision: str, sweep: str) -> tuple[bool, str]:
    """(whether the library computes the product of stage l, why) in a sweep, for inputs like x."""
    from ....kernels.triton import choices, launch

    stage, below = spec.stages[l], spec.stages[l - 1]
    covered, channels = sizes[l], (below.width, stage.width)
    if sweep != "forward":
        covered, channels = sizes[l - 1], channels[::-1]
    key = launch.Key(f"{sweep}_{stage.stride}", *channels, precision, 0)
    return choices.choice(device.name(x.device), key, x.shape[0] * covered[0] * covered[1])


def sweep_of(epilogue: str) -> str:
    """The role, in the launch table, of a transposed correlation: the adjoint step holds more tiles in registers."""
    return "adjoint" if epilogue.endswith("adjoint") else "transposed"
