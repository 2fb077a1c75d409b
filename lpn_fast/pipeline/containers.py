"""Files that hold many images: .npz, .zip, .h5, and .npy stacks. Their results are one such file again.

    stack.npy           (N, C, H, W), C = 1 or 3           members 0 .. N - 1
    arrays.npz          any number of arrays               members `name`, and `name[i]` of a stack
    photos.zip          files of any format in images.py   members by their name
    scans.h5            datasets, in groups or not         members as for .npz

While a job runs, results lie as single files in a hidden folder; when the last one is there, the container is
written in one go and the folder vanishes. So a kill costs what it costs for plain files.
"""

import contextlib
import functools
import io
import os
import shutil
import tokenize
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from .. import atomic
from . import images
from .images import HEADER_LOCK, Image, Range, UnreadableImage, from_array, one_line

CONTAINER_SUFFIXES = (".npz", ".zip", ".h5", ".hdf5")
MAX_MEMBER_BYTES = 2**31  # an unpacked zip member: more than any image needs, less than a zip bomb
STACK_DIMENSIONS = 4


@dataclass(frozen=True)
class Member:
    """One image of a container.

    Attributes
    ----------
    name : str
        Of the array or file in it; "" for the one array of a .npy file.
    index : int or None
        Position in a stack, or among the files of one name that a .zip may hold.
    """

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


@dataclass(frozen=True)
class Arrays:
    """Measurements that are no images: arrays of so many axes, or stacks of them.

    Attributes
    ----------
    dims : int
    is_complex : bool
    """

    dims: int
    is_complex: bool = False


def is_container(path: Path, arrays: Arrays | None = None) -> bool:
    """Whether a file holds several images or arrays; the header of a .npy file tells a stack from a single one."""
    suffix = path.suffix.lower()
    if suffix != ".npy":
        return suffix in CONTAINER_SUFFIXES
    try:
        return len(_mapped(path).shape) == (STACK_DIMENSIONS if arrays is None else arrays.dims + 1)
    except (OSError, ValueError, EOFError):
        return False  # reading it as an image will say what is wrong


def members(path: Path, arrays: Arrays | None = None) -> tuple[list[Member], list[str]]:
    """The images of a container, or such arrays, in its order, and what it holds besides.

    Raises
    ------
    UnreadableImage
        No container, or one without images.
    """
    try:
        found, others = _LISTINGS[path.suffix.lower()](path, arrays)
    except Exception as error:  # see images.decode
        raise UnreadableImage(path, one_line(error)) from error
    if not found:
        raise UnreadableImage(path, "it holds no images" + (f", but {others[0]}" if others else ""))
    return found, others


def read_member(path: Path, member: Member, intensities: Range | None = None) -> Image:
    """One image of a container; its `path` is that of the container and the member's name.

    Raises
    ------
    UnreadableImage
        As `read_image`.
    """
    shown = Path(f"{path}::{member}")
    if path.suffix.lower() == ".zip":
        try:
            data = _zip_member(path, member)
        except Exception as error:  # see images.decode
            raise UnreadableImage(shown, one_line(error)) from error
        return images.decode(data, Path(f"{path}::{member.name}"), intensities)
    try:
        array = _ARRAYS[path.suffix.lower()](path, member)
        image = from_array(array, shown, intensities)
        images.check_values(image.pixels)
    except Exception as error:
        raise UnreadableImage(shown, one_line(error)) from error
    return image


