"""Where images come from: files, folders, glob patterns, lists of files, and the members of container files."""

import functools
import glob
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..io import Image, Member, Range, UnreadableImage, containers, formats
from ..io.image import one_line

SOURCE_SUFFIXES = (*formats.BY_SUFFIX, *containers.CONTAINER_SUFFIXES)
LIST_MARK = "@"  # before the name of a text file that lists images, one per line
PARTS = ".parts"  # added to a container's name: the folder of its results while some are missing
HASH_BLOCK = 2**20


@dataclass(frozen=True)
class Source:
    """One image to be read: a file, or a member of a container file.

    Attributes
    ----------
    path : Path
        The file.
    member : Member or None
    position : int
        Of the member in its container.
    """

    path: Path
    member: Member | None = None
    position: int = 0

    @property
    def item(self) -> str:
        """What the manifest calls it: unique among files of different names."""
        return self.path.name if self.member is None else f"{self.path.name}::{self.member}"

    def result(self, out: Path) -> Path:
        """Where its result is written, inside the folder `out`."""
        if self.member is None:
            return out / self.path.name
        suffix = containers.part_suffix(self.path, self.member)
        return out / f"{self.path.name}{PARTS}" / f"{self.position:06d}{suffix}"

    def is_there(self, out: Path) -> bool:
        """Whether its result is, by itself or in its container."""
        return self.result(out).exists() or (self.member is not None and (out / self.path.name).exists())

    def sha256(self) -> str | None:
        """Digest of the file's bytes; None if it cannot be read."""
        try:
            if self.member is None:
                return hashlib.sha256(formats.read_file(self.path)).hexdigest()
            return _file_digest(str(self.path), self.path.stat().st_mtime_ns)  # once for all members
        except OSError:
            return None

    def read(self, intensities: Range | None = None) -> tuple[Image, str]:
        """(image, digest of the bytes it was read from).

        Raises
        ------
        UnreadableImage
            As `read_image`.
        """
        if self.member is not None:
            return containers.read_member(self.path, self.member, intensities), self.sha256() or ""
        try:
            data = formats.read_file(self.path)
        except OSError as error:
            raise UnreadableImage(self.path, one_line(error)) from error
        return formats.decode(data, self.path, intensities), hashlib.sha256(data).hexdigest()

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}::{self.member}"


def find_images(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image and container files named by files, folders, patterns and lists, in a reproducible order.

    A folder stands for the files directly in it that have a known suffix, without hidden ones. A file that is
    named is returned whatever it is called: if it is no image, reading it will say so.

    Parameters
    ----------
    patterns : path or iterable of paths
        Each an existing file or folder; a pattern with `*`, `?` or `[...]` (`**` descends); or
        `@list.txt`, a text file (UTF-8) with one of these per line.

    Returns
    -------
    list of Path
        Every file once.

    Raises
    ------
    FileNotFoundError
        A file or folder that is not there, or a pattern that matches nothing.
    ValueError
        A folder without images, a list that is no text, or no pattern at all.

    Examples
    --------
    >>> import tempfile, torch
    >>> from lpn_fast.pipeline import Encoding, write_image
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_image(folder / "a.png", torch.zeros(1, 2, 2), Encoding(".png", "uint8"))
    >>> [path.name for path in find_images(folder)]
    ['a.png']
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    found: dict[Path, None] = {}  # a set that keeps its order
    for pattern in patterns:
        for path in _listed(pattern):
            found.update(dict.fromkeys(_matches(path)))
    if not found:
        raise ValueError("images must name at least one file, folder or pattern, got none")
    return list(found)


def find_sources(patterns: str | Path | Iterable[str | Path]) -> tuple[list[Source], list[UnreadableImage]]:
    """(images in the files that `find_images` finds, containers that could not be listed)."""
    sources: list[Source] = []
    broken: list[UnreadableImage] = []
    for path in find_images(patterns):
        if not containers.is_container(path):
            sources.append(Source(path))
            continue
        try:
            sources += [Source(path, member, i) for i, member in enumerate(containers.members(path))]
        except UnreadableImage as error:
            broken.append(error)
    return sources, broken


def _listed(pattern: str | Path) -> list[Path]:
    text = str(pattern)
    if not text.startswith(LIST_MARK) or Path(text).exists():
        return [Path(pattern)]
    path = Path(text[len(LIST_MARK) :])
    if not path.is_file():
        raise FileNotFoundError(f"there is no list of files {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"a list of files must be UTF-8 text, {path} is none: {error}") from error
    return [Path(line.strip()) for line in lines if line.strip()]


def _matches(pattern: Path) -> list[Path]:
    if pattern.is_file():
        return [pattern]
    if pattern.is_dir():
        visible = (path for path in pattern.iterdir() if not path.name.startswith("."))
        files = sorted(path for path in visible if containers.is_source(path))
        if not files:
            raise ValueError(f"{pattern} must hold images ({', '.join(SOURCE_SUFFIXES)}), found none")
        return files
    if not glob.has_magic(str(pattern)):
        raise FileNotFoundError(f"there is no file or folder {pattern}")
    files = sorted(p for p in map(Path, glob.glob(str(pattern), recursive=True)) if p.is_file())
    if not files:
        raise FileNotFoundError(f"no file matches {str(pattern)!r}")
    return files


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, changed_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
