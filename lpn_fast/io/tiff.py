"""TIFF: single pictures, and stacks of pages, of an ImageJ file with one directory, or of the depths of a volume.

What is declared is compared with what is there: bits, samples and their format, depth, ImageJ's `images=`, the length
of the data. `tifffile` decodes (extra [tiff], which brings imagecodecs for LZW, JPEG and others); Pillow where that is
missing, and palettes, CMYK, YCbCr and Lab, in as far as it cuts nothing.
"""

import functools
import io
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.TiffImagePlugin

from . import pictures
from .image import Encoding, Stored, check_size, one_line, version_of

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # PhotometricInterpretation
FOR_PILLOW = (3, 5, 6, 8)  # palette, inks, YCbCr, Lab
UNCOMPRESSED, SEPARATE, ALPHA = 1, 2, (1, 2)
SOFTWARE = 305
# tags that travel: make, model, orientation, software, date, artist, copyright
NAMES = (271, 272, 274, SOFTWARE, 306, 315, 33432)
INSTALL = 'pip install "lpn-fast[tiff]"'
_lock = threading.RLock()  # a file that is open is read by one thread at a time


def count(path: Path) -> int:
    """Number of pictures in it; 1 where tifffile is missing: reading says so then."""
    if _tifffile() is None:
        return 1
    with _lock:
        return math.prod(_stack(_opened(path, version_of(path)))[1])


def read(source: bytes | Path, index: int | None = None) -> Stored:
    """The picture, or number `index` of a stack, for which `source` must be a path; ValueError for what is neither."""
    if _tifffile() is None:
        try:
            return _by_pillow(source, 0, None)
        except Exception as error:  # Pillow takes for damaged what it does not know
            raise ValueError(f"{one_line(error)}; tifffile reads more: {INSTALL}") from error
    if isinstance(source, bytes):
        with _tifffile().TiffFile(io.BytesIO(source)) as tif:
            return _read(tif, source, index)
    with _lock:
        return _read(_opened(source, version_of(source)), source, index)


def write(stored: np.ndarray, encoding: Encoding) -> bytes:
    """The bytes of a file of (C, H, W)."""
    if "photometric" not in encoding.kept:
        return pictures.write(stored, encoding, "TIFF")
    buffer = io.BytesIO()
    _tifffile().imwrite(buffer, _laid_out(stored, encoding.kept), metadata=None, **encoding.kept)
    return buffer.getvalue()


def pack(source: Path, parts: Iterator[np.ndarray], first: np.ndarray, out: Path) -> None:
    """Write the results (C, H, W) of a stack, of which `first` is one, as a stack like `source`."""
    with _tifffile().TiffFile(source) as tif:
        series, leading = _stack(tif)
        page, kept = series.keyframe, _kept(tif, series.keyframe)
        if _needs_pillow(page):  # which has made gray or RGB of it, black as 0
            kept |= {"photometric": RGB if len(first) == 3 else BLACK_IS_ZERO, "planarconfig": None}
        if page.photometric in FOR_PILLOW:
            kept["iccprofile"] = None
        axes, one = series.axes[: len(leading)], _laid_out(first, kept)
        axes += {2: "YX", 3: "SYX" if kept.get("planarconfig") == SEPARATE else "YXS"}[one.ndim]
        options = kept | {"shape": (*leading, *one.shape), "dtype": first.dtype, "metadata": None}
        if tif.is_imagej and first.dtype in (np.uint8, np.uint16, np.float32):
            own = {k: v for k, v in (tif.imagej_metadata or {}).items() if isinstance(v, str | int | float | bool)}
            options |= {"imagej": True, "metadata": own | {"axes": axes}, "compression": None}
        elif tif.is_shaped or tif.is_ome:
            options |= {"ome": tif.is_ome, "metadata": {"axes": axes}}
        pages = (_laid_out(part, kept) for part in parts)
        if page.imagedepth > 1:
            tile = page.tile or (1, 16, 16)
            whole = np.stack(list(pages)).reshape(options.pop("shape"))
            _tifffile().imwrite(out, whole, **options, volumetric=True, tile=tile)
        else:
            _tifffile().imwrite(out, pages, **options)


def _tifffile():
    try:
        import tifffile
    except ImportError:
        return None
    return tifffile


@functools.lru_cache(maxsize=2)
def _opened(path: Path, version: tuple):
    """The members of a stack come one after the other and share one look at its directories."""
    return _tifffile().TiffFile(path)


def _stack(tif):
    """(the one series of pictures, its shape without that of a picture)."""
    full = [series for series in tif.series if not series.keyframe.is_reduced]
    if len(full) != 1:
        raise ValueError(f"it must hold pictures of one size and type, got {len(full)}; split it")
    (series,) = full
    axes = series.axes
    tail = next((tail for tail in ("SYX", "YXS", "YX") if axes.endswith(tail)), None)
    if tail is None:
        raise ValueError(f"its axes must end in YX, YXS or SYX, got {axes}")
    leading = series.shape[: len(axes) - len(tail)]
    check_size(math.prod(series.shape) * series.dtype.itemsize, tif.filehandle.size)
    if tif.is_imagej:
        declared = (tif.imagej_metadata or {}).get("images", 1)
        if declared > math.prod(leading):
            raise ValueError(f"it declares {declared} images and holds {math.prod(leading)}: truncated?")
    return series, leading


