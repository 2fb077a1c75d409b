"""DICOM slices: read as stored, write back with the same bits and rescale, marked as processed.

    value = RescaleSlope * stored + RescaleIntercept,     pixels = (value - low) / (high - low)

(low, high) is what the caller says; else -1024..3071 Hounsfield units for CT, the range of twelve bits, and all that
the stored bits express for other modalities. Values outside are clipped in writing only, to what these bits express.
Padding, which scanners store outside their field of view and often far below air, is filled with the least value of the
image, and back in its place in the result. A result keeps every entry of its source except the pixels and what says
whose they are: it gets identifiers of its own, the same ones if it is made again.
"""

import hashlib
import io
import math

import numpy as np

from ..contract import needed
from .image import Encoding, Stored, check_size

HOUNSFIELD = (-1024.0, 3071.0)
DERIVATION = "Reconstructed or denoised with a learned proximal network (lpn_fast); not the acquired pixels"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(data: bytes) -> Stored:
    """The one gray frame of a file; ValueError for colour, several frames, or values that are not linear in it."""
    dataset, name = _read(data)
    kind = str(_entry(dataset, "PhotometricInterpretation", "MONOCHROME2"))
    if int(_entry(dataset, "SamplesPerPixel", 1)) != 1 or not kind.startswith("MONOCHROME"):
        raise ValueError(f"it must be gray, got {kind}, {_entry(dataset, 'SamplesPerPixel', 1)} samples per pixel")
    if (frames := int(_entry(dataset, "NumberOfFrames", 1))) != 1:
        raise ValueError(f"it holds {frames} frames; split it into one file per frame")
    if "ModalityLUTSequence" in dataset:
        raise ValueError("its values are a table of what is stored (ModalityLUTSequence); convert it")
    shape = int(dataset.Rows), int(dataset.Columns)
    check_size(math.prod(shape) * int(_entry(dataset, "BitsAllocated", 64)) // 8, len(data))
    stored = dataset.pixel_array
    if stored.shape != shape:
        raise ValueError(f"it must hold one slice of {shape[0]} x {shape[1]}, got pixels of shape {stored.shape}")
    slope, intercept = float(_entry(dataset, "RescaleSlope", 1)), float(_entry(dataset, "RescaleIntercept", 0))
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ValueError(f"rescale must be finite with a slope other than 0, got {slope:g} and {intercept:g}")
    modality, (low, high) = str(_entry(dataset, "Modality", "")), (0.0, 1.0)
    if modality == "CT":
        low, high = HOUNSFIELD
    elif name == "PixelData":
        low, high = sorted(slope * limit + intercept for limit in _stored_limits(dataset))
    if kind == "MONOCHROME1":
        low, high = high, low
    padding = _padding(dataset, stored)
    if padding.any() and not padding.all():
        stored = stored.copy()
        stored[padding] = stored[~padding].min() if slope > 0 else stored[~padding].max()
    scale = (low - intercept) / slope, (high - intercept) / slope
    kept = {"template": data, "modality": modality, "rescale": (slope, intercept)}
    return Stored(stored[None], Encoding(".dcm", stored.dtype.name, True, scale, kept))


def write(stored: np.ndarray, encoding: Encoding) -> bytes:
    """The file that holds (H, W) in place of the pixels of its template."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    template = encoding.kept["template"]
    dataset, name = _read(template)
    before = dataset.pixel_array
    is_little = dataset.original_encoding[1] is not False
    if name == "PixelData":
        stored = stored.clip(*_stored_limits(dataset))
    padding = _padding(dataset, before)
    if stored.shape == before.shape:
        stored[padding] = before[padding]
    stored = stored.astype(("<" if is_little else ">") + before.dtype.str[1:])

    content = hashlib.sha256(template).hexdigest()
    series = str(dataset.get("SeriesInstanceUID", content))
    setattr(dataset, name, stored.tobytes() + b"\0" * (stored.nbytes % 2))  # the standard requires an even length
    if name == "PixelData":
        dataset[name].VR = "OB" if stored.itemsize == 1 else "OW"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SOPClassUID = _entry(dataset, "SOPClassUID", SecondaryCaptureImageStorage)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[DERIVATION, content])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[DERIVATION, series])
    dataset.ImageType = ["DERIVED", *list(dataset.get("ImageType") or ["", "PRIMARY"])[1:]]
    dataset.DerivationDescription = "; ".join(filter(None, (dataset.get("DerivationDescription"), DERIVATION)))
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        dataset.pop(name, None)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True, implicit_vr=False, little_endian=is_little)
    return buffer.getvalue()


def _read(data: bytes):
    """(dataset, name of its pixels); files without preamble are read as well."""
    pydicom = needed("pydicom", "ct", "reading DICOM")
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "Rows" not in dataset and "SOPClassUID" not in dataset:
        raise ValueError("it is no DICOM file, or a damaged one: nothing in it says what it is")
    name = next((name for name in PIXELS if name in dataset), None)
    if name is None:
        raise ValueError("it holds no pixels")
    if not getattr(dataset.file_meta, "TransferSyntaxUID", None):  # the standard's default, as pydicom has read it
        syntax = "ImplicitVRLittleEndian" if dataset.original_encoding[0] else "ExplicitVRLittleEndian"
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    return dataset, name


def _entry(dataset, name: str, default):
    """The value of an entry; one that is there without a value counts as absent."""
    value = dataset.get(name)
    return default if value is None or str(value) == "" else value


def _padding(dataset, stored: np.ndarray) -> np.ndarray:
    """Where the stored numbers are no picture, (H, W) bool."""
    one = _entry(dataset, "PixelPaddingValue", _entry(dataset, "FloatPixelPaddingValue", None))
    if one is None:
        return np.zeros(stored.shape, bool)
    other = _entry(dataset, "PixelPaddingRangeLimit", one)
    if stored.dtype.kind == "i" and min(one, other) >= 0:  # some writers give it as unsigned, whatever the pixels are
        one, other = (int(np.uint16(value).astype(np.int16)) for value in (one, other))
    return (stored >= min(one, other)) & (stored <= max(one, other))


def _stored_limits(dataset) -> tuple[int, int]:
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if int(dataset.PixelRepresentation) == 1 else (0, 2**bits - 1)
