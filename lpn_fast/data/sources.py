"""Where samples come from, by layout: folders, archives, digit files, CelebA, Mayo CT, HDF5.

    folder            its images and containers by name; with `recursive`, those below it
    container         of lpn_fast.io: .zip, .npz, HDF5, stacks of .npy and TIFF, idx as MNIST is distributed
    .npz, HDF5        the array `x_train` or `data` (LoDoPaB-CT), or the only one, (N, H, W) or (N, C, H, W)
    CelebA            a folder with list_eval_partition.txt and img_align_celeba (a folder or a .zip)

Every sample has a name, which errors and exclusions use. Archives are read without unpacking, nothing executes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..io import Member, UnreadableImage, containers, formats
from ..io.content import Images
from ..io.image import one_line
from .readers import Reader

SPLITS = {"train": 0, "validation": 1, "test": 2}  # CelebA's numbers
PARTITION = "list_eval_partition.txt"
HDF5_SUFFIXES = (".h5", ".hdf5")
PREFERRED = ("x_train", "data")  # among several arrays


@dataclass(frozen=True)
class Item:
    """A sample that can be read."""

    name: str
    stamp: tuple  # (bytes, time) of its file: what a cache compares
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
        Files, folders and archives, see above.
    exclude : list of str
        Stems never to read: test sets that lie in the same folders.
    split : "train", "validation" or "test", optional
        Of CelebA, by its partition file; of any other folder, the sub-folder of that name.
    recursive : bool
        Search folders all the way down, as patient-wise layouts need.

    Raises
    ------
    ValueError
        A source that is not there or of no known kind; nothing found.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    banned, items = set(exclude or ()), []
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"there is no image or folder {source}")
        items += [item for item in _items_of(source, split, recursive) if item.stem not in banned]
    if not items:
        known = ", ".join((*formats.BY_SUFFIX, *containers.CONTAINER_SUFFIXES))
        raise ValueError(f"no images ({known}) in {list(map(str, sources))}")
    return items


def _items_of(source: Path, split: str | None, recursive: bool) -> Iterator[Item]:
    if source.is_dir():
        if (source / PARTITION).exists():
            yield from _celeba(source, split or "train")
            return
        if split is not None:
            source = source / split
            if not source.is_dir():
                raise ValueError(f"there is no folder {source} for the split {split!r}")
        files = source.rglob("*") if recursive else source.iterdir()
        for path in sorted(p for p in files if p.is_file() and not p.name.startswith(".")):
            if formats.is_image(path) or path.suffix.lower() in HDF5_SUFFIXES:
                yield from _file(path)
    else:
        yield from _file(source)


def _file(path: Path, wanted: set[str] | None = None) -> Iterator[Item]:
    """The sample in a file, or those of a container, of an archive only the `wanted` names."""
    if not containers.is_container(path):
        yield Item(str(path), _stamp(path), partial(_read, path))
        return
    (found, _), stamp = containers.members(path, Images(any_type=True)), _stamp(path)
    if containers.is_archive(path):
        found = sorted(found, key=lambda member: member.name)
    else:
        found = _one_array(path, found)
    for member in found:
        if wanted is None or Path(member.name).name in wanted:
            is_in_stack = member.index is not None and not containers.is_archive(path)
            name = f"{path}:{member.index if is_in_stack else member}"
            yield Item(name, stamp, partial(_read_member, path, member, name))


def _read(path: Path, reader: Reader) -> np.ndarray:
    try:
        content = formats.read_file(path)
    except OSError as error:
        raise UnreadableImage(path, one_line(error)) from error
    return reader(str(path), content)


def _read_member(path: Path, member: Member, name: str, reader: Reader) -> np.ndarray:
    if containers.is_archive(path):
        return reader(name, containers.member_bytes(path, member))
    return reader.sample(name, containers.member_stored(path, member, reader.intensities))


def _one_array(path: Path, found: list[Member]) -> list[Member]:
    """Members of one array: the preferred one, or the only one."""
    names = list(dict.fromkeys(member.name for member in found))
    name = next((name for name in PREFERRED if name in names), names[0])
    if len(names) > 1 and name not in PREFERRED:
        raise ValueError(f"{path}: it must hold one of {', '.join(PREFERRED)} or a single array, got {names}")
    return [member for member in found if member.name == name]


def _celeba(root: Path, split: str) -> Iterator[Item]:
    """Images of one split, from img_align_celeba/ or img_align_celeba.zip."""
    wanted = set()
    for number, line in enumerate((root / PARTITION).read_text().splitlines(), 1):
        if line.strip():
            name, _, label = line.strip().partition(" ")
            if label.strip() not in ("0", "1", "2"):
                raise ValueError(f"{root / PARTITION}, line {number}, must be 'NAME 0|1|2', got {line!r}")
            if int(label) == SPLITS[split]:
                wanted.add(name)
    folder, archive = root / "img_align_celeba", root / "img_align_celeba.zip"
    if folder.is_dir():
        for name in sorted(wanted):
            if not (folder / name).exists():
                raise ValueError(f"{folder / name} is listed in {PARTITION} but is not there")
            yield from _file(folder / name)
    elif archive.exists():
        yield from _file(archive, wanted)
    else:
        raise ValueError(f"{root} must hold img_align_celeba/ or img_align_celeba.zip beside {PARTITION}")


def _stamp(path: Path) -> tuple:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
