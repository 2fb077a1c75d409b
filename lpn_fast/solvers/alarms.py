"""What a user should be told of a run although it is no error: as Python warnings, and in the reconstruction.

Each is a sentence that says what was seen and what to do. They look at numbers that the run has anyway.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from .automatic import trained_levels, white_level
from .problem import relative_change, shown
from .protocol import ProxModel
from .reconstruction import Reconstruction

FAR = 2.0  # misfits beyond this factor of 1 are no matter of chance
OUTSIDE = 2.0  # factor beyond the trained noise levels
UNCHANGED = 1e-6  # relative change: below, an image is still its start
LIKE_BYTES = 4.0  # times the white level of the model: mean size of pixels that are in other units


def of_units(model: ProxModel, images: Tensor) -> list[str]:  # images (N, ...)
    """Images whose pixels look like 0..255 to a model for [0, 1]."""
    white = white_level(model)
    size = float(images.abs().mean())
    if size <= LIKE_BYTES * white:
        return []
    return [
        f"the start has pixels of mean size {size:.3g}, but the model takes images in [0, {white:g}]: divide y by the "
        "white level (255 for 8 bits), or use lf.rescaled(model, 1 / 255)"
    ]


def of_level(model: ProxModel, sigma: float | Tensor | None) -> list[str]:
    """A noise level handed to the network that lies outside its training."""
    levels = trained_levels(model)
    if sigma is None or levels is None:
        return []
    low, high = (float(v) for v in (torch.as_tensor(sigma).min(), torch.as_tensor(sigma).max()))
    if levels[0] / OUTSIDE <= low and high <= OUTSIDE * levels[1]:
        return []
    worst = high if high > OUTSIDE * levels[1] else low
    hint = f"; for 8-bit images divide by 255: {worst:g}/255 = {worst / 255:.3g}" if worst >= 1 else ""
    return [f"sigma = {worst:.3g} lies outside the model's training, {levels[0]:.3g} to {levels[1]:.3g}{hint}"]


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
