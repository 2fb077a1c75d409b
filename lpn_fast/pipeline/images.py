"""Image files: read them to [0, 1], write results in the format and bit depth they came in.

    pixels = stored / levels,     stored = round(levels * clip(pixels, 0, 1)),     levels = 255 or 65535

so reading and writing an unchanged image gives back the stored values. Floating-point files (.npy, float
TIFF) are neither scaled nor clipped, unless an intensity range (low, high) is given: then
pixels = (stored - low) / (high - low), and back. DICOM files have a module of their own, dicom.py.

Nothing is lost in silence. Alpha is dropped with a note. Pillow would cut 16-bit colour to 8 bits without
a word, so such files are refused, as are files of several pages.
"""

import io
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import atomic
from ..data.readers import LARGEST_PLAUSIBLE, PICTURE_SUFFIXES
from . import dicom, png

IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ".npy", ".dcm")
# JPEG is the one lossy format: best quality short of the useless, and colour at full resolution.
SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}}

# How a stored mode is read. Whatever is not here (CMYK, Lab, ...) becomes RGB, with a note.
GRAY_MODES = {"L": "L", "LA": "L", "1": "L", "I;16": "I;16", "I;16B": "I;16", "I;16L": "I;16", "F": "F"}
LEVELS = {"L": 255, "RGB": 255, "I;16": 65535, "uint8": 255, "uint16": 65535}
ORIENTATION = 0x0112  # the one EXIF tag that changes how pixels are shown, so it travels with them

# numpy reads the header of an array as a Python literal, and the parser of Python 3.11 counts its depth for all threads
# together: one that is interrupted by another now and then takes a sound header for a broken one.
HEADER_LOCK = threading.RLock()

Range = tuple[float, float]  # the stored intensities that become 0 and 1


class UnreadableImage(ValueError):
    """One file that could not be read as an image, and why.

    Attributes
    ----------
    path : Path
    reason : str
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Encoding:
    """How pixels are stored, so that a result is stored alike.

    Attributes
    ----------
    suffix : str
        File suffix in lower case, one of IMAGE_SUFFIXES.
    kind : str
        Pillow mode ("L", "I;16", "RGB", "F") or, for .npy, the dtype.
    is_plane : bool
        For .npy: stored as (H, W), not (C, H, W).
    orientation : int or None
        EXIF orientation, if the file has one.
    icc_profile : bytes or None
        Colour profile, if the file has one.
    intensities : (low, high) or None
        The stored intensities that became 0 and 1, for floating-point and DICOM files.
    template : bytes or None
        For DICOM: the file itself, whose other entries the result keeps.
    """

    suffix: str
    kind: str
    is_plane: bool = False
    orientation: int | None = None
    icc_profile: bytes | None = None
    intensities: Range | None = None
    template: bytes | None = field(default=None, repr=False)

    @property
    def levels(self) -> int | None:
        """Largest stored integer; None for floating point."""
        return LEVELS.get(self.kind)


@dataclass(frozen=True)
class Image:
    """Pixels (C, H, W), float32, with C = 1 or 3; how they were stored; what was changed in reading."""

    path: Path
    pixels: Tensor
    encoding: Encoding
    notes: tuple[str, ...] = ()


def read_image(path: str | Path, intensities: Range | None = None) -> Image:
    """One image file as float32 in [0, 1] (integer files) or as stored (floating-point files).

    Parameters
    ----------
    path : path
        PNG, JPEG, TIFF or BMP; .npy of shape (H, W), (1, H, W) or (3, H, W); or DICOM of one gray frame.
    intensities : (low, high), optional
        The stored intensities that become 0 and 1, for floating-point and DICOM files.

    Returns
    -------
    Image

    Raises
    ------
    UnreadableImage
        Missing, truncated or foreign file, 16-bit colour, several pages, NaN or infinite values, or
        values far from [0, 1]; the message names the file and says what to do.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npy"
    >>> _ = write_image(path, torch.rand(3, 4, 5), Encoding(".npy", "float32"))
    >>> read_image(path).pixels.shape
    torch.Size([3, 4, 5])
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(path, one_line(error)) from error
    return decode(data, path, intensities)


