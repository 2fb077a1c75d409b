"""Files that hold many images: arrays, archives, TIFF stacks. Their results are one such file again.

    stack.npy           (N, C, H, W), C = 1 or 3, or (N, H, W), N not 1 or 3      members 0 .. N - 1
    arrays.npz          any number of arrays, each an image or such a stack       members `name`, and `name[i]`
    scans.h5            datasets, in groups or not                                members as for .npz
    stack.tif           pages, or planes of an ImageJ stack or a volume           members 0 .. N - 1
    train-images-idx3   as MNIST is distributed, gzipped or not                   members 0 .. N - 1
    photos.zip          files of any format in formats.py                         members by their name

Nothing is allocated on the word of a header, and nothing is read that lies in other files.

While a job runs, results lie as single files in a hidden folder; when the last one is there, the container is
written in one go and the folder vanishes. So a kill costs what it costs for plain files.
"""

import collections
import functools
import math
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import atomic
from . import formats, tiff
from .content import IMAGES, Content, Listing, Member
from .formats import head_of, npy_header, to_npy
from .image import Encoding, Image, Range, Stored, check_size, from_array, reading, version_of
from .stacks import (
    MOST_MEMBERS,
    h5_array,
    idx_array,
    list_array,
    list_h5,
    list_idx,
    load,
    of_array,
    pack_h5,
    pack_idx,
    part_of,
    stacked,
)


@dataclass(frozen=True)
class Container:
    """A row of the table: how its members are listed, how one is read, how results are put together."""

    members: Callable[[Path, Content], Listing]
    array: Callable[[Path, Member], np.ndarray]  # for archives, where it is a .npy file
    pack: Callable[[Path, list[tuple[Member, Path]], Path], None]


def is_container(path: Path, content: Content = IMAGES) -> bool:
    """Whether a file holds several to be listed; the header tells a stack from a single one."""
    kind = _kind(path)
    if kind not in (".npy", ".tif"):
        return kind in CONTAINERS
    if not formats.BY_SUFFIX[kind].begins(head_of(path)):
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
    return _kind(path) in CONTAINERS or formats.is_image(path)


def members(path: Path, content: Content = IMAGES) -> Listing:
    """What a container holds of `content`, in its order, and what besides.

    Raises
    ------
    UnreadableImage
        No container, or one without any.
    """
    with reading(path):
        formats.read_file(path, 1)  # a pipe would be waited for
        found, others = CONTAINERS[_kind(path)].members(path, content)
        if not found:
            raise ValueError("it holds no images" + (f", but {others[0]}" if others else ""))
        if len(found) > MOST_MEMBERS:
            raise ValueError(f"it must hold at most {MOST_MEMBERS} images, got {len(found)}")
        return found, others


def member_bytes(path: Path, member: Member) -> bytes:
    """The file in an archive.

    Raises
    ------
    UnreadableImage
        The archive, or the file in it, is damaged.
    """
    with reading(f"{path}::{member}"):
        archive = _archive(path, version_of(path))
        if member.index is None:
            entry = archive.getinfo(member.name)
        else:
            entry = [entry for entry in archive.infolist() if entry.filename == member.name][member.index]
        check_size(entry.file_size, min(entry.compress_size, path.stat().st_size))
        return archive.read(entry)


def member_stored(path: Path, member: Member, intensities: Range | None = None) -> Stored:
    """One image of a container, as stored; see `read_member`."""
    with reading(f"{path}::{member}"):
        if is_archive(path):
            data = member_bytes(path, member)
            return formats.decode_stored(data, Path(f"{path}::{member.name}"), intensities)  # its suffix may decide
        kind = _kind(path)
        stored = _tiff_stored(path, member) if kind == ".tif" else from_array(CONTAINERS[kind].array(path, member))
        return formats.with_range(stored, intensities)


def read_member(path: Path, member: Member, intensities: Range | None = None) -> Image:
    """One image of a container; its `path` is that of the container and the member's name.

    Raises
    ------
    UnreadableImage
        As `read_image`.
    """
    return member_stored(path, member, intensities).image(Path(f"{path}::{member}"))


def read_array(path: Path, member: Member | None) -> np.ndarray:
    """A measurement as it is stored, of a container or of a .npy or float TIFF file.

    Raises
    ------
    UnreadableImage
        As `read_image`, or a file of another kind.
    """
    with reading(path if member is None else f"{path}::{member}"):
        if member is not None and not is_archive(path):
            return CONTAINERS[_kind(path)].array(path, member)
        data = formats.read_file(path) if member is None else member_bytes(path, member)
        return array_of(data, path if member is None else Path(f"{path}::{member.name}"))


def array_of(data: bytes, path: Path) -> np.ndarray:
    """A measurement in the bytes of a .npy or float TIFF file; UnreadableImage for another file."""
    with reading(path):
        if formats.format_of(data[: formats.HEAD_BYTES], path) is formats.BY_SUFFIX[".npy"]:
            return formats.from_npy(data)
        return _one_plane(formats.decode_stored(data, path))


def _one_plane(stored: Stored) -> np.ndarray:
    if stored.values.dtype.kind != "f" or len(stored.values) > 1:
        raise ValueError("measurements must be floating-point: .npy, .npz, .h5, or float TIFF")
    return stored.values[0]


