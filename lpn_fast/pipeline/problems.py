"""Measurements as files have them, and the operators that made them.

    blur, inpaint, downsample        measurements are images
    ct                               sinograms (angles, bins)
    mri                              k-space, complex, (H, W) or (coils, H, W)
    cs, matrix                       vectors (M,)

Measurements that are no images come as floating-point arrays in .npy, .npz, .h5 or float TIFF files, one or a stack.
Where intensities (low, high) of the image become 0 and 1, the linear operator makes of y = A x

    (y - low A 1) / (high - low).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..io import Range
from ..io.containers import Arrays
from ..physics import (
    MRI,
    Blur,
    CompressedSensing,
    Denoising,
    Downsampling,
    Inpainting,
    LinearOperator,
    ParallelBeamCT,
    from_matrix,
)
from ..solvers.noise import SMALLEST_SIDE, TILE, haar_level, shown_level
from .manifest import short_digest

PROBE_SIDE = 32  # pixels; the smallest image that shows whether operator, model and sigma fit together
# 8,000 blocks: a standard error of 1.3 %; 32,000 pixels: torch starts no threads beside the solver's, from 32,768 on.
MOST_TILES = 500
FEW_TILES = 64  # a standard error of 4 %: enough to doubt a level that was given


@dataclass(frozen=True)
class Problem:
    """An operator, the form of its measurements, and what identifies it."""

    name: str
    physics: LinearOperator
    settings: dict  # JSON-ready
    image_size: tuple[int, int] | None = None  # of every image; None where the operator takes any
    least_side: int = PROBE_SIDE  # pixels of the smallest image that it takes, at most
    arrays: Arrays | None = None  # what a file must hold; None is images
    kind: str = "gray"  # which network suits images that come from arrays
    centred: bool = False  # of k-space: frequency zero, and the image's origin, are in the middle

    def measured(self, array: np.ndarray, intensities: Range | None) -> Tensor:
        """A measurement (1, ...) from the array of a file, in units where intensities of the image are [0, 1].

        A ValueError says that there is NaN in it, or that it has another type or shape than the operator measures.
        """
        is_complex = self.arrays.is_complex
        if not self.arrays.suits(array.dtype):
            raise ValueError(f"it must hold {'complex' if is_complex else 'real'} numbers, got {array.dtype}")
        if self.centred:
            array = np.fft.ifftshift(array, axes=(-2, -1))
        y = torch.from_numpy(np.array(array, np.complex64 if is_complex else np.float32, order="C"))
        if is_complex:
            y = torch.view_as_real(y).movedim(-1, -3)  # (2, H, W) or (coils, 2, H, W)
        if not bool(y.isfinite().all()):
            raise ValueError(f"it holds {int((~y.isfinite()).sum())} NaN or infinite values of {y.numel()}")
        expected = tuple(self.physics.measurement_shape((1, 1, *self.image_size))[2:])
        if tuple(y.shape) != expected:
            raise ValueError(f"it must have the shape {expected} that the operator measures, got {tuple(y.shape)}")
        y = y[None]
        if intensities is not None:
            low, high = intensities
            y = (y - low * self.physics.A(torch.ones(1, 1, *self.image_size))[0]) / (high - low)
        return y * self.physics.mask.to(y) if isinstance(self.physics, MRI) else y

    def framed(self, x: Tensor) -> Tensor:
        """What of an image a result shows: what lies in the frame of a photograph."""
        return self.physics.crop(x) if isinstance(self.physics, Blur) else x

    def image(self, x: Tensor) -> Tensor:
        """An image as files have it, from one as the operator has it."""
        return torch.fft.fftshift(x, dim=(-2, -1)) if self.centred else x

    def measurement(self, truth: Tensor) -> Tensor:
        """Without noise, (C, ...), of an image (C, H, W) as files have it."""
        x = torch.fft.ifftshift(truth, dim=(-2, -1)) if self.centred else truth
        return self.physics.A(x[:, None])[:, 0]

    def noise_of(self, measured: list[Tensor], most_tiles: int = MOST_TILES) -> list[float | None]:  # of (C, ...)
        """Standard deviation of the noise, from each measurement alone; None where it cannot be told."""
        is_masked = isinstance(self.physics, Inpainting)
        if self.arrays is None and not is_masked:
            return noise_levels(measured, most_tiles)
        found = [shown_level(y[None], self.physics) for y in measured]
        return [None if level is None or (is_masked and not level) else float(level) for level in found]

    def cropped(self, measured: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The part of a measurement (C, H', W') that lies over the image, to compare the two, if there is one."""
        if self.arrays is not None or min(a - b for a, b in zip(measured.shape[-2:], size, strict=True)) < 0:
            return None
        if measured.shape[-2:] == size:
            return measured
        top, left = (side // 2 for side in self.physics.kernel.shape)
        return measured[:, top : top + size[0], left : left + size[1]]


IMAGES = Problem("images", Denoising(), {})  # which are measured themselves


def blur(physics: Blur) -> Problem:
    settings = {"kernel": _digest(physics.kernel), "boundary": physics.boundary}
    return Problem("blur", physics, settings, least_side=max(PROBE_SIDE, *physics.kernel.shape))


def inpaint(mask: Tensor) -> Problem:
    """Of images of which the pixels under the mask (H, W) are known."""
    return Problem("inpaint", Inpainting(mask), {"mask": _digest(mask)}, tuple(mask.shape[-2:]))


def downsample(physics: Downsampling) -> Problem:
    kernel, factor = physics.blur.kernel, physics.factor
    side = factor * -(-max(PROBE_SIDE, *kernel.shape) // factor)
    return Problem("downsample", physics, {"kernel": _digest(kernel), "factor": factor}, least_side=side)


def ct(physics: ParallelBeamCT) -> Problem:
    geometry = physics.geometry
    settings = {"geometry": short_digest(repr(geometry).encode())}
    return Problem("ct", physics, settings, (geometry.height, geometry.width), arrays=Arrays(2), kind="CT")


def mri(mask: Tensor, coils: Tensor | None = None, centred: bool = False) -> Problem:
    """Of k-space, sampled under the mask (H, W) by coils of known sensitivities (coils, H, W)."""
    if centred:
        mask, coils = (x if x is None else torch.fft.ifftshift(x, dim=(-2, -1)) for x in (mask, coils))
    settings = {"mask": _digest(mask), "coils": None if coils is None else _digest(coils), "centred": centred}
    arrays = Arrays(2 if coils is None else 3, is_complex=True)
    return Problem("mri", MRI(mask, coils), settings, tuple(mask.shape[-2:]), arrays=arrays, centred=centred)


def cs(physics: CompressedSensing) -> Problem:
    size = physics.height, physics.width
    return Problem("cs", physics, {"operator": repr(physics)}, size, arrays=Arrays(1))


def matrix(entries, image_size: tuple[int, int]) -> Problem:
    """Of vectors y = M x for a matrix (M, H W), an array or one of scipy.sparse; of every channel by itself."""
    is_sparse = hasattr(entries, "tocsr")
    entries = entries.tocsr() if is_sparse else entries
    stored = (entries.indptr, entries.indices, entries.data) if is_sparse else (entries,)
    physics = from_matrix(entries, image_size)
    if not np.isfinite(stored[-1]).all():
        raise ValueError("the matrix must be finite, got NaN or infinite values")
    digest = short_digest(" ".join(_digest(torch.from_numpy(array)) for array in stored).encode())
    settings = {"matrix": digest, "size": list(image_size)}
    return Problem("matrix", physics, settings, image_size, arrays=Arrays(1))


@torch.inference_mode()
def noise_levels(images: list[Tensor], most_tiles: int = MOST_TILES) -> list[float | None]:
    """Standard deviation of the noise in images (C, H, W), in their units; None for one smaller than 8 x 8.

    Of a large image `most_tiles` tiles count, evenly spread. Where they allow it all are estimated together, fast.
    """
    tiles = [_tiles(image, most_tiles) if min(image.shape[1:]) >= SMALLEST_SIDE else None for image in images]
    if {type(one) for one in tiles} == {Tensor} and len({one.shape for one in tiles}) == 1:
        return haar_level(torch.stack(tiles)).tolist()
    return [None if one is None else float(haar_level(one[None])) for one in tiles]


def _tiles(image: Tensor, most: int) -> Tensor:
    """Some of an image (C, H, W), below each other, (1, tiles TILE, TILE), or all of it."""
    channels, height, width = image.shape
    rows, columns = height // TILE, width // TILE
    total = channels * rows * columns
    if total <= most:
        return image
    channel, row, column = np.unravel_index(np.arange(most) * total // most, (channels, rows, columns))
    return image.unfold(1, TILE, TILE).unfold(2, TILE, TILE)[channel, row, column].reshape(1, -1, TILE)


def _digest(values: Tensor) -> str:
    """Shape and content in a few characters."""
    return f"{'x'.join(map(str, values.shape))}:{short_digest(values.detach().cpu().contiguous().numpy().tobytes())}"
