"""What of a job can be shown: its operator, and every image before and after, beside the truth where that is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import pages
from ..io import Range, UnreadableImage
from ..io.sources import Source
from ..physics import MRI, Blur, Downsampling, Inpainting, LinearOperator, ParallelBeamCT
from .manifest import ItemResult
from .problems import Problem
from .run import DEGRADED_FOLDER

SPOKES_SIDE = 97  # pixels of the picture of a scan's directions


Pictures = dict[str, tuple[Tensor | None, Path]]  # by what they are: (C, H, W) or None if not to be shown, and where


def of_operator(problem: Problem | None) -> tuple[str, Tensor] | None:
    """A caption and the picture (1, H, W) of kernel, mask or directions; None where there is none."""
    physics = None if problem is None else problem.physics
    if isinstance(physics, Blur | Downsampling):
        kernel = physics.kernel if isinstance(physics, Blur) else physics.blur.kernel
        kernel = kernel.reshape(-1, *kernel.shape[-2:])[:1]
        return f"blur kernel, {kernel.shape[2]} x {kernel.shape[1]} pixels", kernel / kernel.max()
    if isinstance(physics, Inpainting | MRI):
        mask = physics.mask.double().reshape(-1, *physics.mask.shape[-2:])[:1]
        known = f"{100 * float(mask.mean()):.0f} %"
        if isinstance(physics, MRI):
            return f"frequencies measured, {known}; zero is in the middle", torch.fft.fftshift(mask, dim=(-2, -1))
        return f"pixels known, {known}", mask
    if isinstance(physics, ParallelBeamCT):
        angles = physics.geometry.angles
        return f"the {len(angles)} directions of view, as lines of frequencies", _spokes(angles)
    return None


def of_item(
    result: ItemResult, source: Source, out: Path, problem: Problem | None, intensities: Range | None
) -> Pictures:
    """What there is to see of an image that is done; all but "measured" show the same place."""
    if result.value is not None:  # scored: nothing was made
        return {"image": (_image(source, intensities), source.path)}
    packed = source.target(out)  # of a container that is complete, else there are files
    is_packed = source.member is not None and packed.exists()
    kept = replace(source, path=packed) if is_packed else _file(source.result(out))
    after = _image(kept, intensities)
    simulated = bool(result.settings.get("simulate"))
    path = source.result(out / DEGRADED_FOLDER) if simulated else source.path
    if problem is not None and problem.arrays is not None:
        path = path.with_name(f"{path.name}.npy") if simulated else path
        pictures: Pictures = {"measured": (_measurement(source, path, problem, simulated, intensities), path)}
        pictures["result"] = after, kept.path
    else:
        y = _image(_file(path) if simulated else source, intensities)
        if problem is not None and y is not None and after is not None:  # no more than lies over the result
            cropped = problem.cropped(y, tuple(after.shape[-2:]))
            y = y if cropped is None else cropped
        pictures = {"before": (y, path), "after": (after, kept.path)}
    if simulated:
        truth = _image(source, intensities)
        pictures["truth"] = truth if truth is None or problem is None else problem.framed(truth), source.path
    return pictures


def _spokes(angles: tuple[float, ...]) -> Tensor:  # (1, SPOKES_SIDE, SPOKES_SIDE)
    """A projection knows the frequencies on a line through zero, at its angle."""
    half = SPOKES_SIDE // 2
    v, u = torch.meshgrid(-torch.arange(-half, half + 1.0), torch.arange(-half, half + 1.0), indexing="ij")
    seen = torch.zeros(SPOKES_SIDE, SPOKES_SIDE)
    for angle in angles:
        seen = seen.maximum(1 - (v * math.cos(angle) - u * math.sin(angle)).abs())
    return (seen * (u.square() + v.square() <= half**2)).clamp_min(0)[None]


def _measurement(
    source: Source, path: Path, problem: Problem, simulated: bool, intensities: Range | None
) -> Tensor | None:
    """A sinogram from its least to its largest value, or the logarithm of k-space; vectors are no pictures."""
    try:
        array = np.load(path) if simulated else source.read_array()[0]
        y = torch.from_numpy(array) if simulated else problem.measured(array, intensities)
    except (OSError, ValueError):
        return None
    physics: LinearOperator = problem.physics
    if isinstance(physics, MRI):
        size = y[0].flatten(0, -3).norm(dim=0)  # (H, W)
        y = torch.fft.fftshift(size / size[size > 0].median().clamp_min(1e-12)).log1p()[None]
    elif not isinstance(physics, ParallelBeamCT):
        return None
    return pages.stretched(y[:1])


def _file(path: Path) -> Source:
    return Source(path, Path(path.name))


def _image(source: Source, intensities: Range | None) -> Tensor | None:
    try:
        return source.read(intensities)[0].pixels
    except UnreadableImage:  # removed since
        return None
