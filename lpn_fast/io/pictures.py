"""Pictures that Pillow decodes, each by the plugin of its format: PNG, JPEG, BMP, WebP, JPEG 2000, Netpbm.

Pillow cuts 16-bit colour to 8 bits without a word, so such files are decoded twice, for the high and the low bytes.
Alpha is dropped with a note, CMYK and Lab become RGB by the file's profile.
"""

import io
import math

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
from PIL.JpegImagePlugin import get_sampling

from . import png
from .image import Encoding, Range, Stored, check_size

PIL.Image.init()
KEPT = ("exif", "icc_profile", "dpi")
# how to see the low bytes of what Pillow cuts to 8 bits; gray with alpha is two pairs of bytes
LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}
NATIVE = ("L", "RGB", "F", "I;16", "I;16L", "I;16B", "I;16N")
WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
J2K_SIZES = b"\xff\x4f\xff\x51"  # start of a codestream and of its sizes
# JPEG is the one lossy format: best quality short of the useless
OPTIONS: dict[str, dict] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def read(data: bytes, suffix: str, plugin: str) -> Stored:
    """The picture in a file of that format; ValueError for several pages or more bits than Pillow decodes."""
    # not PIL.Image.open, whose limit of pixels is one for all users of Pillow in this process, and for any content
    with PIL.Image.OPEN[plugin][0](io.BytesIO(data), "") as picture:
        pages = getattr(picture, "n_frames", 1)
        notes = [f"first of {pages} pictures"] if picture.format == "MPO" else []
        if pages > 1 and not notes:
            raise ValueError(f"it holds {pages} pages; split it into one file per page")
        wide = 2 if "16" in str(picture.tile) else 4 if picture.mode in ("I", "F") else 1
        check_size(math.prod(picture.size) * len(picture.getbands()) * wide, len(data))
        raw = picture.tile[0].args if picture.tile else None
        raw = raw[0] if isinstance(raw, tuple) else raw
        if raw in LOW_BYTES:
            return decoded(picture, suffix, notes, _sixteen_bits(data, plugin, raw))
        if plugin == "PPM":
            return decoded(picture, suffix, notes, *_wide_netpbm(data, picture))
        if plugin == "JPEG2000":
            limits = _j2k_range(data, picture.mode)
            return decoded(picture, suffix, notes, intensities=limits, no_jp2=data.startswith(J2K_SIZES))
        sampling = {"subsampling": max(0, get_sampling(picture))} if plugin == "JPEG" else {}
        return decoded(picture, suffix, notes, **sampling)


def decoded(picture, suffix: str, notes: list[str], values=None, intensities=None, **kept) -> Stored:
    """What Pillow makes of a picture, or `values` where it would cut them."""
    kept |= {name: picture.info[name] for name in KEPT if picture.info.get(name)}
    if picture.mode in WITH_ALPHA or "transparency" in picture.info:
        notes.append("alpha channel dropped")
    if values is None:
        picture.load()
        values = np.asarray(converted(picture, kept, notes))
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return Stored(values, Encoding(suffix, values.dtype.name, False, intensities, kept), tuple(notes))


def write(stored: np.ndarray, encoding: Encoding, plugin: str) -> bytes:
    """The bytes of a file of (C, H, W)."""
    planes = stored[0] if stored.shape[0] == 1 else stored.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    if plugin == "PNG":
        return png.encode(planes, **encoding.kept)
    if plugin == "PPM" and stored.dtype == np.uint16:
        kind, most = 5 if planes.ndim == 2 else 6, int(encoding.range[1])
        header = f"P{kind}\n{planes.shape[1]} {planes.shape[0]}\n{most}\n".encode()
        return header + planes.clip(0, most).astype(">u2").tobytes()
    buffer, options = io.BytesIO(), OPTIONS.get(plugin, {}) | encoding.kept
    PIL.Image.fromarray(np.ascontiguousarray(planes)).save(buffer, plugin, **options)
    return buffer.getvalue()


def converted(picture: PIL.Image.Image, kept: dict, notes: list[str]) -> PIL.Image.Image:
    """In a mode that numpy takes as it is, CMYK and Lab by the profile, which `kept` loses, if there is one."""
    mode = picture.mode
    if mode == "I":
        raise ValueError("it holds 32-bit integers, of unknown range; convert it to .npy")
    if mode in NATIVE:
        return picture
    target = "L" if mode in ("1", "LA", "La") else "RGB"
    if mode in ("CMYK", "LAB"):
        profile = kept.pop("icc_profile", None)
        notes.append(f"converted from mode {mode} to RGB, by {'its' if profile else 'no'} profile")
        if mode == "CMYK" and not profile:
            return picture.convert("RGB")
        own = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else PIL.ImageCms.createProfile("LAB"))
        transform = PIL.ImageCms.buildTransform(own, PIL.ImageCms.createProfile("sRGB"), mode, "RGB")
        return PIL.ImageCms.applyTransform(picture, transform) or picture
    if mode not in WITH_ALPHA or mode == "PA":
        notes.append(f"converted from mode {mode} to {target}")
    return picture.convert(target)


def _sixteen_bits(data: bytes, plugin: str, raw: str) -> np.ndarray:
    def decoded(arguments) -> np.ndarray:
        with PIL.Image.OPEN[plugin][0](io.BytesIO(data), "") as again:
            again.tile = [again.tile[0]._replace(args=arguments)]
            return np.asarray(again)

    if raw == "LA;16B":
        return np.ascontiguousarray(decoded(LOW_BYTES[raw])).view(">u2")[..., 0].astype(np.uint16)
    high = decoded(raw)[..., :3].astype(np.uint16)
    return high << 8 | decoded(LOW_BYTES[raw])[..., :3]


def _wide_netpbm(data: bytes, picture: PIL.ImageFile.ImageFile) -> tuple[np.ndarray | None, Range | None]:
    """(numbers, what becomes 0 and 1 of them) of a file of 16 bits; Pillow decodes others."""
    tile = picture.tile[0]
    white = tile.args[1] if isinstance(tile.args, tuple) else 65535 if str(tile.args).startswith("I;16") else 255
    if white <= 255 or picture.mode == "F":
        return None, None
    if tile.codec_name == "ppm_plain":
        raise ValueError("it holds 16 bits as text; convert it to the binary kind")
    shape = picture.size[::-1] if picture.mode == "I" else (*picture.size[::-1], 3)
    values = np.frombuffer(data, ">u2", math.prod(shape), tile.offset).reshape(shape)
    return values.astype(np.uint16), (0.0, float(white))


def _j2k_range(data: bytes, mode: str) -> Range | None:
    """What becomes 0 and 1 of the numbers that Pillow makes: it moves gray of 9 to 15 bits to the top of 16."""
    start = data.find(J2K_SIZES) + len(J2K_SIZES) + 38
    bits, signed = (data[start] & 0x7F) + 1, data[start] >> 7
    if signed or bits > 16 or (bits > 8 and mode != "I;16"):
        kind = f"{'signed ' * signed}{bits}-bit {mode}"
        raise ValueError(f"it holds {kind}, which Pillow cuts; convert it to .npy or TIFF")
    return (0.0, float((2**bits - 1) << (16 - bits))) if 8 < bits < 16 else None
