"""Samples for training: what `lpn_fast.io` reads, uint8, uint16 or float32 of shape (C, H, W), as jobs read it.

Gray from colour is ITU-R 601 luma, in integers as Pillow rounds it; colour from gray repeats the plane. Integers stay
as they are stored where 0 is black and white is `full_scale`; everything else becomes float32 in about [0, 1].
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..io import Range
from ..io.formats import DICOM
from ..io.sources import Source

# what becomes [0, 1] of DICOM values: as jobs have it, the slice's own range, or Hounsfield units, clipped
WINDOWS: dict[str, Range | str | None] = {
    "full": None,
    "own": "own",
    "lung": (-1350.0, 150.0),
    "soft-tissue": (-160.0, 240.0),
}
LUMA = np.array([19595, 38470, 7471], np.uint32)  # 0.299, 0.587, 0.114 in units of 2^-16: ITU-R 601


@dataclass(frozen=True)
class Reader:
    """Decodes samples of `channels` planes.

    Parameters
    ----------
    channels : 1 or 3
    window : (low, high), "own" or None
        What becomes 0 and 1 of DICOM files; see WINDOWS.
    intensities : (low, high), optional
        The stored numbers that become 0 and 1 of other files.
    """

    channels: int
    window: Range | str | None = None
    intensities: Range | None = None
    seen: set[str] = field(default_factory=set, repr=False)  # suffixes of the formats it has read

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (colour), got {self.channels}")
        for name, pair in (("window", self.window), ("intensities", self.intensities)):
            if pair not in (None, "own") and not pair[0] < pair[1]:
                raise ValueError(f"{name} must be an increasing pair, got {pair}")

    @property
    def full_scale(self) -> float | None:
        """The stored integer that becomes 1; None is the largest of its type."""
        return self.intensities[1] if self.intensities and self.intensities[0] == 0 else None

    def check_options(self) -> None:
        """ValueError for a window or intensities that no file asked for."""
        if self.window is not None and DICOM.suffix not in self.seen:
            raise ValueError(f"window is for DICOM files, got {self.window} and none of them; give intensities")
        if self.intensities is not None and self.seen == {DICOM.suffix}:
            raise ValueError(f"intensities are not for DICOM, got {self.intensities}; give window")

    def __call__(self, source: Source) -> np.ndarray:
        """The sample (C, H, W) in a file or a member of one; UnreadableImage says what is wrong with it."""
        stored = source.stored()
        self.seen.add(stored.encoding.suffix)
        is_dicom = stored.encoding.suffix == DICOM.suffix
        window = self.window if is_dicom else None
        given = window if is_dicom else self.intensities
        stored = stored.within(None if given == "own" else given)
        encoding, dtype = stored.encoding, stored.values.dtype
        if dtype in (np.uint8, np.uint16) and encoding.range == (0, self.full_scale or np.iinfo(dtype).max):
            return _planes(stored.values, self.channels)
        if isinstance(window, tuple):
            return _planes(encoding.to_unit(stored.values).clip(0, 1), self.channels)
        pixels = stored.image(Path(str(source))).pixels.numpy()
        if window == "own":
            least, most = pixels.min(), pixels.max()
            pixels = (pixels - least) / (most - least or 1)
        return _planes(pixels, self.channels)


def _planes(planes: np.ndarray, channels: int) -> np.ndarray:
    if len(planes) == channels:
        return planes
    if channels == 3:
        return np.repeat(planes, 3, axis=0)
    if planes.dtype == np.float32:
        return np.tensordot(LUMA.astype(np.float32) / 2**16, planes, 1)[None]
    weighted = sum(weight * plane for weight, plane in zip(LUMA, planes.astype(np.uint32), strict=True))
    return ((weighted + np.uint32(2**15)) >> np.uint32(16)).astype(planes.dtype)[None]
