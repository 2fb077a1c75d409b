"""Files that hold many images: arrays, archives, TIFF stacks. Their results are one such file again.

    stack.npy           (N, C, H, W), C = 1 or 3, or (N, H, W), N not 1 or 3      members 0 .. N - 1
    arrays.npz          any number of arrays, each an image or such a stack       members `name`, and `name[i]`
    scans.h5            datasets, in groups or not                                members as for .npz
    stack.tif           pages, or planes of an ImageJ stack or a volume           members 0 .. N - 1
    train-images-idx3   as MNIST is distributed, gzipped or not                   members 0 .. N - 1
    photos.zip          files of any format in formats.py                         members by their name

Nothing is allocated on the word of a header, and nothing is read that lies in other files.
"""

import collections
import functools
import gzip
import itertools
import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import atomic
from ..contract import needed
from . import formats, tiff
from .image import RANGELESS, Stored, check_size, from_array, range_of, reading, version_of

MOST_MEMBERS = 10**6
IDX_UINT8 = 0x08
PLANES = (1, 3)


@dataclass(frozen=True)
class Member:
    """One image of a container."""

    name: str  # what the array or file in it is called; "" for the one array of a .npy, TIFF or idx file
    index: int | None = None  # position in a stack, or among the files of one name that a .zip may hold

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


@dataclass(frozen=True)
class Images:
    """What is looked for in a container: arrays that are images, or stacks of them."""

    any_type: bool = False  # those of a type that does not say what 0 and 1 are as well; labels, most often

    def suits(self, dtype: np.dtype) -> bool:
        """Whether numbers of that type can be some."""
        return range_of(dtype) is not None or (self.any_type and dtype.kind in "iu")

    def is_stack(self, shape: tuple[int, ...]) -> bool | None:
        """None for no such array: (H, W), (C, H, W) and (H, W, C) are images, the last one to be refused."""
        if not 2 <= len(shape) <= 4:
            return None
        return len(shape) == 4 or (len(shape) == 3 and shape[0] not in PLANES and shape[-1] not in PLANES)


@dataclass(frozen=True)
class Arrays:
    """What is looked for in a container: measurements that are no images, of so many axes, or stacks of them."""

    dims: int
    is_complex: bool = False

    def suits(self, dtype: np.dtype) -> bool:
        return dtype.kind in ("c" if self.is_complex else "fiu")

    def is_stack(self, shape: tuple[int, ...]) -> bool | None:
        return len(shape) > self.dims if self.dims <= len(shape) <= self.dims + 1 else None


Content = Images | Arrays
IMAGES = Images()
Listing = tuple[list[Member], list[str]]  # what was looked for, and what else there is
Parts = list[tuple[Member, Path]]


@dataclass(frozen=True)
class Container:
    """A row of the table: how its members are listed, how one is read, how results are put together."""

    members: Callable[[Path, Content], Listing]
    array: Callable[[Path, Member], np.ndarray]
    pack: Callable[[Path, Parts, Path], None]


def is_container(path: Path, content: Content = IMAGES) -> bool:
    """Whether a file holds several to be listed; the header tells a stack from a single one."""
    kind = _kind(path)
    if kind not in (".npy", ".tif"):
        return kind in CONTAINERS
    if not formats.BY_SUFFIX[kind].begins(formats.head_of(path)):
        return False
    try:
        return tiff.count(path) > 1 if kind == ".tif" else bool(content.is_stack(_mapped(path).shape))
    except Exception:
        return False  # reading it as an image will say what is wrong


def is_archive(path: Path) -> bool:
    """Whether its members are files of formats of their own."""
    return _kind(path) == ".zip"


def is_source(path: Path) -> bool:
    """Whether a file in a folder is taken for one of images, by its name; or it has no suffix and is DICOM."""
    if _kind(path) in CONTAINERS or path.suffix.lower() in formats.BY_SUFFIX:
        return True
    return not any(map(str.isalpha, path.suffix)) and formats.DICOM.begins(formats.head_of(path))  # .5 of 1.2.840.5


def members(path: Path, content: Content = IMAGES) -> Listing:
    """What a container holds of `content`, in its order, and what besides; UnreadableImage for one without any."""
    with reading(path):
        formats.read_file(path, 1)  # a pipe would be waited for
        found, others = CONTAINERS[_kind(path)].members(path, content)
        if not found:
            raise ValueError("it holds no images" + (f", but {others[0]}" if others else ""))
        if len(found) > MOST_MEMBERS:
            raise ValueError(f"it must hold at most {MOST_MEMBERS} images, got {len(found)}")
        return found, others


