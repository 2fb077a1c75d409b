"""The photographs of `lpn-fast demo`, and what becomes of one of them.

They come with scikit-image's wheel, so nothing is downloaded.
"""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import metrics, pipeline
from ..networks import LPN
from ..pipeline.batches import from_samples, to_samples


@dataclass(frozen=True)
class Photograph:
    """A function of skimage.data, and (row, column) of the middle of the square that is shown."""

    name: str
    middle: tuple[int, int]


PHOTOGRAPHS = (
    Photograph("camera", (150, 240)),
    Photograph("astronaut", (128, 225)),
    Photograph("chelsea", (130, 220)),
    Photograph("coffee", (200, 300)),
    Photograph("coins", (150, 190)),
    Photograph("page", (96, 190)),
)


@dataclass(frozen=True)
class Deblurred:
    """One photograph before and after. Images are (C, H, W); `objective` is (iterations,), per pixel."""

    photograph: Photograph
    truth: Tensor
    measured: Tensor
    image: Tensor
    objective: Tensor
    before: tuple[float, float]  # PSNR, SSIM of the measurement
    after: tuple[float, float]
    seconds: float


def deblur(photograph: Photograph, side: int, task: pipeline.Reconstruct, model: LPN) -> Deblurred:
    """Degrade and reconstruct one photograph; the noise depends on its name only."""
    truth = _load(photograph, side)
    seed = int.from_bytes(hashlib.sha256(photograph.name.encode()).digest()[:7], "big")
    measured = task.degrade(truth, torch.Generator().manual_seed(seed))
    started = time.monotonic()
    solution = task.solve(to_samples(measured, model.spec.channels), model)
    seconds = time.monotonic() - started
    image = from_samples(solution.x).clamp(0, 1)
    return Deblurred(
        photograph,
        truth,
        measured.clamp(0, 1),
        image,
        solution.objective.sum(dim=1) / truth.numel(),
        _quality(measured.clamp(0, 1), truth),
        _quality(image, truth),
        seconds,
    )


def _load(photograph: Photograph, side: int) -> Tensor:  # (C, H, W) in [0, 1], H and W at most side
    import skimage.data

    stored = getattr(skimage.data, photograph.name)()  # (H, W) or (H, W, 3), uint8
    planes = np.atleast_3d(stored).transpose(2, 0, 1)
    top, left = (max(0, middle - side // 2) for middle in photograph.middle)
    square = planes[:, top : top + side, left : left + side]
    return torch.from_numpy(np.ascontiguousarray(square)).float() / 255


def _quality(image: Tensor, truth: Tensor) -> tuple[float, float]:
    return float(metrics.psnr(image[None], truth[None])), float(metrics.ssim(image[None], truth[None]))