def read_array(path: Path, member: Member | None) -> np.ndarray:
    """An array as it is stored, of a container or of a .npy or float TIFF file.

    Raises
    ------
    UnreadableImage
        As `read_image`, or a file of another kind.
    """
    shown = path if member is None else Path(f"{path}::{member}")
    try:
        if member is not None and path.suffix.lower() != ".zip":
            return _ARRAYS[path.suffix.lower()](path, member)
        data = path.read_bytes() if member is None else _zip_member(path, member)
        suffix = Path(path.name if member is None else member.name).suffix.lower()
        if suffix == ".npy":
            with HEADER_LOCK:
                return np.load(io.BytesIO(data), allow_pickle=False)
        with PIL.Image.open(io.BytesIO(data)) as picture:
            if picture.mode != "F" or getattr(picture, "n_frames", 1) > 1:
                raise ValueError("measurements must be floating-point: .npy, .npz, .h5, or one page of float TIFF")
            return np.asarray(picture)
    except Exception as error:  # see images.decode
        raise UnreadableImage(shown, one_line(error)) from error


def part_suffix(path: Path, member: Member | None) -> str:
    """Of the file that holds a member's result until all are there, or of the result of a file."""
    if member is None:
        return path.suffix.lower()
    return Path(member.name).suffix.lower() if path.suffix.lower() == ".zip" else ".npy"


def pack(source: Path, parts: list[tuple[Member, Path]], out: Path) -> None:
    """Write the results of a container, made from the files that hold them, as one file like `source`.

    Parameters
    ----------
    source : Path
        The container the members came from.
    parts : list of (Member, Path)
        Results in the order of the container; a stack must be complete.
    out : Path
        Absent or complete after this.

    Raises
    ------
    OSError
        The folder cannot be written to, or is full.
    """
    with atomic.replacing(out, alone=True) as temporary:
        _PACKERS[source.suffix.lower()](parts, temporary)


def remove_parts(folder: Path) -> None:
    """Remove a folder of parts so that it is whole or gone: a kill in between must not leave some of them."""
    gone = atomic.beside(folder, ".", ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


# ---- what is in a container


Listing = tuple[list[Member], list[str]]  # images, and what else there is


def _of_array(name: str, shape: tuple[int, ...], dtype: np.dtype, listing: Listing, wanted: Arrays | None) -> None:
    """Add an array to a listing. Labels, say, are no images: as such they would keep the result from being complete."""
    if wanted is None:
        dims, suits = STACK_DIMENSIONS - 1, dtype.kind == "f" or dtype in (np.uint8, np.uint16)
        suits &= 2 <= len(shape) <= STACK_DIMENSIONS
    else:
        dims, suits = wanted.dims, dtype.kind == "c" if wanted.is_complex else dtype.kind in "fui"
        suits &= len(shape) in (dims, dims + 1)
    if not suits:
        listing[1].append(f"{name or 'its array'} of shape {shape} and type {dtype}")
    elif len(shape) == dims + 1:
        listing[0].extend(Member(name, index) for index in range(shape[0]))
    else:
        listing[0].append(Member(name))


def _list_npy(path: Path, arrays: Arrays | None) -> Listing:
    array, listing = _mapped(path), ([], [])
    _of_array("", array.shape, array.dtype, listing, arrays)
    return listing


def _list_npz(path: Path, arrays: Arrays | None) -> Listing:
    """From the headers: the arrays themselves stay on disk."""
    listing: Listing = ([], [])
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename for entry in archive.infolist()]
        if len(set(names)) < len(names):
            raise ValueError(f"it holds several arrays of one name, {max(names, key=names.count)}")
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as file:
                    _of_array(entry.filename[: -len(".npy")], *_header(file), listing, arrays)
    return listing


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _header_errors():
        shape, _, dtype = read(file)
    return shape, dtype


def _list_zip(path: Path, arrays: Arrays | None) -> Listing:
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    visible = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)]
    found, others, seen, total = [], [], Counter(), Counter(visible)
    for name in visible:
        if Path(name).suffix.lower() not in images.IMAGE_SUFFIXES:
            others.append(name)
            continue
        found.append(Member(name, seen[name] if total[name] > 1 else None))
        seen[name] += 1
    return found, others