def array_of(path: Path, member: Member | None) -> np.ndarray:
    """The numbers of a file, or of a member of one, as they are stored."""
    if member is None:
        return formats.decode_array(*_file(path, None))
    return CONTAINERS[_kind(path)].array(path, member)


def stored_of(path: Path, member: Member | None) -> Stored:
    """The image that a file is, or a member of one."""
    if member is None or is_archive(path):
        return formats.decode_stored(*_file(path, member))
    if _kind(path) != ".tif":
        return from_array(array_of(path, member))
    stored = tiff.read(path, member.index)
    return replace(stored, encoding=replace(stored.encoding, suffix=".npy", kept={}))  # what holds its result for now


def pack(source: Path, parts: Parts, out: Path) -> None:
    """Write results, in the order of the container and complete, as one file like `source`; `out` is it or absent."""
    with atomic.replacing(out, alone=True) as temporary:
        CONTAINERS[_kind(source)].pack(source, parts, temporary)


def _kind(path: Path) -> str:
    """Key of the table below, if it has one."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(("-ubyte", ".ubyte", ".idx")) or "-idx" in name:
        return ".idx"
    suffix = path.suffix.lower()
    return {".tiff": ".tif", ".hdf5": ".h5"}.get(suffix, suffix)


def _listed(arrays: Iterable[tuple[str, tuple[int, ...], np.dtype]], content: Content) -> Listing:
    """Of (name, shape, type). What is not looked for keeps no result from being complete."""
    found: list[Member] = []
    others: list[str] = []
    for name, shape, dtype in arrays:
        is_stack = content.is_stack(shape) if math.prod(shape) > 0 else None
        if is_stack is None or not content.suits(dtype):
            hint = RANGELESS if is_stack is not None and isinstance(content, Images) and dtype.kind in "iu" else ""
            others.append(f"{name or 'its array'} of shape {shape} and type {dtype}{hint}")
        elif is_stack:
            found.extend(Member(name, index) for index in range(min(shape[0], MOST_MEMBERS + 1)))
        else:
            found.append(Member(name))
    return found, others


def _list_array(array: np.ndarray, content: Content) -> Listing:
    return _listed([("", array.shape, array.dtype)], content)


def _part(array, member: Member) -> np.ndarray:
    return np.asarray(array if member.index is None else array[member.index])


def _load(part: Path) -> np.ndarray:
    return formats.from_npy(part.read_bytes())


def _stacked(parts: Parts) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) per array of the container, one at a time; members of a stack lie next to each other."""
    for (name, is_stack), group in itertools.groupby(parts, lambda part: (part[0].name, part[0].index is not None)):
        arrays = [_load(part) for _, part in group]
        yield name, np.stack(arrays) if is_stack else arrays[0]


def _mapped(path: Path) -> np.ndarray:
    with formats.HEADER_LOCK:
        return np.lib.format.open_memmap(path, mode="r")  # ValueError for Python objects


def _pack_npy(source: Path, parts: Parts, out: Path) -> None:
    """Part by part into a mapped file: a stack need not fit into memory."""
    first = _load(parts[0][1])
    target = np.lib.format.open_memmap(out, mode="w+", dtype=first.dtype, shape=(len(parts), *first.shape))
    for row, (_, part) in zip(target, parts, strict=True):
        row[...] = _load(part)
    target.flush()


@functools.lru_cache(maxsize=1)
def _idx(path: Path, version: tuple) -> np.ndarray:
    """The array of an idx file of bytes, unpacked no further than its header announces."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != IDX_UINT8:
            raise ValueError(f"not an idx file of bytes, its magic number is {magic.hex()}")
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        check_size(math.prod(shape), path.stat().st_size)
        content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        raise ValueError(f"its header announces {shape} bytes, it holds {len(content)}: truncated?")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _pack_idx(source: Path, parts: Parts, out: Path) -> None:
    with gzip.open(out, "wb") if source.suffix.lower() == ".gz" else open(out, "wb") as file:
        for _, array in _stacked(parts):
            file.write(struct.pack(f">HBB{array.ndim}I", 0, IDX_UINT8, array.ndim, *array.shape) + array.tobytes())


def _h5(path: Path, mode: str = "r"):
    return needed("h5py", "hdf5", "reading HDF5").File(path, mode)


def _checked(dataset):
    """The dataset; ValueError if its numbers lie in other files, or are more than the file can hold."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} lies in other files (external or virtual storage), which are not read")
    stored = dataset.id.get_storage_size()
    check_size(dataset.nbytes, stored)
    check_size(math.prod(dataset.chunks or ()) * dataset.dtype.itemsize, stored)
    return dataset


