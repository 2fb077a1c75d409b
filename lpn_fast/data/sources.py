"""Where samples come from, by layout: what jobs find, and how data sets are distributed.

    files, folders    as `lpn_fast.io` finds them; with `recursive`, below folders as well
    container         of lpn_fast.io: .zip, .npz, HDF5, stacks of .npy and TIFF, idx as MNIST is distributed
    .npz, HDF5        the array `x_train` or `data` (LoDoPaB-CT), or the only one, (N, H, W) or (N, C, H, W)
    CelebA            a folder with list_eval_partition.txt and img_align_celeba (a folder or a .zip)

Every sample has a name, which errors and exclusions use. Archives are read without unpacking, nothing executes.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..io import UnreadableImage, containers
from ..io.content import Images
from ..io.image import version_of
from ..io.sources import Source, find_sources
from .readers import Reader

SPLITS = {"train": 0, "validation": 1, "test": 2}  # CelebA's numbers
PARTITION = "list_eval_partition.txt"
PREFERRED = ("x_train", "data")  # among several arrays


@dataclass(frozen=True)
class Item:
    """A sample that can be read."""

    name: str
    stamp: tuple  # (time, bytes) of its file: what a cache compares
    read: Callable[[Reader], np.ndarray]  # (C, H, W)

    @property
    def stem(self) -> str:
        return Path(self.name.rpartition(":")[2] or self.name).stem


def find_items(
    sources: list[str | Path],
    exclude: list[str] | None = None,
    *,
    split: str | None = None,
    recursive: bool = False,
) -> list[Item]:
    """Samples of the sources, in a reproducible order.

    Parameters
    ----------
    sources : list of path
        Files, folders, patterns and archives, see above.
    exclude : list of str
        Stems never to read: test sets that lie in the same folders.
    split : "train", "validation" or "test", optional
        Of CelebA, by its partition file; of any other folder, the sub-folder of that name.
    recursive : bool
        Search folders all the way down, as patient-wise layouts need.

    Raises
    ------
    FileNotFoundError, ValueError
        A source that is not there or of no known kind; nothing found. A damaged container is an item, which reading
        says.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    banned, items = set(exclude or ()), []
    for source in map(Path, sources):
        if (source / PARTITION).exists():
            items += _items(*_celeba(source, split or "train"))
        elif split is None or not source.is_dir():
            items += _items([source], recursive=recursive)
        elif (source / split).is_dir():
            items += _items([source / split], recursive=recursive)
        else:
            raise ValueError(f"there is no folder {source / split} for the split {split!r}")
    items = [item for item in items if item.stem not in banned]
    if not items:
        raise ValueError(f"no images are left of {list(map(str, sources))}, all are excluded")
    return items


def _items(files: list[Path], wanted: set[str] | None = None, recursive: bool = False) -> Iterator[Item]:
    """The samples in files and folders, of archives only the `wanted` names."""
    found, broken, _ = find_sources(files, recursive, content=Images(any_type=True))
    for error in broken:
        yield _refused(error.path, error)
    for path, group in itertools.groupby(found, key=lambda source: source.path):
        samples, stamp = list(group), version_of(path)[:2] if path.is_file() else ()
        if containers.is_archive(path):
            samples = [s for s in samples if wanted is None or Path(s.member.name).name in wanted]
            samples.sort(key=lambda source: source.member.name)
        elif samples[0].member is not None:
            names = list(dict.fromkeys(source.member.name for source in samples))
            name = next((name for name in PREFERRED if name in names), names[0])
            if len(names) > 1 and name not in PREFERRED:
                reason = f"it must hold one of {', '.join(PREFERRED)} or a single array, got {names}"
                yield _refused(path, UnreadableImage(path, reason))
                continue
            samples = [source for source in samples if source.member.name == name]
        for source in samples:
            name = _name(source)
            yield Item(name, stamp, partial(_read, source, name))


def _name(source: Source) -> str:
    if source.member is None:
        return str(source.path)
    is_in_stack = source.member.index is not None and not containers.is_archive(source.path)
    return f"{source.path}:{source.member.index if is_in_stack else source.member}"


def _read(source: Source, name: str, reader: Reader) -> np.ndarray:
    if source.is_file:
        return reader(name, source.content())
    return reader.sample(name, containers.member_stored(source.path, source.member, reader.intensities))


def _refused(path: Path, error: UnreadableImage) -> Item:
    """A file that holds no samples, which reading it says."""

    def read(_: Reader) -> np.ndarray:
        raise error

    return Item(str(path), (), read)


def _celeba(root: Path, split: str) -> tuple[list[Path], set[str]]:
    """Files, and names of images, of one split, from img_align_celeba/ or img_align_celeba.zip."""
    wanted = set()
    for number, line in enumerate((root / PARTITION).read_text().splitlines(), 1):
        if line.strip():
            name, _, label = line.strip().partition(" ")
            if label.strip() not in ("0", "1", "2"):
                raise ValueError(f"{root / PARTITION}, line {number}, must be 'NAME 0|1|2', got {line!r}")
            if int(label) == SPLITS[split]:
                wanted.add(name)
    folder, archive = root / "img_align_celeba", root / "img_align_celeba.zip"
    if not folder.is_dir() and not archive.exists():
        raise ValueError(f"{root} must hold img_align_celeba/ or img_align_celeba.zip beside {PARTITION}")
    if not folder.is_dir():
        return [archive], wanted
    for name in sorted(wanted):
        if not (folder / name).exists():
            raise ValueError(f"{folder / name} is listed in {PARTITION} but is not there")
    return [folder / name for name in sorted(wanted)], wanted