def decode(data: bytes, path: Path, intensities: Range | None = None) -> Image:
    """The image in the bytes of a file, whose suffix says how to read them; see `read_image`.

    Raises
    ------
    UnreadableImage
        Whatever is wrong with the bytes.
    """
    suffix = path.suffix.lower()
    try:
        if suffix not in IMAGE_SUFFIXES:
            raise ValueError(f"suffix must be one of {', '.join(IMAGE_SUFFIXES)}, got {path.suffix!r}")
        if not data:
            raise ValueError("it is empty (0 bytes)")
        if suffix == ".npy":
            with HEADER_LOCK:
                stored = np.load(io.BytesIO(data), allow_pickle=False)
            image = from_array(stored, path, intensities)
        elif suffix == ".dcm":
            pixels, kind, used = dicom.decode(data, intensities)
            image = Image(path, torch.from_numpy(pixels), Encoding(".dcm", kind, intensities=used, template=data))
        else:
            pixels, encoding, notes = _read_picture(data, suffix)
            image = _in_range(path, pixels, encoding, intensities, notes)
        if suffix == ".dcm" or image.encoding.levels is None:  # other integers are within [0, 1]
            check_values(image.pixels)
    except PIL.UnidentifiedImageError as error:  # its own words name an object in memory
        raise UnreadableImage(path, "cannot identify a picture in it: damaged, or of another format") from error
    except Exception as error:  # a decoder that is fed garbage may raise anything; it concerns this file only
        raise UnreadableImage(path, one_line(error)) from error
    return image


def from_array(stored: np.ndarray, path: Path, intensities: Range | None = None) -> Image:
    """The image in an array (H, W), (1, H, W) or (3, H, W), floating point, uint8 or uint16.

    Raises
    ------
    ValueError
        Another shape or dtype.
    """
    if stored.dtype.kind != "f" and stored.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"dtype must be floating point, uint8 or uint16, got {stored.dtype}")
    is_plane = stored.ndim == 2
    pixels = stored[None] if is_plane else stored
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"shape must be (H, W), (1, H, W) or (3, H, W), got {stored.shape}")
    return _in_range(path, pixels, Encoding(".npy", stored.dtype.name, is_plane), intensities, ())


def encode(pixels: Tensor, encoding: Encoding) -> bytes:
    """The bytes of a file that holds the pixels (C, H, W) as `encoding` says."""
    if encoding.suffix == ".dcm":
        return dicom.encode(pixels.detach().cpu().double().numpy(), encoding.template, encoding.intensities)
    buffer, stored = io.BytesIO(), to_array(pixels, encoding)
    if encoding.suffix == ".npy":
        np.save(buffer, stored)
    else:
        _save_picture(buffer, stored, encoding)
    return buffer.getvalue()


def to_array(pixels: Tensor, encoding: Encoding) -> np.ndarray:
    """The pixels (C, H, W) as stored: (C, H, W), or (H, W) for a plane."""
    values, levels = pixels.detach().cpu().numpy(), encoding.levels
    if levels is not None:  # float32 tells 65536 levels apart
        values = values.astype(np.float32, copy=False).clip(0, 1)
        values *= np.float32(levels)
        values = np.rint(values, out=values).astype(np.uint8 if levels == 255 else np.uint16)
    else:
        values = values.astype(np.float64)
        if encoding.intensities is not None:
            low, high = encoding.intensities
            values = low + (high - low) * values
        values = values.astype(np.float32 if encoding.kind == "F" else encoding.kind)
    return values[0] if encoding.is_plane else values


