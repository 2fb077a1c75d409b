"""Images to be read, one by one: files, and the members of container files."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import atomic
from . import containers, formats
from .content import IMAGES, Content, Member
from .finding import Found, Patterns, find
from .image import Encoding, Image, Range, UnreadableImage, reading

PARTS = ".parts"  # added to a container's name: the folder of its results while some are missing
HASH_BLOCK = 2**20


@dataclass(frozen=True)
class Source:
    """One image to be read: a file, or a member of a container file.

    Attributes
    ----------
    path : Path
        The file.
    place : Path
        Of its result, or of the container it goes into, inside the output folder.
    member : Member or None
    position : int
        Of the member in its container.
    """

    path: Path
    place: Path
    member: Member | None = None
    position: int = 0

    @property
    def item(self) -> str:
        """What the manifest calls it: unique in a job."""
        return self.place.as_posix() if self.member is None else f"{self.place.as_posix()}::{self.member}"

    def result(self, out: Path) -> Path:
        """Where its result is written, inside the folder `out`."""
        if self.member is None:
            return self.target(out)
        suffix = containers.part_suffix(self.path, self.member)
        return self.parts(out) / f"{self.position:06d}{suffix}"

    def target(self, out: Path) -> Path:
        """The file that holds its result in the end, inside the folder `out`."""
        return out / self.place

    def parts(self, out: Path) -> Path:
        """The folder of a container's results while some are missing."""
        return atomic.beside(self.target(out), after=PARTS)

    def is_there(self, out: Path) -> bool:
        """Whether its result is, by itself or in its container."""
        return self.result(out).exists() or (self.member is not None and self.target(out).exists())

    def sha256(self) -> str | None:
        """Digest of the file's bytes; None if it cannot be read."""
        try:
            if self.member is None:
                return hashlib.sha256(formats.read_file(self.path)).hexdigest()
            return _file_digest(str(self.path), self.path.stat().st_mtime_ns)  # once for all members
        except OSError:
            return None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of one of the formats, by itself or in an archive."""
        return self.member is None or containers.is_archive(self.path)

    def content(self) -> bytes:
        """The bytes of that file; UnreadableImage if they cannot be had."""
        if self.member is not None:
            return containers.member_bytes(self.path, self.member)
        with reading(self.path):
            return formats.read_file(self.path)

    def read(self, intensities: Range | None = None) -> tuple[Image, str]:
        """(image, digest of the bytes it was read from).

        Raises
        ------
        UnreadableImage
            As `read_image`.
        """
        if self.member is not None:
            return containers.read_member(self.path, self.member, intensities), self.sha256() or ""
        data = self.content()
        return formats.decode(data, self.path, intensities), hashlib.sha256(data).hexdigest()

    def read_array(self) -> tuple[np.ndarray, str]:
        """(a measurement that is no image, digest of its file); UnreadableImage as for `read`."""
        return containers.read_array(self.path, self.member), self.sha256() or ""

    def encoding_of_result(self, intensities: Range | None) -> Encoding:
        """How the image is stored that comes from a measurement."""
        return containers.encoding_of_result(self.path, self.member, intensities)

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}::{self.member}"


def find_sources(
    patterns: Patterns | Found,
    recursive: bool = False,
    out: Path | None = None,
    content: Content = IMAGES,
) -> tuple[list[Source], list[UnreadableImage], Found]:
    """(images in the files that `find_images` finds, containers that could not be listed, what was found at all).

    Nothing is looked for in the output folder `out`. Of containers, `content` counts.
    """
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


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, changed_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
