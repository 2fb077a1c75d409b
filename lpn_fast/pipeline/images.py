"""Image files: find them, read them to [0, 1], write results in the format and bit depth they came in.

    pixels = stored / levels,     stored = round(levels * clip(pixels, 0, 1)),     levels = 255 or 65535

so reading and writing an unchanged image gives back the stored values. Floating-point files (.npy, float
TIFF) are neither scaled nor clipped.

Nothing is lost in silence. Alpha is dropped with a note. Pillow would cut 16-bit colour to 8 bits without
a word, so such files are refused, as are files of several pages.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

PILLOW_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
SUFFIXES = (*PILLOW_FORMATS, ".npy")
# JPEG is the one lossy format: best quality short of the useless, and colour at full resolution.
SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}}

# How a stored mode is read. Whatever is not here (CMYK, Lab, ...) becomes RGB, with a note.
GRAY_MODES = {"L": "L", "LA": "L", "1": "L", "I;16": "I;16", "I;16B": "I;16", "I;16L": "I;16", "F": "F"}
LEVELS = {"L": 255, "RGB": 255, "I;16": 65535, "uint8": 255, "uint16": 65535}
ORIENTATION = 0x0112  # the one EXIF tag that changes how pixels are shown, so it travels with them

# Noise takes a measurement somewhat outside [0, 1]; beyond this it is on another scale, most often 0..255,
# and a result is no image any more.
LARGEST_PLAUSIBLE = 8.0


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
        File suffix in lower case, one of SUFFIXES.
    kind : str
        Pillow mode ("L", "I;16", "RGB", "F") or, for .npy, the dtype.
    is_plane : bool
        For .npy: stored as (H, W), not (C, H, W).
    orientation : int or None
        EXIF orientation, if the file has one.
    icc_profile : bytes or None
        Colour profile, if the file has one.
    """

    suffix: str
    kind: str
    is_plane: bool = False
    orientation: int | None = None
    icc_profile: bytes | None = None

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


def find_images(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image files named by files, folders and glob patterns, in a reproducible order.

    A folder stands for the image files directly in it, without hidden ones. A file that is named is
    returned whatever it is called: if it is no image, reading it will say so.

    Parameters
    ----------
    patterns : path or iterable of paths
        Each an existing file or folder, or a pattern with ``*``, ``?`` or ``[...]`` (``**`` descends).

    Returns
    -------
    list of Path
        Every file once.

    Raises
    ------
    FileNotFoundError
        A file or folder that is not there, or a pattern that matches nothing.
    ValueError
        A folder without images, or no pattern at all.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_image(folder / "a.png", torch.zeros(1, 2, 2), Encoding(".png", "L"))
    >>> [path.name for path in find_images(folder)]
    ['a.png']
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    found: dict[Path, None] = {}  # a set that keeps its order
    for pattern in patterns:
        found.update(dict.fromkeys(_matches(Path(pattern))))
    if not found:
        raise ValueError("images must name at least one file, folder or pattern, got none")
    return list(found)


def read_image(path: str | Path) -> Image:
    """One image file as float32 in [0, 1] (integer files) or as stored (floating-point files).

    Parameters
    ----------
    path : path
        PNG, JPEG, TIFF or BMP; or .npy of shape (H, W), (1, H, W) or (3, H, W).

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
        if path.suffix.lower() == ".npy":
            pixels, encoding, notes = _read_array(path)
        elif path.suffix.lower() in PILLOW_FORMATS:
            pixels, encoding, notes = _read_picture(path)
        else:
            raise ValueError(f"suffix must be one of {', '.join(SUFFIXES)}, got {path.suffix!r}")
        _check_values(pixels)
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImage(path, _one_line(error)) from error
    return Image(path, torch.from_numpy(pixels), encoding, notes)


def write_image(
    path: str | Path, pixels: Tensor, encoding: Encoding, before_rename: Callable[[], None] | None = None
) -> Path:
    """Write an image so that ``path`` is either absent or complete, even after a power cut.

    Parameters
    ----------
    path : path
        Where to; its suffix decides nothing, ``encoding`` does.
    pixels : Tensor, shape (C, H, W)
        Clipped to [0, 1] where integers are stored.
    encoding : Encoding
    before_rename : callable, optional
        Called once the file is complete on disk but does not bear its name yet.

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
    path = Path(path)
    stored = _stored(pixels, encoding)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            if encoding.suffix == ".npy":
                np.save(file, stored)
            else:
                _save_picture(file, stored, encoding)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _matches(pattern: Path) -> list[Path]:
    if pattern.is_file():
        return [pattern]
    if pattern.is_dir():
        visible = (path for path in pattern.iterdir() if not path.name.startswith("."))
        files = sorted(path for path in visible if path.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"{pattern} must hold images ({', '.join(SUFFIXES)}), found none")
        return files
    if not glob.has_magic(str(pattern)):
        raise FileNotFoundError(f"there is no file or folder {pattern}")
    files = sorted(p for p in map(Path, glob.glob(str(pattern), recursive=True)) if p.is_file())
    if not files:
        raise FileNotFoundError(f"no file matches {str(pattern)!r}")
    return files


def _read_array(path: Path) -> tuple[np.ndarray, Encoding, tuple[str, ...]]:
    stored = np.load(path, allow_pickle=False)
    if stored.dtype.kind != "f" and stored.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"dtype must be floating point, uint8 or uint16, got {stored.dtype}")
    is_plane = stored.ndim == 2
    pixels = stored[None] if is_plane else stored
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"shape must be (H, W), (1, H, W) or (3, H, W), got {stored.shape}")
    encoding = Encoding(".npy", stored.dtype.name, is_plane)
    return _scaled(pixels, encoding), encoding, ()


