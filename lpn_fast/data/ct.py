"""CT slices: DICOM values to Hounsfield units, Hounsfield units to [0, 1], slices of a series in order.

    HU = slope * stored + intercept,       x = clip((HU - low) / (high - low), 0, 1)

`pydicom` reads the files; it is an optional package (pip install lpn-fast[ct]).
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Window:
    """The interval of Hounsfield units that becomes [0, 1].

    Parameters
    ----------
    low, high : float, optional
        Both None: every slice's own smallest and largest value, as the [0, 1] slices in circulation have it.
    """

    low: float | None = -1024.0
    high: float | None = 3071.0

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise ValueError(f"window must have both ends or none, got {self.low} and {self.high}")
        if self.low is not None and not self.low < self.high:
            raise ValueError(f"window must be an increasing pair, got {self.low} and {self.high}")

    def apply(self, hounsfield: np.ndarray) -> np.ndarray:
        """float32 in [0, 1], same shape."""
        low, high = self.low, self.high
        if low is None:
            low, high = float(hounsfield.min()), float(hounsfield.max())
            if low == high:
                return np.zeros(hounsfield.shape, np.float32)
        return ((hounsfield - low) / (high - low)).clip(0, 1).astype(np.float32)


FULL_RANGE = Window()  # 12-bit scanners
OWN_RANGE = Window(None, None)
LUNG = Window(-1350.0, 150.0)
SOFT_TISSUE = Window(-160.0, 240.0)
WINDOWS = {"full": FULL_RANGE, "own": OWN_RANGE, "lung": LUNG, "soft-tissue": SOFT_TISSUE}


def looks_like_dicom(content: bytes) -> bool:
    """Whether the preamble of a DICOM file is there; many have no suffix."""
    return content[128:132] == b"DICM"


def read_dicom(source: bytes | str | Path, window: Window = FULL_RANGE) -> np.ndarray:
    """A slice as float32 (H, W) in [0, 1].

    Raises
    ------
    ImportError
        pydicom is missing.
    ValueError
        Not a DICOM file, no pixels, or a colour or multi-frame image; the message names a file given by path.
    """
    try:
        return window.apply(_hounsfield(_dataset(source)))
    except ValueError as error:
        if isinstance(source, bytes):
            raise
        raise ValueError(f"{source} is not a readable DICOM slice: {error}") from error


def series_in_order(folder: str | Path) -> list[Path]:
    """The DICOM files of a folder, sorted by series, then along the patient's axis (instance number, if unknown)."""
    keyed = []
    for path in sorted(p for p in Path(folder).iterdir() if p.is_file()):
        with open(path, "rb") as file:
            if not looks_like_dicom(file.read(132)):
                continue
        header = _dataset(path, pixels=False)
        position = header.get("ImagePositionPatient")
        place = float(position[2]) if position else float(header.get("InstanceNumber") or 0)
        keyed.append(((str(header.get("SeriesInstanceUID", "")), place, path.name), path))
    if not keyed:
        raise ValueError(f"{folder} must hold DICOM files, found none")
    return [path for _, path in sorted(keyed)]


def _dataset(source: bytes | str | Path, pixels: bool = True):
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("DICOM files need pydicom: pip install lpn-fast[ct]") from error
    try:
        handle = io.BytesIO(source) if isinstance(source, bytes) else source
        return pydicom.dcmread(handle, stop_before_pixels=not pixels)
    except (pydicom.errors.InvalidDicomError, EOFError, KeyError, TypeError) as error:
        raise ValueError(str(error) or "truncated file") from error


def _hounsfield(dataset) -> np.ndarray:
    try:
        stored = dataset.pixel_array
    except Exception as error:  # pydicom raises a dozen kinds, from missing decoders to short pixel data
        raise ValueError(f"its pixels cannot be decoded: {error}") from error
    if stored.ndim != 2:
        raise ValueError(f"it must hold one gray slice, got pixels of shape {stored.shape}")
    slope, intercept = (float(dataset.get(n, d)) for n, d in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    return slope * stored.astype(np.float64) + intercept
