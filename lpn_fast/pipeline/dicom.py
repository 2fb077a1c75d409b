"""DICOM slices: read to [0, 1], write back with the same bits and rescale, marked as processed.

    value = RescaleSlope * stored + RescaleIntercept,     pixels = (value - low) / (high - low)

(low, high) is what the caller says; else -1024..3071 Hounsfield units for CT, the range of twelve bits, and all
that the stored bits can express for other modalities. Values outside are neither clipped in reading nor, as far
as the stored bits reach, in writing.

A result keeps every entry of its source except the pixels and what says whose pixels they are: it gets
identifiers of its own (the same ones if it is made again), ImageType DERIVED, and a DerivationDescription. Needs
pydicom (extra [ct]), which is imported on first use.
"""

import hashlib
import io

import numpy as np

HOUNSFIELD = (-1024.0, 3071.0)
DERIVATION = "Reconstructed or denoised with a learned proximal network (lpn_fast); not the acquired pixels"
DERIVED_MARK = "DERIVED"


def decode(data: bytes, intensities: tuple[float, float] | None) -> tuple[np.ndarray, str, tuple[float, float]]:
    """(pixels (1, H, W) float32, kind, the values that became 0 and 1) of a file of one gray frame.

    Raises
    ------
    ValueError
        No pydicom; no pixels, colour, or several frames.
    """
    dataset = _read(data)
    if "PixelData" not in dataset:
        raise ValueError("it holds no pixels")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(f"it must be gray, got {dataset.SamplesPerPixel} samples per pixel")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise ValueError(f"it holds {frames} frames; split it into one file per frame")
    slope, intercept = _rescale(dataset)
    values = slope * dataset.pixel_array.astype(np.float64) + intercept  # (H, W)
    if intensities is None:
        intensities = HOUNSFIELD if dataset.get("Modality") == "CT" else _expressible(dataset)
    low, high = intensities
    pixels = ((values - low) / (high - low)).astype(np.float32)
    return pixels[None], f"{'signed' if _is_signed(dataset) else 'unsigned'} {dataset.BitsStored} bits", intensities


def encode(pixels: np.ndarray, template: bytes, intensities: tuple[float, float]) -> bytes:
    """The file that holds pixels (1, H, W) in place of those of `template`."""
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = _read(template)
    slope, intercept = _rescale(dataset)
    low, high = intensities
    least, most = _stored_limits(dataset)
    stored = np.rint((low + (high - low) * pixels[0] - intercept) / slope).clip(least, most)
    kind = ("i" if _is_signed(dataset) else "u") + str(max(1, int(dataset.BitsAllocated) // 8))
    stored = stored.astype(f"<{kind}")

    content = hashlib.sha256(template).hexdigest()
    series = str(dataset.get("SeriesInstanceUID", content))
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)  # the standard requires an even length
    dataset["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[DERIVATION, content])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[DERIVATION, series])
    kept = [str(value) for value in (dataset.get("ImageType") or ["", "PRIMARY"])]
    dataset.ImageType = [DERIVED_MARK, *kept[1:]]
    earlier = str(dataset.get("DerivationDescription", ""))
    dataset.DerivationDescription = f"{earlier}; {DERIVATION}" if earlier else DERIVATION
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if name in dataset:
            del dataset[name]
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _read(data: bytes):
    try:
        import pydicom
    except ImportError as error:
        raise ValueError('reading DICOM needs pydicom: pip install "lpn-fast[ct]"') from error
    return pydicom.dcmread(io.BytesIO(data))


def _rescale(dataset) -> tuple[float, float]:
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ValueError(f"rescale must be finite with a slope other than 0, got {slope:g} and {intercept:g}")
    return slope, intercept


def _is_signed(dataset) -> bool:
    return int(dataset.PixelRepresentation) == 1


def _stored_limits(dataset) -> tuple[int, int]:
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if _is_signed(dataset) else (0, 2**bits - 1)


def _expressible(dataset) -> tuple[float, float]:
    slope, intercept = _rescale(dataset)
    ends = sorted(slope * limit + intercept for limit in _stored_limits(dataset))
    return ends[0], ends[1]
