"""PNG files of our own writer: Pillow reads back every value, tag and profile, and they are not larger than its own."""

import io
import zlib

import numpy as np
import pytest
import skimage.data
from PIL import Image as Pillow

from lpn_fast.io import png

ORIENTATION = 0x0112


def opened(data):
    return Pillow.open(io.BytesIO(data))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (31, 18), (1, 1, 3), (5, 7, 3), (64, 33, 3)])
@pytest.mark.parametrize("pattern", ["noise", "ramp", "extremes"])
def test_eight_bits_come_back(shape, pattern):
    generator = np.random.default_rng(0)
    stored = {
        "noise": generator.integers(0, 256, shape),
        "ramp": np.arange(np.prod(shape)).reshape(shape) % 256,
        "extremes": 255 * generator.integers(0, 2, shape),
    }[pattern].astype(np.uint8)
    picture = opened(png.encode(stored))
    assert picture.mode == ("L" if stored.ndim == 2 else "RGB")
    assert (np.asarray(picture) == stored).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (31, 18)])
def test_sixteen_bits_come_back(shape):
    stored = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    picture = opened(png.encode(stored))
    assert picture.mode == "I;16" and (np.asarray(picture) == stored).all()


def test_arrays_may_be_views_and_of_any_byte_order():
    stored = np.random.default_rng(0).integers(0, 65536, (9, 8)).astype(">u2")
    assert (np.asarray(opened(png.encode(stored.T))) == stored.T).all()
    planes = np.random.default_rng(0).integers(0, 256, (3, 9, 8)).astype(np.uint8)
    assert (np.asarray(opened(png.encode(planes.transpose(1, 2, 0)))) == planes.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 31, 32])
def test_rows_that_are_filtered_in_parts_make_the_same_file(rows, monkeypatch):
    stored = np.random.default_rng(0).integers(0, 256, (31, 18, 3)).astype(np.uint8)
    whole = png.encode(stored)
    monkeypatch.setattr(png, "PART_BYTES", rows * stored[0].nbytes)
    assert png.encode(stored) == whole


def test_profile_and_orientation_come_back():
    exif = Pillow.Exif()
    exif[ORIENTATION] = 6
    picture = opened(png.encode(np.zeros((4, 5), np.uint8), icc_profile=b"profile", exif=exif.tobytes()))
    assert picture.getexif()[ORIENTATION] == 6 and picture.info["icc_profile"] == b"profile"


def test_every_chunk_has_its_checksum():
    data = png.encode(np.zeros((3, 4), np.uint8), icc_profile=b"profile")
    position, names = len(png.SIGNATURE), []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(data[position + 8 + length : position + 12 + length], "big")
        names.append(body[:4])
        position += 12 + length
    assert names == [b"IHDR", b"iCCP", b"IDAT", b"IEND"]


@pytest.mark.parametrize("photograph", ["camera", "astronaut"])
def test_photographs_are_as_small_as_those_of_pillow(photograph):
    stored, usual = getattr(skimage.data, photograph)(), io.BytesIO()
    Pillow.fromarray(stored).save(usual, "PNG")
    assert len(png.encode(stored)) <= 1.05 * len(usual.getvalue())
