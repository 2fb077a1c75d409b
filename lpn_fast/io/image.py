"""What an image file holds, in the same terms for every format: stored numbers, the two of them that are 0 and 1.

    pixels = (stored - low) / (high - low),        stored = low + (high - low) pixels

low > high shows a negative (WhiteIsZero, MONOCHROME1) as the picture. Integers are rounded and clipped to what they can
hold, nothing else is: an image that is read and written unchanged is the same.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]  # the stored numbers that become 0 and 1

# Noise takes an image somewhat outside [0, 1]; beyond this it is on another scale, most often 0..255.
LARGEST_PLAUSIBLE = 8.0
LEAST_SHARE = 1 / 8  # share of the range: a smaller one means that the data have another range, e.g. 12 bits in 16
RANGELESS = "; give the intensities that become 0 and 1 (--intensities LOW HIGH)"

# What a header may claim before anything is allocated. A byte of a file unpacks to some thousand at most (deflate 1032,
# LZW 2730, single bits 8 times that); below CERTAIN_BYTES it does not matter: flat pictures compress to nothing.
CERTAIN_BYTES, LARGEST_EXPANSION, MOST_BYTES = 2**26, 8300, 2**32

PART = 2**20  # numbers converted at once


class UnreadableImage(ValueError):
    """One file that could not be read as an image: its `path`, and the `reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Errors of the block, which concern this file only: a decoder that is fed garbage may raise anything."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(Path(path), one_line(error)) from error


@dataclass(frozen=True)
class Encoding:
    """How pixels are stored, so that a result is stored alike."""

    suffix: str  # names the format: a suffix of `formats.FORMATS`, whatever the file is called
    dtype: str  # numpy's name for the type of the stored numbers
    is_plane: bool = False  # arrays only: stored as (H, W), not (C, H, W)
    intensities: Range | None = None  # the stored numbers that become 0 and 1; None is what the type says
    kept: dict = field(default_factory=dict, repr=False)  # profile, EXIF, resolution, a whole DICOM file

    @property
    def range(self) -> Range:
        """(low, high); ValueError for a type that does not say."""
        known = self.intensities or range_of(np.dtype(self.dtype))
        if known is None:
            raise ValueError(f"it holds {np.dtype(self.dtype).name} numbers, of no known range{RANGELESS}")
        return known

    def to_unit(self, stored: np.ndarray) -> np.ndarray:
        """float32 pixels of stored numbers; its 24 bits tell 65536 levels apart."""
        low, high = self.range
        pixels: np.ndarray = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
        if low:
            pixels -= low
        if high - low != 1:
            pixels /= high - low
        return pixels.astype(np.float32, copy=False)

    def to_stored(self, pixels: Tensor) -> np.ndarray:
        """Numbers to be stored, (C, H, W), or (H, W) for a plane; made in parts, so that large images fit twice."""
        whole, (low, high), dtype = pixels.detach().cpu().numpy(), self.range, np.dtype(self.dtype)
        stored = np.empty(whole.shape, dtype)
        flat, target = whole.reshape(-1), stored.reshape(-1)
        for start in range(0, flat.size, PART):
            values: np.ndarray = flat[start : start + PART].astype(np.float32 if dtype.itemsize <= 2 else np.float64)
            values *= high - low
            if low:
                values += low
            if dtype.kind != "f":
                limits = np.iinfo(dtype)
                most = float(limits.max) if dtype.itemsize < 8 else np.nextafter(float(limits.max), 0)
                np.clip(np.rint(values, out=values), float(limits.min), most, out=values)
            target[start : start + PART] = values
        return stored[0] if self.is_plane else stored


@dataclass(frozen=True)
class Image:
    """Pixels (C, H, W), float32, with C = 1 or 3; how they were stored; what was changed in reading."""

    path: Path
    pixels: Tensor
    encoding: Encoding
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """Numbers of a file, (C, H, W) with C = 1 or 3, as they are stored; how; what was changed in reading."""

    values: np.ndarray
    encoding: Encoding
    notes: tuple[str, ...] = ()

    @property
    def plane(self) -> np.ndarray:
        """The one plane (H, W) of a measurement; ValueError for what is none."""
        if self.values.dtype.kind != "f" or len(self.values) > 1:
            raise ValueError("measurements must be floating-point: .npy, .npz, .h5, or float TIFF")
        return self.values[0]

    def within(self, intensities: Range | None) -> "Stored":
        """With the intensities that become 0 and 1 as the caller says, of values after a rescale; None: as they are."""
        if intensities is None:
            return self
        own, (slope, intercept) = self.encoding.intensities, self.encoding.kept.get("rescale", (1.0, 0.0))
        first, last = ((value - intercept) / slope for value in intensities)
        if own is not None and (own[0] > own[1]) != (slope < 0):  # a negative stays one
            first, last = last, first
        return replace(self, encoding=replace(self.encoding, intensities=(first, last)))

    def image(self, path: Path) -> Image:
        """As float32 pixels; UnreadableImage for NaN or infinite values, or a range that is unknown or far off."""
        with reading(path):
            pixels, notes = self.encoding.to_unit(self.values), self.notes
            low, high = self.encoding.range
            ends = self.values.min(), self.values.max()  # on bytes faster than on their pixels
            least, most = sorted((float(end) - low) / (high - low) for end in ends)
            if not np.isfinite(most - least):
                broken = np.count_nonzero(~np.isfinite(pixels))
                raise ValueError(f"it holds {broken} NaN or infinite values of {pixels.size}")
            if (largest := max(most, -least)) > LARGEST_PLAUSIBLE:
                raise ValueError(f"intensities must be about [0, 1], got {largest:g}{RANGELESS}")
        if 0 < most - least < LEAST_SHARE:
            notes += (f"uses {100 * (most - least):.2g} % of its range{RANGELESS}",)
        return Image(path, torch.from_numpy(pixels), self.encoding, notes)


def from_array(stored: np.ndarray) -> Stored:
    """The image in an array (H, W), (1, H, W) or (3, H, W) of any real type; ValueError for others."""
    if stored.dtype.kind not in "fiu":
        raise ValueError(f"dtype must be a floating-point or integer type, got {stored.dtype}")
    is_plane, native = stored.ndim == 2, stored.dtype.newbyteorder("=")
    values = stored[None] if is_plane else stored
    if values.ndim != 3 or values.shape[0] not in (1, 3) or values.size == 0:
        raise ValueError(f"shape must be (H, W), (1, H, W) or (3, H, W), got {stored.shape}")
    encoding = Encoding(".npy", stored.dtype.name if stored.dtype.isnative else stored.dtype.str, is_plane)
    return Stored(values.astype(native, copy=False), encoding)


def range_of(dtype: np.dtype) -> Range | None:
    """The numbers of a type that are 0 and 1, where it says so."""
    if dtype.kind == "f":
        return 0.0, 1.0
    return (0.0, float(np.iinfo(dtype).max)) if dtype.kind == "u" and dtype.itemsize <= 2 else None


def check_size(claimed: int, stored: int) -> None:
    """ValueError for a header that claims more bytes than `stored` ones can hold, before they are allocated."""
    if claimed > MOST_BYTES or (claimed > CERTAIN_BYTES and claimed > LARGEST_EXPANSION * stored):
        raise ValueError(f"its header claims {claimed} bytes, which its {stored} cannot hold: damaged or hostile")


def version_of(path: Path) -> tuple[int, ...]:
    """Differs where a file has been written anew: what is known of it is forgotten then."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
