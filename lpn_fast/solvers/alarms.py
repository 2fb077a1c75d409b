"""What a user should be told of a run although it is no error: as Python warnings, and in the reconstruction.

Each is a sentence that says what was seen and what to do. They look at numbers that the run has anyway.
"""

import warnings
from dataclasses import replace

from torch import Tensor

from ..networks.inputs import level_alarm, unit_alarm
from .automatic import trained_levels, white_level
from .problem import relative_change, shown
from .protocol import ProxModel
from .reconstruction import Reconstruction

FAR = 2.0  # misfits beyond this factor of 1 are no matter of chance
UNCHANGED = 1e-6  # relative change: below, an image is still its start


def of_units(model: ProxModel, images: Tensor) -> list[str]:  # images (N, ...)
    """Images whose pixels look like 0..255 to a model for [0, 1]."""
    sentence = unit_alarm("the start", "y", float(images.abs().mean()), white_level(model))
    return [sentence] if sentence else []


def of_level(model: ProxModel, sigma: float | Tensor | None) -> list[str]:
    """A noise level handed to the network that lies outside its training."""
    sentence = level_alarm(trained_levels(model), sigma.cpu() if isinstance(sigma, Tensor) else sigma)
    return [sentence] if sentence else []


def of_result(result: Reconstruction, start: Tensor) -> list[str]:
    """Conditions that fail, misfits far from 1, images that are their start."""
    found = []
    if not result.conditions.all_hold:
        failing = "; ".join(
            f"{row.name}: required {row.required}, got {row.actual}" for row in result.conditions if not row.holds
        )
        found.append(f"{result.conditions.theorem} ran outside its convergence theorem ({failing})")
    if result.misfit is not None:
        far = (result.misfit > FAR) & ~result.broken
        if bool(far.any()):
            found.append(
                f"the result misses the measurements of samples {shown(far.nonzero().flatten())} by up to "
                f"{float(result.misfit[far].max()):.3g} times the noise: the noise level, the operator or the model "
                "does not fit, or the iterations were too few"
            )
    same = (relative_change(result.x, start) < UNCHANGED) & ~result.broken
    if bool(same.any()):
        found.append(f"samples {shown(same.nonzero().flatten())} came back as they started")
    return found


def warned(result: Reconstruction, found: list[str], stacklevel: int) -> Reconstruction:
    """The result with these sentences in it, each given as a RuntimeWarning."""
    for sentence in found:
        warnings.warn(sentence, RuntimeWarning, stacklevel=stacklevel + 1)
    return replace(result, warnings=(*result.warnings, *found))
