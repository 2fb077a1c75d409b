"""Where samples come from, by layout: folders, archives, digit files, CelebA, Mayo CT, HDF5.

    folder            its image, .npy and DICOM files by name; with `recursive`, those below it
    .zip              its members of those kinds
    .npz              the array `x_train`, or the only one, (N, H, W) or (N, C, H, W)
    idx, idx .gz      as MNIST is distributed, (N, H, W) uint8
    .h5, .hdf5        the dataset `data` (LoDoPaB-CT), or the only one, (N, H, W)
    CelebA            a folder with list_eval_partition.txt and img_align_celeba (a folder or a .zip)

Every sample has a name, which errors and exclusions use. Archives are read without unpacking, nothing executes.
"""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .readers import BROKEN, SAMPLE_SUFFIXES, Reader

ARCHIVES = {".zip"}
STACKS = {".npz", ".h5", ".hdf5"}
SPLITS = {"train": 0, "validation": 1, "test": 2}  # CelebA's numbers
PARTITION = "list_eval_partition.txt"
IDX_UINT8 = 0x08


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
        raise ValueError(
            f"no images ({', '.join(sorted(SAMPLE_SUFFIXES | ARCHIVES | STACKS))}) in {list(map(str, sources))}"
        )
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
            suffix = path.suffix.lower()
            if suffix in SAMPLE_SUFFIXES:
                yield _file(path)
            elif suffix in {".h5", ".hdf5"}:
                yield from _stack(path)
            elif not suffix and _has_dicom_preamble(path):
                yield _file(path)
    elif source.suffix.lower() in ARCHIVES:
        yield from _archive(source)
    elif source.suffix.lower() in STACKS or _is_idx(source):
        yield from _stack(source)
    else:
        yield _file(source)


def _file(path: Path) -> Item:
    return Item(str(path), _stamp(path), lambda reader: reader(str(path), path.read_bytes()))


def _archive(path: Path, wanted: set[str] | None = None) -> Iterator[Item]:
    archive = _opened(path)
    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        name = info.filename
        if Path(name).suffix.lower() not in SAMPLE_SUFFIXES or (wanted is not None and Path(name).name not in wanted):
            continue
        yield Item(f"{path}:{name}", (*_stamp(path), info.CRC), partial(_read_member, archive, path, name))


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is not a readable zip archive: {error}") from error


def _read_member(archive: zipfile.ZipFile, path: Path, name: str, reader: Reader) -> np.ndarray:
    try:
        content = archive.read(name)
    except (zipfile.BadZipFile, *BROKEN, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path}:{name} is not readable: {error}") from error
    return reader(f"{path}:{name}", content)


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
            yield _file(folder / name)
    elif archive.exists():
        yield from _archive(archive, wanted)
    else:
        raise ValueError(f"{root} must hold img_align_celeba/ or img_align_celeba.zip beside {PARTITION}")


def _stack(path: Path) -> Iterator[Item]:
    """One item per sample of an array file; the array is opened when the first one is read, once."""
    opened: list = []

    def array():
        if not opened:
            opened.append(open_stack(path))
        return opened[0]

    def read(index: int, reader: Reader) -> np.ndarray:
        try:
            return reader.of_array(np.asarray(array()[index]))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}:{index} is not a readable sample: {error}") from error

    for index in range(len(array())):
        yield Item(f"{path}:{index}", _stamp(path), partial(read, index))


def open_stack(path: str | Path):
    """The array of samples in an .npz, idx or HDF5 file, (N, H, W) or (N, C, H, W); HDF5 reads on indexing.

    Raises
    ------
    ValueError
        Truncated or foreign file, or not one array of that rank.
    ImportError
        h5py is missing.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                stack = file[_only_key(list(file), "x_train")]
        elif path.suffix.lower() in {".h5", ".hdf5"}:
            stack = _hdf5(path)
        else:
            stack = read_idx(path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(stack.shape) not in (3, 4):
        raise ValueError(f"{path} must hold (N, H, W) or (N, C, H, W), got {tuple(stack.shape)}")
    return stack


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an idx file of bytes, as MNIST is distributed, gzipped or not."""
    path = Path(path)
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    zero, kind, rank = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != IDX_UINT8:
        raise ValueError(f"not an idx file of bytes, its magic number is {content[:4].hex()}")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    if len(content) != 4 + 4 * rank + math.prod(shape):
        raise ValueError(f"its header announces {shape} bytes, it holds {len(content) - 4 - 4 * rank}: truncated?")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _hdf5(path: Path):
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py: pip install lpn-fast[hdf5]") from error
    file = h5py.File(path, "r")  # stays open as long as its dataset is in use
    return file[_only_key([key for key in file if isinstance(file[key], h5py.Dataset)], "data")]


def _only_key(keys: list[str], preferred: str) -> str:
    if preferred in keys:
        return preferred
    if len(keys) != 1:
        raise ValueError(f"it must hold {preferred!r} or a single array, got {keys}")
    return keys[0]


def _is_idx(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return name.endswith(("-ubyte", ".ubyte", ".idx")) or "-idx" in name


def _has_dicom_preamble(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _stamp(path: Path) -> tuple:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
