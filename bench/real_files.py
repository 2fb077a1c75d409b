"""Files of real life, made by a script: every format, layout and trap that people's folders have, with its values."""

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from lpn_fast.io.formats import to_npy
from lpn_fast.io.png import SIGNATURE, chunk
from lpn_fast.io.png import encode as png

SIZE = HEIGHT, WIDTH = 20, 28
EXACT = 2e-7  # float32 numbers in [0, 1]


@dataclass(frozen=True)
class Case:
    """A file and what must be read from it.

    Attributes
    ----------
    name, what : str
        Of the file, and in words.
    make : callable
        Writes it to a path, or gives its bytes.
    expected : array (images, C, H, W), or str
        In [0, 1]; or why it is refused, a regular expression.
    intensities : (low, high), optional
        As the user says.
    notes : str
        What is said of it, a regular expression.
    rounding, lost : float
        How far what is read may be from what is expected; and how much more its format loses in writing.
    """

    name: str
    what: str
    make: Callable[[Path], bytes | None] | bytes
    expected: np.ndarray | str
    intensities: tuple[float, float] | None = None
    notes: str = "^$"
    rounding: float = EXACT
    lost: float = 0.0

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        data = self.make if isinstance(self.make, bytes) else self.make(path)
        if data is not None:
            path.write_bytes(data)
        return path


def noise(*shape: int, dtype=np.uint8, most: int | None = None, seed: int = 0) -> np.ndarray:
    """Uniform numbers of a type: from 0 to `most` or the largest integer, or of [0, 1]."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, most or np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


GRAY8, GRAY16 = noise(*SIZE), noise(*SIZE, dtype=np.uint16)
RGB8, RGB16 = noise(*SIZE, 3), noise(*SIZE, 3, dtype=np.uint16)
ALPHA16 = noise(*SIZE, 4, dtype=np.uint16)
BLACK = np.where(GRAY8 > 99, 255, 0).astype(np.uint8)
STACK8, FLOAT = noise(5, *SIZE), noise(*SIZE, dtype=np.float32)
TWELVE, SIGNED = noise(*SIZE, dtype=np.uint16, most=4095), noise(*SIZE, dtype=np.uint16, most=2000).astype(np.int16)


def unit(stored: np.ndarray, low: float = 0.0, high: float | None = None) -> np.ndarray:
    """(1, C, H, W) of (H, W) or (H, W, 3): (stored - low) / (high - low)."""
    if high is None:
        high = 1.0 if stored.dtype.kind == "f" else float(np.iinfo(stored.dtype).max)
    values = (stored.astype(np.float64) - low) / (high - low)
    return (values[None] if stored.ndim == 2 else values.transpose(2, 0, 1))[None]


def planes(stack: np.ndarray) -> np.ndarray:
    """(N, 1, H, W) of (N, H, W)."""
    return np.concatenate([unit(plane) for plane in stack])


def pillow(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """The bytes of a file that Pillow writes."""
    buffer = io.BytesIO()
    if mode == "CMYK":
        picture = PIL.Image.frombytes(mode, array.shape[1::-1], array.tobytes())
    else:
        picture = PIL.Image.fromarray(array).convert(mode)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """What Pillow reads from an 8-bit file, as RGB or gray: the truth for formats that lose."""
    picture = PIL.Image.open(io.BytesIO(data))
    return unit(np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB")))


def tiff(array: np.ndarray, **options) -> Callable[[Path], None]:
    """Writes a file with tifffile."""

    def make(path: Path) -> None:
        import tifffile

        tifffile.imwrite(path, array, **options)

    return make


def dicom(stored: np.ndarray, *, modality="CT", slope=1.0, intercept=0.0, preamble=True, **entries) -> bytes:
    """A slice as pydicom writes it; entries that are None are there without a value."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(sorted(entries.items())), stored.tobytes().hex()])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.Modality, dataset.PatientName = modality, "Phantom"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * stored.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    if stored.dtype.kind == "f":
        dataset.FloatPixelData = stored.tobytes()
    else:
        dataset.PixelRepresentation, dataset.PixelData = int(stored.dtype.kind == "i"), stored.tobytes()
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in entries.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    if preamble:
        dataset.save_as(buffer, enforce_file_format=True)
    else:
        bare = Dataset()
        bare.update(dataset)
        bare.save_as(buffer, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def later_dicom(*arguments, **options) -> Callable[[Path], bytes]:
    return lambda _: dicom(*arguments, **options)


def black_ink_profile() -> bytes:
    """A CMYK profile by which black alone counts: L = 100 (1 - K), and colour inks show nothing."""
    grid = [(0, 0x80, 0x80) if entry & 1 else (255, 0x80, 0x80) for entry in range(16)]  # C M Y K, K varies fastest
    identity = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table += 4 * identity + bytes(value for entry in grid for value in entry) + 3 * identity
    table += bytes(-len(table) % 4)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"K\0" + bytes(78)
    text += bytes(-len(text) % 4)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, body = [(b"A2B0", table), (b"desc", text), (b"wtpt", white)], b""
    start = 128 + 4 + 12 * len(tags)
    directory = struct.pack(">I", len(tags))
    for name, data in tags:
        directory += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + directory + body


def black_ink(inks: np.ndarray) -> np.ndarray:
    """sRGB of the black ink (H, W) by that profile: CIE lightness to linear light to sRGB, (1, 3, H, W)."""
    lightness = 100 * (1 - inks / 255.0)
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    gray = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.repeat(gray[None, None], 3, 1)


def multi_page(*frames: np.ndarray, kind: str = "TIFF", mode: str | None = None, **options) -> bytes:
    first, *others = (PIL.Image.fromarray(frame).convert(mode) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=others, **options)
    return buffer.getvalue()


def packed(path: Path) -> None:
    """Pixels of 12 bits, two in three bytes."""
    import tifffile

    pairs = TWELVE.reshape(-1, 2)
    low, high = pairs[:, 0], pairs[:, 1]
    data = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], 1).astype(np.uint8)
    tifffile.imwrite(path, data.reshape(HEIGHT, -1), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(WIDTH)
        tif.pages[0].tags["BitsPerSample"].overwrite(12)


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(100)) + chunk(b"IEND", b"")


