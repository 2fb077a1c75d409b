"""PNG files, written in a fraction of the time that a general writer takes.

    stored row of bytes = x - floor((left + above) / 2)   mod 256,      then zlib's Z_RLE code of the bytes

A general writer tries five filters per row, searches for strings, which photographs do not repeat, and keeps Python's
lock meanwhile, so that the solver waits. One filter and zlib's run-length strategy, which codes everything but runs as
single bytes, make files of the same size within a few per cent (tests/test_io_png.py), and let other threads run.
"""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, COLOUR = 0, 2  # colour types of the header
AVERAGE = 3  # the filter
PART_BYTES = 2**20  # filtered at once
METRES_PER_INCH = 0.0254
EXIF_MARK = b"Exif\0\0"  # may precede the tags, as in JPEG, and does not in PNG


def encode(stored: np.ndarray, icc_profile: bytes = b"", exif: bytes = b"", dpi: tuple[float, ...] = ()) -> bytes:
    """The bytes of a PNG file of an array (H, W) or (H, W, 3), uint8 or uint16; `dpi` is across and down."""
    height, width = stored.shape[:2]
    depth, kind = 8 * stored.itemsize, GRAY if stored.ndim == 2 else COLOUR
    parts = [SIGNATURE, chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if icc_profile:
        parts.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
    if dpi:
        per_metre = (min(max(round(value / METRES_PER_INCH), 0), 2**31 - 1) for value in dpi)
        parts.append(chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if exif:
        parts.append(chunk(b"eXIf", exif.removeprefix(EXIF_MARK)))
    parts += [chunk(b"IDAT", _compressed(stored)), chunk(b"IEND", b"")]
    return b"".join(parts)


def _compressed(stored: np.ndarray) -> bytes:
    """Of all rows, filtered and coded some at a time."""
    deflate = zlib.compressobj(memLevel=9, strategy=zlib.Z_RLE)
    step = max(1, PART_BYTES // (stored[:1].nbytes or 1))
    parts = []
    for top in range(0, len(stored), step):
        before = max(0, top - 1)  # the row above the first one belongs to it
        parts.append(deflate.compress(_filtered(stored[before : top + step])[top - before :].data))
    return b"".join([*parts, deflate.flush()])


def _filtered(stored: np.ndarray) -> np.ndarray:
    """(H, 1 + bytes per row): the filter's number, then what it leaves; 16 bits have their high byte first."""
    height, width = stored.shape[:2]
    rows = np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder(">"), copy=False))
    rows = rows.reshape(height, -1).view(np.uint8)
    pixel = rows.shape[1] // width  # bytes of one
    left, above = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:], above[1:] = rows[:, :-pixel], rows[:-1]
    mean = (left & above) + ((left ^ above) >> 1)  # floor((left + above) / 2) without a ninth bit
    out = np.empty((height, 1 + rows.shape[1]), np.uint8)
    out[:, 0] = AVERAGE
    np.subtract(rows, mean, out=out[:, 1:])
    return out


def chunk(name: bytes, data: bytes) -> bytes:
    """A part of a PNG file, with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
