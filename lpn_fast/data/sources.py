"""Where samples come from: what jobs find, and of several arrays in a file the one that data sets are distributed as.

    files, folders    as `lpn_fast.io` finds them; with `recursive`, below folders as well
    container         of lpn_fast.io: .zip, .npz, HDF5, stacks of .npy and TIFF, idx as MNIST is distributed
    .npz, HDF5        the array `x_train` or `data` (LoDoPaB-CT), or the only one, (N, H, W) or (N, C, H, W)

Every sample has a name, which errors and exclusions use. Archives are read without unpacking, nothing executes.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io import UnreadableImage, containers
from ..io.content import Images
from ..io.image import version_of
from ..io.sources import Source, find_sources

PREFERRED = ("x_train", "data")  # among several arrays


@dataclass(frozen=True)
class Item:
    """A sample that can be read, or why its file holds none."""

    name: str
    source: Source | UnreadableImage
    stamp: tuple = ()  # (time, bytes) of its file: what a cache compares

    @property
    def stem(self) -> str:
        return Path(self.name.rpartition(":")[2] or self.name).stem

    def read(self, reader: Callable[[Source], np.ndarray]) -> np.ndarray:  # (C, H, W)
        if isinstance(self.source, UnreadableImage):
            raise self.source
        return reader(self.source)


def find_items(sources: list[str | Path], exclude: list[str] | None = None, recursive: bool = False) -> list[Item]:
    """Samples of the sources, in a reproducible order.

    Parameters
    ----------
    sources : list of path
        Files, folders, patterns, archives and `@` lists of these, see above.
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
        items += [Item(str(error.path), error) for error in broken]
        for path, group in itertools.groupby(found, key=lambda source: source.path):
            items += _in_file(path, list(group))
    banned = set(exclude or ())
    items = [item for item in items if item.stem not in banned]
    if not items:
        raise ValueError(f"no images are left of {list(map(str, sources))}, all are excluded")
    return items


def _in_file(path: Path, samples: list[Source]) -> list[Item]:
    if containers.is_archive(path):
        samples.sort(key=lambda source: source.member.name)
    elif samples[0].member is not None:
        names = list(dict.fromkeys(source.member.name for source in samples))
        name = next((name for name in PREFERRED if name in names), names[0])
        if len(names) > 1 and name not in PREFERRED:
            reason = f"it must hold one of {', '.join(PREFERRED)} or a single array, got {names}"
            return [Item(str(path), UnreadableImage(path, reason))]
        samples = [source for source in samples if source.member.name == name]
    stamp = version_of(path)[:2] if path.is_file() else ()
    return [Item(_name(source), source, stamp) for source in samples]


def _name(source: Source) -> str:
    if source.member is None:
        return str(source.path)
    is_in_stack = source.member.index is not None and not containers.is_archive(source.path)
    return f"{source.path}:{source.member.index if is_in_stack else source.member}"
