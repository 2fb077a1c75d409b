"""Samples for training: what `lpn_fast.io` finds and reads, uint8, uint16 or float32 (C, H, W), as jobs have it.

Of .npz and HDF5 files this is the array `x_train` or `data` (LoDoPaB-CT), or the only one. Gray from colour is ITU-R
601 luma, in integers as Pillow rounds it; colour from gray repeats the plane. Integers stay as they are stored where 0
is black and white is `full_scale`; everything else becomes float32 in about [0, 1].
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..io import Range, UnreadableImage, containers
from ..io.containers import Images
from ..io.sources import Source, find_sources

# what becomes [0, 1] of DICOM values: as jobs have it, the slice's own range, or Hounsfield units, clipped
WINDOWS: dict[str, Range | str | None] = {
    "full": None,
    "own": "own",
    "lung": (-1350.0, 150.0),
    "soft-tissue": (-160.0, 240.0),
}
DICOM = ".dcm"  # names the format
PREFERRED = ("x_train", "data")  # among several arrays
LUMA = np.array([19595, 38470, 7471], np.uint32)  # 0.299, 0.587, 0.114 in units of 2^-16: ITU-R 601


@dataclass(frozen=True)
class Reader:
    """Decodes samples of `channels` planes."""

    channels: int
    window: Range | str | None = None  # what becomes 0 and 1 of DICOM files, see WINDOWS
    intensities: Range | None = None  # the stored numbers that become 0 and 1 of other files
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
        if self.window is not None and DICOM not in self.seen:
            raise ValueError(f"window is for DICOM files, got {self.window} and none of them; give intensities")
        if self.intensities is not None and self.seen == {DICOM}:
            raise ValueError(f"intensities are not for DICOM, got {self.intensities}; give window")

    def __call__(self, source: Source) -> np.ndarray:
        """The sample (C, H, W) in a file or a member of one; UnreadableImage says what is wrong with it."""
        stored = source.stored()
        self.seen.add(stored.encoding.suffix)
        given = self.window if stored.encoding.suffix == DICOM else self.intensities
        stored = stored.within(None if given == "own" else given)
        encoding, dtype = stored.encoding, stored.values.dtype
        if dtype in (np.uint8, np.uint16) and encoding.range == (0, self.full_scale or np.iinfo(dtype).max):
            return _planes(stored.values, self.channels)
        if encoding.suffix == DICOM and isinstance(given, tuple):
            return _planes(encoding.to_unit(stored.values).clip(0, 1), self.channels)
        pixels = stored.image(Path(str(source))).pixels.numpy()
        if given == "own":
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


@dataclass(frozen=True)
class Item:
    """A sample that can be read, or why its file holds none."""

    source: Source | UnreadableImage

    @property
    def name(self) -> str:
        """What errors and exclusions call it."""
        path, member = self.source.path, getattr(self.source, "member", None)
        if member is None:
            return str(path)
        return f"{path}:{member if member.index is None or containers.is_archive(path) else member.index}"

    def read(self, reader: Callable[[Source], np.ndarray]) -> np.ndarray:  # (C, H, W)
        if isinstance(self.source, UnreadableImage):
            raise self.source
        return reader(self.source)


def find_items(sources: list[str | Path], exclude: list[str] | None = None, recursive: bool = False) -> list[Item]:
    """Samples of the sources, in a reproducible order.

    Parameters
    ----------
    sources : list of path
        Files, folders, patterns and `@` lists, as `lpn_fast.pipeline.find_images` has them.
    exclude : list of str
        Stems never to read: test sets that lie in the same folders.
    recursive : bool
        Search folders all the way down, as patient-wise layouts need.

    Raises
    ------
    FileNotFoundError, ValueError
        A source that is not there or of no known kind; nothing found. A damaged container is an item, which reading
        says.
    """
    items: list[Item] = []
    for source in sources:
        found, broken, _ = find_sources(source, recursive, content=Images(any_type=True))
        items += map(Item, broken)
        for path, group in itertools.groupby(found, key=lambda source: source.path):
            items += map(Item, _in_file(path, list(group)))
    banned = set(exclude or ())
    items = [item for item in items if Path(item.name.rpartition(":")[2] or item.name).stem not in banned]
    if not items:
        raise ValueError(f"no images are left of {list(map(str, sources))}, all are excluded")
    return items


def _in_file(path: Path, samples: list[Source]) -> list[Source] | list[UnreadableImage]:
    if containers.is_archive(path):
        samples.sort(key=lambda source: source.member.name)
    elif samples[0].member is not None:
        names = list(dict.fromkeys(source.member.name for source in samples))
        name = next((name for name in PREFERRED if name in names), names[0])
        if len(names) > 1 and name not in PREFERRED:
            reason = f"it must hold one of {', '.join(PREFERRED)} or a single array, got {names}"
            return [UnreadableImage(path, reason)]
        samples = [source for source in samples if source.member.name == name]
    return samples
