"""The inverse problems, with the conventions of the published experiments (arXiv 2310.14344 and its code).

    deblur    Gaussian of 1 or 2 pixels, full convolution, noise .02 or .04        degraded = its central part
    motion    recorded camera-shake kernels, one per image, circular, noise .02           degraded = the measurement
    ct        200 angles, 400 bins over +-181.02, noise 2 on the sinogram          filtered back-projection
    cs        random-sign circulant, M = N/4 or N/16, noise .001                   least squares by gradient descent

CT and CS shrink with the side of the images, in pixels, angles and bins alike, over the same field of view.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lpn_fast.physics import Blur, CompressedSensing, GaussianNoise, ParallelBeamCT, load_kernels

from . import data

EXTENT = 128 * math.sqrt(2)  # the detector and half the diagonal of the field of view, in length units


@dataclass(frozen=True)
class Published:
    """Settings of the published code: data term scale |A x - y|^2, penalty, iterations, level of its network."""

    scale: float
    rho: float
    iterations: int
    sigma: float
    box: bool = False

    @property
    def equivalent_rho(self) -> float:
        """The penalty that does the same with the data term 1/2 |A x - y|^2."""
        return self.rho / (2 * self.scale)


@dataclass(frozen=True)
class Instance:
    """Measured images. `simple` is what one has without a prior: every method starts there."""

    x: Tensor  # (N, 1, H, W)
    physics: object  # knows its noise
    y: Tensor
    noise: float
    simple: Tensor  # (N, 1, H, W)


@dataclass(frozen=True)
class Task:
    """A name, where its images come from, and how they are measured."""

    name: str
    images: str  # "photographs", "faces" or "slices"
    simple: str  # what Instance.simple is called
    published: Published | None

    def instance(self, root: Path, part: str, count: int, side: int) -> Instance:
        """The measured images of a part of the data; the noise has a seed of its own for each part."""
        x = getattr(data, self.images)(root, part, count, side)
        seed = {"validation": 0, "train": 1}[part]
        operator, noise = self._operator(root, len(x), side)
        physics = operator.with_noise(GaussianNoise(noise))
        y = physics.simulate(x, seed)
        return Instance(x, physics, y, noise, self._simple(operator, y, side))

    def _operator(self, root: Path, samples: int, side: int):
        kind, *numbers = self.name.split("-")
        if kind == "deblur":
            return Blur.gaussian(float(numbers[0]), boundary="full", size="published"), float(numbers[1])
        if kind == "motion":
            kernels = [k for name, k in load_kernels(root / "kernels" / "kernels.npz").items() if "levin" in name]
            return Blur(_of_one_size([kernels[i % len(kernels)] for i in range(samples)])), float(numbers[0])
        if kind == "ct":
            share = side / data.CT_SIDE
            angles, bins = round(200 * share), round(400 * share)
            return ParallelBeamCT(side, angles, bins, extent=EXTENT, pixel=256 / side), 2.0
        return CompressedSensing(side, ratio=1 / int(numbers[0])), 0.001

    def _simple(self, operator, y: Tensor, side: int) -> Tensor:
        if self.simple == "FBP":
            return operator.fbp(y)
        if self.simple == "least squares":
            return least_squares(operator, y)
        margin = (y.shape[-1] - side) // 2
        return y[..., margin : margin + side, margin : margin + side]


def deblurring(images: str) -> tuple[Task, ...]:
    """The four published deblurring tasks on some images."""
    return tuple(
        Task(f"deblur-{blur}-{noise}", images, "degraded", Published(scale, 0.1, 20, sigma))
        for blur, noise, scale, sigma in (
            (1, 0.02, 0.5, 0.05),
            (1, 0.04, 0.5, 0.1),
            (2, 0.02, 2.0, 0.1),
            (2, 0.04, 0.5, 0.1),
        )
    )


TASKS = (
    *deblurring("photographs"),
    Task("motion-0.02", "photographs", "degraded", None),
    Task("ct", "slices", "FBP", Published(1e-4, 0.05, 15, 0.1)),
    Task("cs-4", "slices", "least squares", Published(1.0, 0.05, 80, 0.1, box=True)),
    Task("cs-16", "slices", "least squares", Published(1.0, 0.05, 80, 0.1, box=True)),
)


def least_squares(operator, y: Tensor) -> Tensor:
    """x <- x - .1 A^T (A x - y) from A^T y, at most 100 steps, until all relative changes are below 1e-3."""
    x = operator.A_adjoint(y)
    for _ in range(100):
        step = 0.1 * operator.A_adjoint(operator.A(x) - y)
        x = x - step
        if bool((step.flatten(1).norm(dim=1) < 1e-3 * x.flatten(1).norm(dim=1)).all()):
            break
    return x


def _of_one_size(kernels: list[Tensor]) -> Tensor:  # (N, k, k)
    """Kernels with zeros around them, centre upon centre."""
    side = max(max(k.shape) for k in kernels)
    padded = []
    for k in kernels:
        top, left = (side // 2 - size // 2 for size in k.shape)
        padded.append(F.pad(k, (left, side - left - k.shape[1], top, side - top - k.shape[0])))
    return torch.stack(padded)
