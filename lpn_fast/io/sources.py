"""Images to be read, one by one: files, and the members of container files."""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import atomic
from . import containers, formats
from .containers import IMAGES, Content, Member
from .finding import Found, Patterns, find
from .image import Encoding, Image, Range, Stored, UnreadableImage, reading, version_of

PARTS = ".parts"  # added to a container's name: the folder of its results while some are missing


@dataclass(frozen=True)
class Source:
    """One image to be read: a file, or a member of a container file."""

    path: Path
    place: Path  # of its result, or of the container it goes into, inside the output folder
    member: Member | None = None
    position: int = 0  # of the member in its container

    @property
    def item(self) -> str:
        """What the manifest calls it: unique in a job."""
        return self.place.as_posix() if self.member is None else f"{self.place.as_posix()}::{self.member}"

    def result(self, out: Path) -> Path:
        """Where its result is written, inside the folder `out`."""
        return out / self.place if self.member is None else self.parts(out) / f"{self.position:06d}{self._suffix}"

    def parts(self, out: Path) -> Path:
        """The folder of a container's results while some are missing."""
        return atomic.beside(out / self.place, after=PARTS)

    def is_there(self, out: Path) -> bool:
        """Whether its result is, by itself or in its container."""
        return self.result(out).exists() or (out / self.place).exists()

    def sha256(self) -> str | None:
        """Digest of the file's bytes; None if it cannot be read."""
        try:
            if self.member is None:
                return hashlib.sha256(formats.read_file(self.path)).hexdigest()
            return _file_digest(self.path, version_of(self.path))  # once for all members
        except OSError:
            return None

    def stored(self, intensities: Range | None = None) -> Stored:
        """The image as it is stored; UnreadableImage as for `read_image`."""
        with reading(str(self)):
            return containers.stored_of(self.path, self.member).within(intensities)

    def read(self, intensities: Range | None = None) -> tuple[Image, str]:
        """(image, digest of the bytes it was read from); UnreadableImage as for `read_image`."""
        if self.member is not None:
            return self.stored(intensities).image(Path(str(self))), self.sha256() or ""
        with reading(self.path):
            data = formats.read_file(self.path)
        return formats.decode(data, self.path, intensities), hashlib.sha256(data).hexdigest()

    def read_array(self) -> tuple[np.ndarray, str]:
        """(a measurement that is no image, digest of its file); UnreadableImage as for `read`."""
        with reading(str(self)):
            return containers.array_of(self.path, self.member), self.sha256() or ""

    def encoding_of_result(self, intensities: Range | None) -> Encoding:
        """How the image is stored that comes from a measurement."""
        is_plane = self._suffix == ".npy" and self.path.suffix.lower() not in (".tif", ".tiff")
        return Encoding(self._suffix, "float32", is_plane, intensities)

    @property
    def _suffix(self) -> str:
        """Of the file that holds its result, for now or for good."""
        if self.member is None:
            return self.path.suffix.lower()
        return Path(self.member.name).suffix.lower() if containers.is_archive(self.path) else ".npy"

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}::{self.member}"


def find_sources(
    patterns: Patterns, recursive: bool = False, out: Path | None = None, content: Content = IMAGES
) -> tuple[list[Source], list[UnreadableImage], Found]:
    """(images outside the folder `out`, of containers `content`; containers not to be listed; all that was found)."""
    found = find(patterns, recursive, out)
    sources: list[Source] = []
    broken: list[UnreadableImage] = []
    for path, place in found.places.items():
        if not containers.is_container(path, content):
            sources.append(Source(path, place))
            continue
        try:
            members, others = containers.members(path, content)
            sources += [Source(path, place, member, i) for i, member in enumerate(members)]
            found.members += len(others)
        except UnreadableImage as error:
            broken.append(error)
    return sources, broken, found


def put_together(sources: Iterable[Source], out: Path) -> tuple[str, ...]:
    """Pack containers whose results are all in the folder `out`; the names of the others."""
    results: dict[Source, list[tuple[Member, Path]]] = {}  # by container
    for source in sources:
        if source.member is not None:
            results.setdefault(Source(source.path, source.place), []).append((source.member, source.result(out)))
    incomplete = []
    for container, parts in results.items():
        folder, target = container.parts(out), container.result(out)
        if not target.exists() and all(part.exists() for _, part in parts):
            containers.pack(container.path, parts, target)
        if not target.exists():
            incomplete.append(container.item)
        elif folder.is_dir():
            gone = atomic.beside(folder, ".", ".gone")  # whole or gone: a kill in between must not leave some parts
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)
    return tuple(incomplete)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, version: tuple) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