def claiming(*shape: int) -> bytes:
    """A .npy file whose header announces an array of bytes, of which there are four."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(4)


def huge_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", claiming(120_000, 120_000))


def photos(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no picture")
        archive.writestr("a/b.png", png(STACK8[0]))
        archive.writestr("c.bmp", pillow(STACK8[1], "BMP"))


def h5(fill: Callable) -> Callable[[Path], None]:
    """Writes an HDF5 file."""

    def make(path: Path) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            fill(file, h5py, path)

    return make


def external(file, h5py, path: Path) -> None:
    secret = path.with_suffix(".secret")
    secret.write_bytes(bytes(range(256)))
    file.create_dataset("a", (16, 16), np.uint8, external=[(str(secret), 0, 256)])


def virtual(file, h5py, path: Path) -> None:
    layout = h5py.VirtualLayout((16, 16), np.uint8)
    layout[:] = h5py.VirtualSource("/elsewhere.h5", "a", (16, 16))
    file.create_virtual_dataset("a", layout)


def padded() -> np.ndarray:
    stored = SIGNED.copy()
    stored[:4], stored[:, -3:] = -2000, -2000
    return stored


def filled() -> np.ndarray:
    stored, inside = padded(), padded() != -2000
    return np.where(inside, stored, stored[inside].min())


JPEG_LOSS = 0.05  # twelve levels: quantised a second time
CLAIM = "header (claims|announces)"
EXIF = PIL.Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "Maker"
SMOOTH = np.asarray(PIL.Image.fromarray(noise(3, 4, 3)).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC))
PHOTO = pillow(SMOOTH, "JPEG", quality=90, subsampling=2, dpi=(300, 300), icc_profile=b"profile", exif=EXIF)
MPO = multi_page(SMOOTH, SMOOTH, kind="MPO", quality=95)
INKS = pillow(noise(*SIZE, 4, most=200), "TIFF", "CMYK", icc_profile=black_ink_profile())
IDX = struct.pack(">HBB3I", 0, 8, 3, *STACK8.shape)
WIDE_PPM = b"P6\n%d %d\n4095\n" % (WIDTH, HEIGHT) + (RGB16 >> 4).astype(">u2").tobytes()

CASES = (
    Case("gray8.png", "8-bit gray PNG", png(GRAY8), unit(GRAY8)),
    Case("gray16.png", "16-bit gray PNG", png(GRAY16), unit(GRAY16)),
    Case("colour8.png", "8-bit colour PNG", png(RGB8), unit(RGB8)),
    Case("colour16.png", "16-bit colour PNG", png(RGB16), unit(RGB16)),
    Case("twelve.png", "12 bits in 16, --intensities 0 4095", png(TWELVE), unit(TWELVE, 0, 4095), (0.0, 4095.0)),
    Case("little.png", "12 bits in 16, unsaid", png(TWELVE), unit(TWELVE), notes="uses 6.2 % of its range"),
    Case("palette.png", "palette PNG", pillow(RGB8, "PNG", "P"), decoded(pillow(RGB8, "PNG", "P")), notes="mode P"),
    Case("bits.png", "black and white PNG", pillow(BLACK, "PNG", "1"), unit(BLACK), notes="mode 1"),
    Case("huge.png", "header of a few hundred bytes: 10 GB", huge_png(), CLAIM),
    Case("photo.jpg", "JPEG with EXIF, profile, 4:2:0", PHOTO, decoded(PHOTO), lost=JPEG_LOSS),
    Case(
        "renamed.png", "JPEG that is called PNG", PHOTO, decoded(PHOTO), notes="is .jpg by its content", lost=JPEG_LOSS
    ),
    Case("two.mpo", "MPO of two pictures", MPO, decoded(MPO), notes="first of 2 pictures", lost=JPEG_LOSS),
    Case("a.bmp", "BMP", pillow(RGB8, "BMP"), unit(RGB8)),
    Case("a.webp", "WebP", pillow(RGB8, "WEBP", lossless=True), unit(RGB8)),
    Case("a.jp2", "JPEG 2000", pillow(RGB8, "JPEG2000"), unit(RGB8)),
    Case("a.j2k", "JPEG 2000 codestream", pillow(RGB8, "JPEG2000", no_jp2=True), unit(RGB8)),
    Case("wide.jp2", "JPEG 2000, 16-bit gray", pillow(GRAY16, "JPEG2000"), unit(GRAY16)),
    Case("a.pgm", "PGM, 16 bits", pillow(GRAY16.astype(np.int32), "PPM"), unit(GRAY16)),
    Case("a.ppm", "PPM, 12 bits", WIDE_PPM, unit(RGB16 >> 4, 0, 4095)),
    Case("gray16.tif", "16-bit gray TIFF, big-endian", tiff(GRAY16, byteorder=">"), unit(GRAY16)),
    Case("colour16.tif", "16-bit colour TIFF", tiff(RGB16, photometric="rgb"), unit(RGB16)),
    Case(
        "planar.tif",
        "16-bit colour TIFF, planar",
        tiff(np.ascontiguousarray(RGB16.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"),
        unit(RGB16),
    ),
    Case("float.tif", "float TIFF, deflated", tiff(FLOAT, compression="zlib"), unit(FLOAT)),
    Case("double.tif", "double TIFF, tiled", tiff(FLOAT.astype(float), tile=(16, 16)), unit(FLOAT)),
    Case("negative.tif", "WhiteIsZero TIFF", tiff(GRAY8, photometric="miniswhite"), 1 - unit(GRAY8)),
    Case("int8.tif", "int8 TIFF", tiff(GRAY8.view(np.int8)), "int8 numbers, of no known range"),
    Case("int16.tif", "int16 TIFF, --intensities", tiff(SIGNED - 1000), unit(SIGNED, 0, 4095), (-1000.0, 3095.0)),
    Case("lzw.tif", "LZW TIFF", pillow(RGB8, "TIFF", compression="tiff_lzw"), unit(RGB8)),
    Case(
        "inks.tif",
        "CMYK TIFF with a profile",
        INKS,
        black_ink(noise(*SIZE, 4, most=200)[..., 3]),
        notes="CMYK",
        rounding=1 / 255,
    ),
    Case("pages.tif", "TIFF of five pages", multi_page(*STACK8), planes(STACK8)),
    Case("imagej.tif", "ImageJ stack of one directory", tiff(STACK8, imagej=True), planes(STACK8)),
    Case("volume.tif", "volumetric TIFF", tiff(STACK8, volumetric=True, tile=(16, 16, 16)), planes(STACK8)),
    Case("cut.tif", "truncated TIFF", pillow(GRAY8, "TIFF")[:-100], "failed to read|truncated"),
    Case("packed.tif", "TIFF of 12 bits, packed", packed, "16, 32 or 64 bits per sample, got 12; convert it"),
    Case("big.npy", "big-endian .npy", to_npy(FLOAT.astype(">f4")), unit(FLOAT)),
    Case("stack.npy", ".npy stack", to_npy(STACK8[:, None]), planes(STACK8)),
    Case("huge.npy", "header of 10^9 images", claiming(10**9, 1, 9, 9), "announces"),
    Case("huge.npz", "header of 14 GB", huge_npz, "announces"),
    Case("x.npz", ".npz, deflated", lambda path: np.savez_compressed(path, x_train=STACK8), planes(STACK8)),
    Case("photos.zip", "zip of pictures and a text", photos, planes(STACK8[:2])),
    Case("x-idx3-ubyte.gz", "digits as MNIST has them", gzip.compress(IDX + STACK8.tobytes()), planes(STACK8)),
    Case("stack.h5", "HDF5 stack", h5(lambda file, *_: file.create_dataset("a", data=STACK8)), planes(STACK8)),
    Case("external.h5", "HDF5 that names other files", h5(external), "lies in other files"),
    Case("virtual.h5", "virtual HDF5", h5(virtual), "lies in other files"),
    Case(
        "huge.h5", "HDF5 header of 10^9 images", h5(lambda f, *_: f.create_dataset("a", (10**9, 1, 9, 9), "u1")), CLAIM
    ),
    Case("pipe.png", "named pipe", lambda path: os.mkfifo(path), "no regular file|no file or folder"),
    Case("ct.dcm", "CT slice", later_dicom(SIGNED, intercept=-1024.0), unit(SIGNED, 0, 4095)),
    Case(
        "padded.dcm",
        "CT slice with padding",
        later_dicom(padded(), PixelPaddingValue=-2000),
        unit(filled(), -1024, 3071),
    ),
    Case(
        "mr.dcm",
        "MR slice, empty rescale",
        later_dicom(TWELVE, modality="MR", slope=None, intercept=None, BitsStored=12, HighBit=11),
        unit(TWELVE, 0, 4095),
    ),
    Case(
        "1.2.840.5",
        "MR slice, no suffix, no preamble",
        later_dicom(GRAY16, modality="MR", preamble=False),
        unit(GRAY16),
    ),
    Case("SLICE.IMA", "CT slice called .IMA", later_dicom(SIGNED, intercept=-1024.0), unit(SIGNED, 0, 4095)),
    Case("float.dcm", "FloatPixelData", later_dicom(FLOAT, modality="PT"), unit(FLOAT)),
    Case(
        "xray.dcm",
        "MONOCHROME1",
        later_dicom(GRAY8, modality="DX", PhotometricInterpretation="MONOCHROME1"),
        1 - unit(GRAY8),
    ),
    Case(
        "colour.dcm",
        "colour DICOM",
        later_dicom(RGB8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
        "must be gray, got RGB, 3 samples per pixel",
    ),
    Case(
        "frames.dcm",
        "DICOM of five frames",
        later_dicom(STACK8, Rows=HEIGHT, Columns=WIDTH, NumberOfFrames=5),
        "holds 5 frames; split it",
    ),
    Case("palette.dcm", "PALETTE COLOR", later_dicom(GRAY8, PhotometricInterpretation="PALETTE COLOR"), "must be gray"),
)