def _list_h5(path: Path, content: Content) -> Listing:
    arrays = []

    def visit(name: str | bytes, item) -> None:
        if isinstance(name, bytes):
            raise ValueError(f"names of datasets must be UTF-8, got {name!r}")
        if hasattr(item, "shape") and item.shape is not None:
            numbers = _checked(item) if item.dtype.kind in "fiuc" else item
            arrays.append((name, numbers.shape, numbers.dtype))

    with _h5(path) as file:
        file.visititems(visit)  # which follows no link to other files
    return _listed(arrays, content)


def _h5_array(path: Path, member: Member) -> np.ndarray:
    with _h5(path) as file:
        return _part(_checked(file[member.name]), member)


def _pack_h5(source: Path, parts: Parts, out: Path) -> None:
    with _h5(out, "w") as file:
        for name, array in _stacked(parts):
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)


@functools.lru_cache(maxsize=2)
def _archive(path: Path, version: tuple) -> zipfile.ZipFile:
    """Its list of files is read, and checked, once for all members; any thread may read from it."""
    archive, size = zipfile.ZipFile(path), path.stat().st_size
    for entry in archive.infolist():
        check_size(entry.file_size, min(entry.compress_size, size))
    return archive


def _file(path: Path, member: Member | None) -> tuple[bytes, Path]:
    """(bytes, name, whose suffix may decide) of a file, by itself or in an archive."""
    if member is None:
        return formats.read_file(path), path
    archive = _archive(path, version_of(path))
    named = [archive.getinfo(member.name)]
    if member.index is not None:
        named = [entry for entry in archive.infolist() if entry.filename == member.name]
    return archive.read(named[member.index or 0]), Path(f"{path}::{member.name}")


def _list_npz(path: Path, content: Content) -> Listing:
    """From the headers: the arrays themselves stay on disk."""
    archive, arrays = _archive(path, version_of(path)), []
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise ValueError(f"its arrays must have different names, got several {max(names, key=names.count)}")
    for entry in archive.infolist():
        if entry.filename.endswith(".npy"):
            with archive.open(entry) as file:
                shape, _, dtype = formats.npy_header(file)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} announces {shape} of {dtype} in {entry.file_size} bytes")
            arrays.append((entry.filename.removesuffix(".npy"), shape, dtype))
    return _listed(arrays, content)


@functools.lru_cache(maxsize=1)
def _npz_array(path: Path, version: tuple, name: str) -> np.ndarray:
    """A stack is compressed as a whole: its members come one after the other and share one unpacking."""
    return formats.from_npy(_file(path, Member(f"{name}.npy"))[0])


def _pack_npz(source: Path, parts: Parts, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, array in _stacked(parts):
            archive.writestr(f"{name}.npy", formats.to_npy(array))


def _list_zip(path: Path, content: Content) -> Listing:
    names = [name for name in _archive(path, version_of(path)).namelist() if not name.endswith("/")]
    visible = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)]
    total, seen = collections.Counter(visible), collections.Counter[str]()
    found = []
    for name in visible:
        if Path(name).suffix.lower() in formats.BY_SUFFIX:
            found.append(Member(name, seen[name] if total[name] > 1 else None))
            seen[name] += 1
    return found, [name for name in visible if name not in seen]


def _pack_zip(source: Path, parts: Parts, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that is there already, as in the source
        for member, part in parts:
            archive.write(part, member.name)  # images are compressed already


CONTAINERS = {
    ".npy": Container(lambda p, c: _list_array(_mapped(p), c), lambda p, m: _part(_mapped(p), m), _pack_npy),
    ".npz": Container(_list_npz, lambda p, m: _part(_npz_array(p, version_of(p), m.name), m), _pack_npz),
    ".zip": Container(_list_zip, lambda p, m: formats.decode_array(*_file(p, m)), _pack_zip),
    ".h5": Container(_list_h5, _h5_array, _pack_h5),
    ".tif": Container(
        lambda p, _: ([Member("", index) for index in range(min(tiff.count(p), MOST_MEMBERS + 1))], []),
        lambda p, m: tiff.read(p, m.index).plane,
        lambda source, parts, out: tiff.pack(source, (_load(part) for _, part in parts), _load(parts[0][1]), out),
    ),
    ".idx": Container(
        lambda p, c: _list_array(_idx(p, version_of(p)), c), lambda p, m: _part(_idx(p, version_of(p)), m), _pack_idx
    ),
}
CONTAINER_SUFFIXES = (".npz", ".zip", ".h5", ".hdf5")