def _read(tif, source: bytes | Path, index: int | None) -> Stored:
    series, leading = _stack(tif)
    total, page, size = math.prod(leading), series.keyframe, tif.filehandle.size
    if index is None:
        if total > 1:
            raise ValueError(f"it holds {total} pages; give it as a file of its own, or split it")
        index = 0
    _check(page, size)
    if _needs_pillow(page):
        return _by_pillow(source, series.pages[index].index if len(series.pages) == total else 0, page)
    shape = total, *series.shape[len(leading) :]
    if series.dataoffset is not None and isinstance(source, Path):
        values = np.memmap(source, page.dtype.newbyteorder(tif.byteorder), "r", series.dataoffset, shape)[index]
    elif len(series.pages) == total:
        one = series.pages[index]
        if any(offset + length > size for offset, length in zip(one.dataoffsets, one.databytecounts, strict=True)):
            raise ValueError("it is truncated: its data begin or end behind its end")
        values = one.asarray(maxworkers=1)
    else:
        values = _whole(series).reshape(shape)[index]
    if values.ndim > 2 and page.planarconfig != SEPARATE:
        values = np.moveaxis(values, -1, 0)
    values = values[None] if values.ndim == 2 else values
    wanted = (page.samplesperpixel, page.imagelength, page.imagewidth)
    if values.shape != wanted:
        raise ValueError(f"it declares {wanted} samples, rows and columns and holds {values.shape}")
    notes: tuple[str, ...] = ()
    if len(values) in (2, 4) and page.extrasamples[-1:] and page.extrasamples[-1] in ALPHA:
        values, notes = values[:-1], ("alpha channel dropped",)
    if len(values) != (3 if page.photometric == RGB else 1):
        raise ValueError(f"it must have 1 or 3 samples per pixel besides alpha, got {len(values)}; split it")
    values = np.ascontiguousarray(values).astype(page.dtype.newbyteorder("="), copy=False)
    encoding = Encoding(".tif", values.dtype.name, kept=_kept(tif, page))
    if page.photometric == WHITE_IS_ZERO:
        encoding = replace(encoding, intensities=encoding.range[::-1])
    return Stored(values, encoding, notes)


@functools.lru_cache(maxsize=1)
def _whole(series) -> np.ndarray:
    """All pictures, which lie in one piece: the members of a stack share one decoding."""
    return series.asarray(maxworkers=1)


def _check(page, size: int) -> None:
    """ValueError for a kind of picture that is not supported, or a size that the file cannot hold."""
    if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, *FOR_PILLOW):
        name = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"it must be gray, RGB, a palette, CMYK, YCbCr or Lab, got {name}; convert it")
    if page.dtype is None or page.dtype.kind not in "fiub":
        raise ValueError(f"its samples must be real numbers of one size, got {page.bitspersample} bits")
    if page.bitspersample > 8 and page.bitspersample != 8 * page.dtype.itemsize:
        raise ValueError(f"it must have 1 to 8, 16, 32 or 64 bits per sample, got {page.bitspersample}; convert it")
    if page.size == 0:
        raise ValueError("it has no pixels")
    check_size(page.size * page.dtype.itemsize, size)


def _needs_pillow(page) -> bool:
    tags = _tifffile().TIFF
    decoded = page.compression in tags.DECOMPRESSORS and page.predictor in tags.UNPREDICTORS
    return not decoded or page.photometric in FOR_PILLOW or page.bitspersample < 8


def _by_pillow(source: bytes | Path, index: int, page) -> Stored:
    """A page as Pillow decodes it; `page` is what tifffile says of it, None without tifffile."""
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    with PIL.TiffImagePlugin.TiffImageFile(file, "") as picture:
        if page is None and getattr(picture, "n_frames", 1) > 1:
            raise ValueError("it holds several pages")
        picture.seek(index)
        tags = picture.tag_v2
        bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
        exact = picture.mode in ("F", "I;16", "I;16B", "I;16L") or (max(bits) <= 8 and picture.mode not in ("I", "F"))
        exact &= formats == ({3} if picture.mode == "F" else {1}) and tags.get(32997, 1) == 1
        exact &= tags.get(262) != WHITE_IS_ZERO or picture.mode in ("1", "L")  # Pillow turns no others round
        if not exact or (page is None and "images=" in str(tags.get(270))):
            raise ValueError(f"its {max(bits)}-bit {picture.mode} needs tifffile with imagecodecs: {INSTALL}")
        file_size = len(source) if isinstance(source, bytes) else source.stat().st_size
        check_size(math.prod(picture.size) * len(picture.getbands()) * max(1, max(bits) // 8), file_size)
        return pictures.decoded(picture, ".tif", [])


def _laid_out(stored: np.ndarray, kept: dict) -> np.ndarray:
    """(C, H, W) as tifffile takes it."""
    if stored.shape[0] == 1:
        return stored[0]
    return stored if kept.get("planarconfig") == SEPARATE else np.ascontiguousarray(stored.transpose(1, 2, 0))


def _kept(tif, page) -> dict:
    """Arguments of tifffile.imwrite that make a file like this one."""
    tags, is_described = page.tags, page.description and not (tif.is_imagej or tif.is_shaped or tif.is_ome)
    kept = {
        "photometric": int(page.photometric) if page.photometric in (WHITE_IS_ZERO, RGB) else BLACK_IS_ZERO,
        "planarconfig": SEPARATE if page.planarconfig == SEPARATE and page.samplesperpixel > 1 else None,
        "compression": None if page.compression == UNCOMPRESSED else "zlib",
        "iccprofile": page.iccprofile,
        "description": page.description.encode(errors="replace") if is_described else None,
        "software": False if SOFTWARE in tags else None,  # one of the names, else tifffile's
        "extratags": [tags[code].astuple()[:4] + (True,) for code in NAMES if code in tags],
    }
    if 282 in tags and 283 in tags:
        kept |= {"resolution": (tags[282].value, tags[283].value), "resolutionunit": tags.valueof(296, 2)}
    return kept