def write_image(path: str | Path, pixels: Tensor, encoding: Encoding) -> Path:
    """Write an image so that `path` is either absent or complete, even after a power cut.

    Parameters
    ----------
    path : path
        Where to; its suffix decides nothing, `encoding` does.
    pixels : Tensor, shape (C, H, W)
        Clipped to [0, 1] where integers are stored.
    encoding : Encoding

    Returns
    -------
    Path

    Raises
    ------
    OSError
        The folder cannot be written to, or is full.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "gray.png"
    >>> write_image(path, torch.full((1, 8, 8), 0.5), Encoding(".png", "I;16")).name
    'gray.png'
    """
    return atomic.write(Path(path), encode(pixels, encoding))


def _read_picture(data: bytes, suffix: str) -> tuple[np.ndarray, Encoding, tuple[str, ...]]:
    """((C, H, W) as stored, encoding, notes)."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ValueError(f"it holds {picture.n_frames} pages; split it into one file per page")
        if picture.mode == "I":
            raise ValueError("it holds 32-bit integers, of unknown range; convert it to .npy")
        if picture.mode not in GRAY_MODES and "16" in str([tile.args for tile in picture.tile]):
            raise ValueError("it holds 16-bit colour, which Pillow cuts to 8 bits; convert it to .npy")
        stored_mode, info = picture.mode, dict(picture.info)
        orientation = picture.getexif().get(ORIENTATION)
        picture.load()
        has_alpha = stored_mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in info
        # convert() would clip the first four to 8 bits, and copy the others
        if stored_mode in ("I;16", "I;16B", "I;16L", "F", "L", "RGB"):
            pixels = np.asarray(picture)
        else:
            pixels = np.asarray(picture.convert(GRAY_MODES.get(stored_mode, "RGB")))
    kind = GRAY_MODES.get(stored_mode, "RGB")
    notes = ("alpha channel dropped",) if has_alpha else ()
    if stored_mode == "1" or (stored_mode not in GRAY_MODES and not stored_mode.startswith("RGB")):
        notes += (f"converted from mode {stored_mode} to {kind}",)
    encoding = Encoding(suffix, kind, False, orientation, info.get("icc_profile"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), encoding, notes


def _save_picture(file, stored: np.ndarray, encoding: Encoding) -> None:
    planes = stored[0] if stored.shape[0] == 1 else stored.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    name = PIL.Image.registered_extensions()[encoding.suffix]
    exif = PIL.Image.Exif()
    if encoding.orientation:
        exif[ORIENTATION] = encoding.orientation
    if name == "PNG":
        file.write(png.encode(planes, encoding.icc_profile, exif.tobytes() if encoding.orientation else None))
        return
    options = dict(SAVE_OPTIONS.get(name, {}))
    if encoding.icc_profile:
        options["icc_profile"] = encoding.icc_profile
    if encoding.orientation and name != "BMP":
        options["exif"] = exif
    PIL.Image.fromarray(np.ascontiguousarray(planes)).save(file, format=name, **options)


def _in_range(path: Path, stored: np.ndarray, encoding: Encoding, intensities: Range | None, notes) -> Image:
    """(C, H, W) as stored -> float32 in [0, 1]; its 24 bits tell 65536 levels apart."""
    pixels = stored.astype(np.float32)
    if encoding.levels is not None:
        pixels /= np.float32(encoding.levels)
    elif intensities is not None:
        low, high = intensities
        pixels = ((stored.astype(np.float64) - low) / (high - low)).astype(np.float32)
        encoding = replace(encoding, intensities=intensities)
    return Image(path, torch.from_numpy(pixels), encoding, notes)


def check_values(pixels: Tensor) -> None:
    broken = int((~pixels.isfinite()).sum())
    if broken:
        raise ValueError(f"it holds {broken} NaN or infinite values of {pixels.numel()}")
    largest = float(pixels.abs().max())
    if largest > LARGEST_PLAUSIBLE:
        raise ValueError(
            f"intensities must be about [0, 1], got {largest:g}; divide by the full range or give the intensity range"
        )


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
