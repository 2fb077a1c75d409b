"""The one table of image formats: what they are called, how they begin, who reads and writes them.

Training and jobs read by it, so both see the same numbers. The content of a file decides, then its suffix. Formats of
many images are in containers.py.
"""

import functools
import io
import os
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
NPY_MAGIC = b"\x93NUMPY"
# numpy reads the header of an array as a Python literal, and the parser of Python 3.11 counts its depth for all threads
# together: one that is interrupted by another now and then takes a sound header for a broken one.
HEADER_LOCK = threading.RLock()


@dataclass(frozen=True)
class Format:
    """A row of the table."""

    suffixes: tuple[str, ...]  # the first one names it
    begins: Callable[[bytes], bool]  # whether a file that begins with these bytes is one
    read: Callable[[bytes], Stored]  # whatever it raises concerns this file only
    write: Callable[[np.ndarray, Encoding], bytes]  # of (C, H, W) or (H, W) as stored


def _picture(plugin: str, begins: Callable[[bytes], bool], *suffixes: str) -> Format:
    read = functools.partial(pictures.read, suffix=suffixes[0], plugin=plugin)
    return Format(suffixes, begins, read, functools.partial(pictures.write, plugin=plugin))


def _begins(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


def _is_dicom(head: bytes) -> bool:
    """With its preamble, or from the first entry on: of group 2 or 8, with a type or a short length."""
    bare = head[:1] in (b"\2", b"\x08") and head[1:2] == head[3:4] == b"\0"
    return head[128:132] == b"DICM" or (bare and (head[4:6].isalpha() or head[6:8] == b"\0\0"))


FORMATS = (
    _picture("PNG", _begins(b"\x89PNG\r\n\x1a\n"), ".png"),
    _picture("JPEG", _begins(b"\xff\xd8\xff"), ".jpg", ".jpeg", ".mpo"),
    _picture("BMP", _begins(b"BM"), ".bmp"),
    _picture("WEBP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", ".webp"),
    _picture("JPEG2000", _begins(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), ".jp2", ".j2k", ".jpx", ".j2c"),
    _picture(
        "PPM", lambda h: h[:1] == b"P" and h[1:2] in b"123456f" and h[2:3].isspace(), ".pgm", ".ppm", ".pnm", ".pbm"
    ),
    Format((".tif", ".tiff"), _begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.read, tiff.write),
    Format((".npy",), _begins(NPY_MAGIC), lambda data: from_array(from_npy(data)), lambda a, _: to_npy(a)),
    Format((".dcm", ".dicom", ".ima"), _is_dicom, dicom.read, dicom.write),
)
BY_SUFFIX = {suffix: row for row in FORMATS for suffix in row.suffixes}
DICOM = BY_SUFFIX[".dcm"]


def format_of(head: bytes, path: Path) -> Format | None:
    """The row for a file that begins with `head`; None for one that is no image by content or name."""
    if head[128:132] == b"DICM":  # whatever stands before: such a file may be a TIFF at the same time
        return DICOM
    by_name = BY_SUFFIX.get(path.suffix.lower())
    rows = (row for row in FORMATS if row.begins(head) and (row is not DICOM or by_name in (None, DICOM)))
    return next(rows, by_name)


def is_image(path: Path) -> bool:
    """Whether a file in a folder is taken for an image: by its suffix, or it has none and is DICOM."""
    suffix = path.suffix.lower()
    if suffix in BY_SUFFIX:
        return True
    return not any(map(str.isalpha, suffix)) and _is_dicom(head_of(path))  # .5 as in 1.2.840.5


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


def decode_stored(data: bytes, path: Path, intensities: Range | None = None) -> Stored:
    """What the bytes of a file hold, as stored; UnreadableImage for whatever is wrong with them, see `read_image`."""
    with reading(path):
        row = format_of(data[:HEAD_BYTES], path)
        if row is None:
            raise ValueError(f"suffix must be one of {', '.join(BY_SUFFIX)}, got {path.suffix!r}")
        if not data:
            raise ValueError("it is empty (0 bytes)")
        if row is not DICOM and not row.begins(data[:HEAD_BYTES]):
            raise ValueError("cannot identify an image in it: damaged, or of another format")
        stored = row.read(data).within(intensities)
        if path.suffix.lower() in BY_SUFFIX and path.suffix.lower() not in row.suffixes:
            stored = replace(stored, notes=(*stored.notes, f"is {row.suffixes[0]} by its content"))
        return stored


def decode_array(data: bytes, path: Path) -> np.ndarray:
    """A measurement in the bytes of a .npy or float TIFF file; UnreadableImage for another file."""
    with reading(path):
        if format_of(data[:HEAD_BYTES], path) is BY_SUFFIX[".npy"]:
            return from_npy(data)
        return decode_stored(data, path).plane


def decode(data: bytes, path: Path, intensities: Range | None = None) -> Image:
    """The image in the bytes of a file; UnreadableImage for whatever is wrong with them, see `read_image`."""
    return decode_stored(data, path, intensities).image(path)


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

    Returns
    -------
    Image

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
    """Write an image so that `path` is either absent or complete, even after a power cut.

    Parameters
    ----------
    path : path
        Where to; its suffix decides nothing, `encoding` does.
    pixels : Tensor, shape (C, H, W)
        Clipped to what the type holds where integers are stored.
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
            shape, is_fortran, dtype = read(file)
    except (tokenize.TokenError, SyntaxError) as error:  # numpy hands on what the parser thinks of a broken header
        raise ValueError(f"the header of the array is damaged: {error}") from error
    return shape, is_fortran, dtype


def from_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file; nothing is allocated on the word of its header."""
    file = io.BytesIO(data)
    shape, is_fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    flat = np.frombuffer(data, np.uint8, offset=file.tell())
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if flat.size < wanted:
        raise ValueError(f"its header announces {wanted} bytes, it holds {flat.size}")
    array = flat[:wanted].view(dtype) if wanted else np.zeros(0, dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
