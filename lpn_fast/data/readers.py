"""One sample from one file: uint8, uint16 or float32 of shape (C, H, W), and an error that names the file.

    images   8-bit gray and colour (anything Pillow reads), 16-bit gray as stored
    .npy     (H, W), (1, H, W) or (3, H, W): uint8, uint16, or floating point in about [0, 1]
    DICOM    Hounsfield units, windowed to [0, 1] (ct.py)

Gray from colour is ITU-R 601 luma; colour from gray repeats the plane.
"""

import io
import tokenize
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from . import ct

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ARRAY_SUFFIXES = {".npy"}
DICOM_SUFFIXES = {".dcm", ".ima"}
SAMPLE_SUFFIXES = {*PICTURE_SUFFIXES, *ARRAY_SUFFIXES, *DICOM_SUFFIXES}

# What decoders raise on damaged bytes; numpy reads the header of an array as a Python literal, hence TokenError.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, zlib.error, tokenize.TokenError)

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
WIDE_GRAY = ("I;16", "I;16B", "I;16L", "I;16N")
# Noise takes an image somewhat outside [0, 1]; beyond this it is on another scale, most often 0..255.
LARGEST_PLAUSIBLE = 8.0


@dataclass(frozen=True)
class Reader:
    """Decodes samples of `channels` planes; DICOM values go through `window`."""

    channels: int
    window: ct.Window = ct.FULL_RANGE

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (colour), got {self.channels}")

    def __call__(self, name: str, content: bytes) -> np.ndarray:
        """The sample (C, H, W) that `content` encodes, by the suffix of `name`; ValueError with that name."""
        suffix = Path(name).suffix.lower()
        try:
            if suffix in ARRAY_SUFFIXES:
                return self.of_array(_array(content))
            if suffix in DICOM_SUFFIXES or ct.looks_like_dicom(content):
                return _planes(ct.read_dicom(content, self.window)[None], self.channels)
            return _picture(content, self.channels)
        except (*BROKEN, PIL.Image.DecompressionBombError) as error:
            kind = "array" if suffix in ARRAY_SUFFIXES else "DICOM file" if suffix in DICOM_SUFFIXES else "image"
            raise ValueError(f"{name} is not a readable {kind}: {' '.join(str(error).split())}") from error

    def of_array(self, stored: np.ndarray) -> np.ndarray:
        """The sample (C, H, W) of an array (H, W), (1, H, W) or (3, H, W); ValueError for anything else."""
        return _planes(_checked(stored), self.channels)


def _picture(content: bytes, channels: int) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(content)) as picture:
        if picture.mode in WIDE_GRAY:
            return _planes(np.asarray(picture).astype(np.uint16)[None], channels)
        if picture.mode in ("I", "F"):
            raise ValueError(f"its values have mode {picture.mode}, of unknown range; convert it to .npy")
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def _checked(stored: np.ndarray) -> np.ndarray:
    """A plane or planes as (C, H, W); ValueError for another shape or type, NaN, or values far from [0, 1]."""
    planes = stored[None] if stored.ndim == 2 else stored
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or planes.size == 0:
        raise ValueError(f"shape must be (H, W), (1, H, W) or (3, H, W), got {stored.shape}")
    if planes.dtype in (np.uint8, np.uint16):
        return planes
    if planes.dtype.kind != "f":
        raise ValueError(f"dtype must be floating point, uint8 or uint16, got {planes.dtype}")
    planes = planes.astype(np.float32)
    if not np.isfinite(planes).all():
        raise ValueError(f"it holds {np.count_nonzero(~np.isfinite(planes))} NaN or infinite values of {planes.size}")
    if np.abs(planes).max() > LARGEST_PLAUSIBLE:
        raise ValueError(f"values must be about [0, 1], got {np.abs(planes).max():g}; divide by the full range")
    return planes


def _planes(planes: np.ndarray, channels: int) -> np.ndarray:
    if len(planes) == channels:
        return planes
    if channels == 3:
        return np.repeat(planes, 3, axis=0)
    gray = np.tensordot(LUMA, planes.astype(np.float32), 1)[None]
    return gray if planes.dtype == np.float32 else np.rint(gray).astype(planes.dtype)
