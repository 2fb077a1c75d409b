"""The one table of image formats: what they are called, how they begin, who reads and writes them.

Training and jobs read by it, so both see the same numbers. The content of a file decides, then its suffix. Formats of
many images are in containers.py.
"""

import functools
import io
import math
import os
import re
import stat
import threading
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from .. import atomic
from . import dicom, pictures, tiff
from .image import Encoding, Image, Range, Stored, from_array, reading

HEAD_BYTES = 144
# numpy reads the header of an array as a Python literal, and the parser of Python 3.11 counts its depth for all threads
# together: one that is interrupted by another now and then takes a sound header for a broken one.
HEADER_LOCK = threading.RLock()


@dataclass(frozen=True)
class Format:
    """A row of the table."""

    suffixes: tuple[str, ...]  # the first one names it
    start: bytes  # a regular expression
    read: Callable[[bytes], Stored]  # whatever it raises concerns this file only
    write: Callable[[np.ndarray, Encoding], bytes]  # of (C, H, W) or (H, W) as stored

    def begins(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes is one."""
        return re.match(self.start, head, re.DOTALL) is not None


def _picture(plugin: str, start: bytes, *suffixes: str) -> Format:
    read = functools.partial(pictures.read, suffix=suffixes[0], plugin=plugin)
    return Format(suffixes, start, read, functools.partial(pictures.write, plugin=plugin))


# DICOM with its preamble, or from the first entry on: of group 2 or 8, with a type or a short length
DICOM_START = rb".{128}DICM|[\x02\x08]\0.\0([A-Za-z]{2}|..\0\0)"
FORMATS = (
    _picture("PNG", rb"\x89PNG\r\n\x1a\n", ".png"),
    _picture("JPEG", rb"\xff\xd8\xff", ".jpg", ".jpeg", ".mpo"),
    _picture("BMP", rb"BM", ".bmp"),
    _picture("WEBP", rb"RIFF.{4}WEBP", ".webp"),
    _picture("JPEG2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", ".jp2", ".j2k", ".jpx", ".j2c"),
    _picture("PPM", rb"P[1-6f]\s", ".pgm", ".ppm", ".pnm", ".pbm"),
    Format((".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", tiff.read, tiff.write),
    Format((".npy",), rb"\x93NUMPY", lambda data: from_array(from_npy(data)), lambda a, _: to_npy(a)),
    Format((".dcm", ".dicom", ".ima"), DICOM_START, dicom.read, dicom.write),
)
BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}
DICOM = BY_SUFFIX[".dcm"]


def read_file(path: Path, most: int = -1) -> bytes:
    """The bytes of a regular file; OSError for a pipe or a device, which would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        return file.read(most)


def head_of(path: Path) -> bytes:
    """The first bytes of a file; none of one that cannot be read."""
    try:
        return read_file(path, HEAD_BYTES)
    except OSError:
        return b""


def decode_stored(data: bytes, path: Path) -> Stored:
    """What the bytes of a file hold, as stored; UnreadableImage for whatever is wrong with them, see `read_image`."""
    with reading(path):
        named = BY_SUFFIX.get(path.suffix.lower())
        rows = (row for row in FORMATS if row.begins(data) and (row is not DICOM or named in (None, DICOM)))
        row = DICOM if data[128:132] == b"DICM" else next(rows, named)  # that may be a TIFF at the same time
        if row is None:
            raise ValueError(f"suffix must be one of {', '.join(BY_SUFFIX)}, got {path.suffix!r}")
        if not data:
            raise ValueError("it is empty (0 bytes)")
        if row is not DICOM and not row.begins(data):
            raise ValueError("cannot identify an image in it: damaged, or of another format")
        stored = row.read(data)
        if named in (None, row):
            return stored
        return replace(stored, notes=(*stored.notes, f"is {row.suffixes[0]} by its content"))


def decode_array(data: bytes, path: Path) -> np.ndarray:
    """A measurement in the bytes of a .npy or float TIFF file; UnreadableImage for another file."""
    with reading(path):
        if BY_SUFFIX[".npy"].begins(data):
            return from_npy(data)
        return decode_stored(data, path).plane


def decode(data: bytes, path: Path, intensities: Range | None = None) -> Image:
    """The image in the bytes of a file; UnreadableImage for whatever is wrong with them, see `read_image`."""
    return decode_stored(data, path).within(intensities).image(path)


def read_image(path: str | Path, intensities: Range | None = None) -> Image:
    """One image file as float32, in [0, 1] where its type says what 0 and 1 are.

    Parameters
    ----------
    path : path
        Any format of the table; arrays of shape (H, W), (1, H, W) or (3, H, W).
    intensities : (low, high), optional
        The stored numbers that become 0 and 1; of DICOM files, the values after their rescale. None: all that the
        type of unsigned integers of 8 and 16 bits expresses, 0 and 1 of floating point, -1024..3071 Hounsfield units
        of CT, all that the bits express of other DICOM. Signed and larger integers need it.

    Raises
    ------
    UnreadableImage
        Missing, truncated or foreign file, several pages, NaN or infinite values, or values far from [0, 1]; the
        message names the file and says what to do.

    Examples
    --------
    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "a.npy"
    >>> _ = write_image(path, torch.rand(3, 4, 5), Encoding(".npy", "float32"))
    >>> read_image(path).pixels.shape
    torch.Size([3, 4, 5])
    """
    path = Path(path)
    with reading(path):
        data = read_file(path)
    return decode(data, path, intensities)


def encode(pixels: Tensor, encoding: Encoding) -> bytes:
    """The bytes of a file that holds the pixels (C, H, W) as `encoding` says."""
    return BY_SUFFIX[encoding.suffix].write(encoding.to_stored(pixels), encoding)


def write_image(path: str | Path, pixels: Tensor, encoding: Encoding) -> Path:
    """Write pixels (C, H, W) so that `path` is either absent or complete, even after a power cut.

    The suffix of `path` decides nothing, `encoding` does; where that stores integers, pixels are clipped to what these
    hold. OSError says that the folder cannot be written to, or is full.

    Examples
    --------
    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "gray.png"
    >>> write_image(path, torch.full((1, 8, 8), 0.5), Encoding(".png", "uint16")).name
    'gray.png'
    """
    return atomic.write(Path(path), encode(pixels, encoding))


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether the first axis varies fastest, dtype) of a .npy file, which is left at the start of the data."""
    try:
        with HEADER_LOCK:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(file)
    except (tokenize.TokenError, SyntaxError) as error:  # numpy hands on what the parser thinks of a broken header
        raise ValueError(f"the header of the array is damaged: {error}") from error


def from_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file; nothing is allocated on the word of its header."""
    file = io.BytesIO(data)
    shape, is_fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    wanted, held = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if held < wanted:
        raise ValueError(f"its header announces {wanted} bytes, it holds {held}")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if is_fortran else "C")


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
