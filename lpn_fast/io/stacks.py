"""Arrays of images, stored as HDF5 or as idx, the format in which MNIST is distributed.

Nothing is allocated on the word of a header, and nothing is read that lies in other files.
"""

import functools
import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .content import Arrays, Content, Images, Listing, Member
from .formats import HEADER_LOCK
from .image import RANGELESS, check_size, version_of

MOST_MEMBERS = 10**6
IDX_UINT8 = 0x08


def of_array(name: str, shape: tuple[int, ...], dtype: np.dtype, content: Content, listing: Listing) -> None:
    """Add an array to a listing. What is not looked for keeps no result from being complete."""
    is_stack = content.is_stack(shape) if math.prod(shape) > 0 else None
    if is_stack is None or not content.suits(dtype):
        needs_range = is_stack is not None and isinstance(content, Images) and dtype.kind in "iu"
        listing[1].append(f"{name or 'its array'} of shape {shape} and type {dtype}{RANGELESS if needs_range else ''}")
    elif is_stack:
        listing[0].extend(Member(name, index) for index in range(min(shape[0], MOST_MEMBERS + 1)))
    else:
        listing[0].append(Member(name))


def list_array(array: np.ndarray, content: Content) -> Listing:
    """The one array of a file."""
    listing: Listing = ([], [])
    of_array("", array.shape, array.dtype, content, listing)
    return listing


def part_of(array: np.ndarray, member: Member) -> np.ndarray:
    return array if member.index is None else array[member.index]


def load(part: Path) -> np.ndarray:
    with HEADER_LOCK:
        return np.load(part, allow_pickle=False)


def stacked(parts: list[tuple[Member, Path]]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) per array of the container, one at a time; members of a stack lie next to each other."""
    start = 0
    while start < len(parts):
        member, stop = parts[start][0], start + 1
        if member.index is None:
            yield member.name, load(parts[start][1])
        else:
            while stop < len(parts) and parts[stop][0].name == member.name:
                stop += 1
            yield member.name, np.stack([load(part) for _, part in parts[start:stop]])
        start = stop


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise ValueError('reading HDF5 needs h5py: pip install "lpn-fast[hdf5]"') from error
    return h5py


def _checked(dataset):
    """The dataset; ValueError if its numbers lie in other files, or are more than the file can hold."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} lies in other files (external or virtual storage), which are not read")
    stored = dataset.id.get_storage_size()
    check_size(dataset.nbytes, stored)
    check_size(math.prod(dataset.chunks or ()) * dataset.dtype.itemsize, stored)
    return dataset


def list_h5(path: Path, content: Content) -> Listing:
    listing: Listing = ([], [])

    def visit(name: str | bytes, item) -> None:
        if isinstance(name, bytes):
            raise ValueError(f"names of datasets must be UTF-8, got {name!r}")
        if hasattr(item, "shape") and item.shape is not None:
            numbers = _checked(item) if item.dtype.kind in "fiuc" else item
            of_array(name, numbers.shape, numbers.dtype, content, listing)

    with _h5py().File(path, "r") as file:
        file.visititems(visit)  # which follows no link to other files
    return listing


def h5_array(path: Path, member: Member) -> np.ndarray:
    with _h5py().File(path, "r") as file:
        dataset = _checked(file[member.name])
        return np.asarray(dataset[() if member.index is None else member.index])


def pack_h5(source: Path, parts, out: Path) -> None:
    with _h5py().File(out, "w") as file:
        for name, array in stacked(parts):
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)


@functools.lru_cache(maxsize=1)
def idx_array(path: Path, version: tuple) -> np.ndarray:
    """The array of an idx file of bytes, unpacked no further than its header announces."""
    size = path.stat().st_size
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != IDX_UINT8:
            raise ValueError(f"not an idx file of bytes, its magic number is {magic.hex()}")
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        check_size(math.prod(shape), size)
        content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        raise ValueError(f"its header announces {shape} bytes, it holds {len(content)}: truncated?")
    return np.frombuffer(content, np.uint8).reshape(shape)


def list_idx(path: Path, content: Content) -> Listing:
    if isinstance(content, Arrays):
        raise ValueError("measurements must be floating-point, it holds bytes")
    return list_array(idx_array(path, version_of(path)), content)


def pack_idx(source: Path, parts, out: Path) -> None:
    with gzip.open(out, "wb") if source.suffix.lower() == ".gz" else open(out, "wb") as file:
        for _, array in stacked(parts):
            file.write(struct.pack(f">HBB{array.ndim}I", 0, IDX_UINT8, array.ndim, *array.shape) + array.tobytes())