def encoding_of_result(path: Path, member: Member | None, intensities: Range | None) -> Encoding:
    """How the image is stored that comes from the measurement in a file, or in a member of it."""
    suffix = path.suffix.lower() if member is None else part_suffix(path, member)
    return Encoding(suffix, "float32", is_plane=suffix == ".npy" and _kind(path) != ".tif", intensities=intensities)


def part_suffix(path: Path, member: Member) -> str:
    """Suffix of the file that holds a member's result until all are there."""
    return Path(member.name).suffix.lower() if is_archive(path) else ".npy"


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
        CONTAINERS[_kind(source)].pack(source, parts, temporary)


def remove_parts(folder: Path) -> None:
    """Remove a folder of parts so that it is whole or gone: a kill in between must not leave some of them."""
    gone = atomic.beside(folder, ".", ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _kind(path: Path) -> str:
    """Key of the table below, if it has one."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(("-ubyte", ".ubyte", ".idx")) or "-idx" in name:
        return ".idx"
    suffix = path.suffix.lower()
    return {".tiff": ".tif", ".hdf5": ".h5"}.get(suffix, suffix)


# ---- arrays


def _mapped(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        shape, is_fortran, dtype = npy_header(file)
        if dtype.kind not in "fiuc":  # not to be mapped if it holds Python objects
            raise ValueError(f"dtype must be a floating-point, complex or integer type, got {dtype}")
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")


def _pack_npy(source: Path, parts, out: Path) -> None:
    """Part by part into a mapped file: a stack need not fit into memory."""
    first = load(parts[0][1])
    target = np.lib.format.open_memmap(out, mode="w+", dtype=first.dtype, shape=(len(parts), *first.shape))
    for row, (_, part) in zip(target, parts, strict=True):
        row[...] = load(part)
    target.flush()


# ---- archives


@functools.lru_cache(maxsize=2)
def _archive(path: Path, version: tuple) -> zipfile.ZipFile:
    """Its list of files is read once for all members; any thread may read from it."""
    return zipfile.ZipFile(path)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """Files of an archive; ValueError for claims that it cannot hold."""
    entries = [entry for entry in _archive(path, version_of(path)).infolist() if not entry.is_dir()]
    for entry in entries:
        check_size(entry.file_size, min(entry.compress_size, path.stat().st_size))
    return entries


def _list_npz(path: Path, content: Content) -> Listing:
    """From the headers: the arrays themselves stay on disk."""
    listing: Listing = ([], [])
    entries = _entries(path)
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"its arrays must have different names, got several {max(names, key=names.count)}")
    for entry in entries:
        if entry.filename.endswith(".npy"):
            with _archive(path, version_of(path)).open(entry) as file:
                shape, _, dtype = npy_header(file)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} announces {shape} of {dtype} in {entry.file_size} bytes")
            of_array(entry.filename[: -len(".npy")], shape, dtype, content, listing)
    return listing


@functools.lru_cache(maxsize=1)
def _npz_array(path: Path, version: tuple, name: str) -> np.ndarray:
    """A stack is compressed as a whole: its members come one after the other and share one unpacking."""
    return formats.from_npy(member_bytes(path, Member(f"{name}.npy")))


def _pack_npz(source: Path, parts, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, array in stacked(parts):
            archive.writestr(f"{name}.npy", to_npy(array))


def _list_zip(path: Path, content: Content) -> Listing:
    names = [entry.filename for entry in _entries(path)]
    visible = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)]
    (found, others), total = ([], []), collections.Counter(visible)
    seen: collections.Counter[str] = collections.Counter()
    for name in visible:
        if Path(name).suffix.lower() not in formats.BY_SUFFIX:
            others.append(name)
            continue
        found.append(Member(name, seen[name] if total[name] > 1 else None))
        seen[name] += 1
    return found, others


def _pack_zip(source: Path, parts, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # images are compressed already
        for member, part in parts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a name that is there already, as in the source
                archive.write(part, member.name)


# ---- TIFF


def _list_tiff(path: Path, content: Content) -> Listing:
    return [Member("", index) for index in range(min(tiff.count(path), MOST_MEMBERS + 1))], []


def _tiff_stored(path: Path, member: Member) -> Stored:
    stored = tiff.read(path, member.index)
    return replace(stored, encoding=replace(stored.encoding, suffix=".npy", kept={}))


def _pack_tiff(source: Path, parts, out: Path) -> None:
    tiff.pack(source, (load(part) for _, part in parts), load(parts[0][1]), out)


CONTAINERS = {
    ".npy": Container(lambda p, w: list_array(_mapped(p), w), lambda p, m: part_of(_mapped(p), m), _pack_npy),
    ".npz": Container(_list_npz, lambda p, m: part_of(_npz_array(p, version_of(p), m.name), m), _pack_npz),
    ".zip": Container(_list_zip, lambda p, m: formats.from_npy(member_bytes(p, m)), _pack_zip),
    ".h5": Container(list_h5, h5_array, pack_h5),
    ".tif": Container(_list_tiff, lambda p, m: _one_plane(_tiff_stored(p, m)), _pack_tiff),
    ".idx": Container(list_idx, lambda p, m: part_of(idx_array(p, version_of(p)), m), pack_idx),
}
CONTAINER_SUFFIXES = (".npz", ".zip", ".h5", ".hdf5")