def _list_h5(path: Path, arrays: Arrays | None) -> Listing:
    listing: Listing = ([], [])

    def visit(name: str | bytes, item) -> None:
        if isinstance(name, bytes):
            raise ValueError(f"names of datasets must be UTF-8, got {name!r}")
        if hasattr(item, "shape"):
            _of_array(name, item.shape, item.dtype, listing, arrays)

    with _h5py().File(path, "r") as file:
        file.visititems(visit)
    return listing


_LISTINGS = {".npy": _list_npy, ".npz": _list_npz, ".zip": _list_zip, ".h5": _list_h5, ".hdf5": _list_h5}


# ---- reading one image


def _mapped(path: Path) -> np.ndarray:
    with _header_errors():
        return np.load(path, mmap_mode="r", allow_pickle=False)


@contextlib.contextmanager
def _header_errors():
    """One thread at a time; numpy hands on what Python's tokenizer thinks of a broken header."""
    try:
        with HEADER_LOCK:
            yield
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"the header of the array is damaged: {error}") from error


def _npy_array(path: Path, member: Member) -> np.ndarray:
    return np.array(_mapped(path)[member.index])


def _npz_array(path: Path, member: Member) -> np.ndarray:
    array = _npz_entry(str(path), path.stat().st_mtime_ns, member.name)
    return array if member.index is None else array[member.index]


@functools.lru_cache(maxsize=1)
def _npz_entry(path: str, changed_ns: int, name: str) -> np.ndarray:
    """A stack is compressed as a whole: its members come one after the other and share one unpacking."""
    with HEADER_LOCK, np.load(path, allow_pickle=False) as archive:
        return archive[name]


def _h5_array(path: Path, member: Member) -> np.ndarray:
    with _h5py().File(path, "r") as file:
        dataset = file[member.name]
        return np.asarray(dataset[()] if member.index is None else dataset[member.index])


_ARRAYS = {".npy": _npy_array, ".npz": _npz_array, ".h5": _h5_array, ".hdf5": _h5_array}


def _zip_member(path: Path, member: Member) -> bytes:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename == member.name]
        entry = entries[-1 if member.index is None else member.index]
        if entry.file_size > MAX_MEMBER_BYTES:
            raise ValueError(f"it must unpack to at most {MAX_MEMBER_BYTES} bytes, got {entry.file_size}")
        return archive.read(entry)


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise ValueError('reading HDF5 needs h5py: pip install "lpn-fast[hdf5]"') from error
    return h5py


# ---- writing them together


def _stacked(parts: list[tuple[Member, Path]]):
    """(name, array) per array of the container, one at a time; members of a stack lie next to each other."""
    start = 0
    while start < len(parts):
        member, stop = parts[start][0], start + 1
        if member.index is None:
            yield member.name, np.load(parts[start][1], allow_pickle=False)
        else:
            while stop < len(parts) and parts[stop][0].name == member.name:
                stop += 1
            yield member.name, np.stack([np.load(part, allow_pickle=False) for _, part in parts[start:stop]])
        start = stop


def _pack_npy(parts, out: Path) -> None:
    """Part by part into a mapped file: a stack need not fit into memory."""
    first = np.load(parts[0][1], allow_pickle=False)
    shape = (len(parts), *first.shape)
    target = np.lib.format.open_memmap(out, mode="w+", dtype=first.dtype, shape=shape)
    for row, (_, part) in zip(target, parts, strict=True):
        row[...] = np.load(part, allow_pickle=False)
    target.flush()


def _pack_npz(parts, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, array in _stacked(parts):
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())


def _pack_zip(parts, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # images are compressed already
        for member, part in parts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a name that is there already, as in the source
                archive.write(part, member.name)


def _pack_h5(parts, out: Path) -> None:
    with _h5py().File(out, "w") as file:
        for name, array in _stacked(parts):
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)


_PACKERS = {".npy": _pack_npy, ".npz": _pack_npz, ".zip": _pack_zip, ".h5": _pack_h5, ".hdf5": _pack_h5}
