"""Arrays of images, stored as HDF5 or as idx, the format in which MNIST is distributed.

Nothing is allocated on the word of a header, and nothing is read that lies in other files.
"""

import functools
import gzip
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .formats import HEADER_LOCK
from .image import Stored, check_size, from_array

MOST_MEMBERS = 10**6
PLANES = (1, 3)
IDX_UINT8 = 0x08


@dataclass(frozen=True)
class Member:
    """One image of a container.

    Attributes
    ----------
    name : str
        Of the array or file in it; "" for the one array of a .npy, TIFF or idx file.
    index : int or None
        Position in a stack.
    """

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


def of_array(name: str, shape: tuple[int, ...]) -> list[Member]:
    """(H, W), (C, H, W) and (H, W, C) are images, the last one to be refused; all else a stack of them."""
    if math.prod(shape) == 0 or not 2 <= len(shape) <= 4:
        return []
    if len(shape) == 2 or (len(shape) == 3 and (shape[0] in PLANES or shape[-1] in PLANES)):
        return [Member(name)]
    return [Member(name, index) for index in range(min(shape[0], MOST_MEMBERS + 1))]


def image_of(array: np.ndarray, member: Member) -> Stored:
    return from_array(array if member.index is None else array[member.index])


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


def list_h5(path: Path) -> list[Member]:
    found: list[Member] = []

    def visit(name: str | bytes, item) -> None:
        if isinstance(name, bytes):
            raise ValueError(f"names of datasets must be UTF-8, got {name!r}")
        if hasattr(item, "shape") and item.shape is not None and item.dtype.kind in "fiu":
            found.extend(of_array(name, _checked(item).shape))

    with _h5py().File(path, "r") as file:
        file.visititems(visit)  # which follows no link to other files
    return found


def read_h5(path: Path, member: Member) -> Stored:
    with _h5py().File(path, "r") as file:
        dataset = _checked(file[member.name])
        return from_array(np.asarray(dataset[() if member.index is None else member.index]))


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


def pack_idx(source: Path, parts, out: Path) -> None:
    with gzip.open(out, "wb") if source.suffix.lower() == ".gz" else open(out, "wb") as file:
        for _, array in stacked(parts):
            file.write(struct.pack(f">HBB{array.ndim}I", 0, IDX_UINT8, array.ndim, *array.shape) + array.tobytes())