def _read_picture(path: Path) -> tuple[np.ndarray, Encoding, tuple[str, ...]]:
    with PIL.Image.open(path) as picture:
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
        if stored_mode in ("I;16", "I;16B", "I;16L", "F"):  # convert() would clip these to 8 bits
            pixels = np.asarray(picture)
        else:
            pixels = np.asarray(picture.convert(GRAY_MODES.get(stored_mode, "RGB")))
    kind = GRAY_MODES.get(stored_mode, "RGB")
    notes = ("alpha channel dropped",) if has_alpha else ()
    if stored_mode == "1" or (stored_mode not in GRAY_MODES and not stored_mode.startswith("RGB")):
        notes += (f"converted from mode {stored_mode} to {kind}",)
    encoding = Encoding(path.suffix.lower(), kind, False, orientation, info.get("icc_profile"))
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # (C, H, W)
    return _scaled(planes, encoding), encoding, notes


def _save_picture(file, stored: np.ndarray, encoding: Encoding) -> None:
    planes = stored[0] if stored.shape[0] == 1 else stored.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    name = PILLOW_FORMATS[encoding.suffix]
    options = dict(SAVE_OPTIONS.get(name, {}))
    if encoding.icc_profile:
        options["icc_profile"] = encoding.icc_profile
    if encoding.orientation and name != "BMP":
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = encoding.orientation
        options["exif"] = exif
    PIL.Image.fromarray(np.ascontiguousarray(planes)).save(file, format=name, **options)


def _scaled(stored: np.ndarray, encoding: Encoding) -> np.ndarray:
    """(C, H, W) as stored -> float32 in [0, 1]; its 24 bits tell 65536 levels apart."""
    levels = encoding.levels
    pixels = stored.astype(np.float32)
    return pixels if levels is None else pixels / np.float32(levels)


def _stored(pixels: Tensor, encoding: Encoding) -> np.ndarray:
    values = pixels.detach().cpu().double().numpy()  # (C, H, W)
    levels = encoding.levels
    if levels is None:
        values = values.astype(np.float32 if encoding.kind == "F" else encoding.kind)
    else:
        values = np.rint(levels * values.clip(0, 1)).astype(np.uint8 if levels == 255 else np.uint16)
    return values[0] if encoding.is_plane else values


def _check_values(pixels: np.ndarray) -> None:
    broken = int(np.count_nonzero(~np.isfinite(pixels)))
    if broken:
        raise ValueError(f"it holds {broken} NaN or infinite values of {pixels.size}")
    largest = float(np.abs(pixels).max())
    if largest > LARGEST_PLAUSIBLE:
        raise ValueError(f"intensities must be about [0, 1], got {largest:g}; divide by the full range")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
