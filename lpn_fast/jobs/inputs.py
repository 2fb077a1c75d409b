"""The images of a job: files, members of containers, and objects at URLs, as rows that any worker can read."""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io import Member, UnreadableImage, formats
from ..io.content import Content
from ..io.finding import LIST_MARK, SOURCE_SUFFIXES
from ..io.sources import Source, find_sources
from .places import MARK, Entry, absolute, file_system, is_url, place_of, retried
from .rows import Cell

MOST_IMAGES, MOST_BYTES = 64, 2**26  # files that travel together: what a worker holds of them is bounded


@dataclass(frozen=True)
class Remote(Source):
    """An image at a URL; `path` is no path of any file system.

    Attributes
    ----------
    url : str
    size : int
        Bytes, 0 if unknown.
    modified : float or None
        Seconds since 1970.
    """

    url: str = ""
    size: int = 0
    modified: float | None = None

    @classmethod
    def listed(cls, url: str, entry: Entry) -> "Remote":
        return cls(Path(url), Path(entry.name), url=url, size=entry.size, modified=entry.modified)

    def __str__(self) -> str:
        return self.url


class Arrived(Cell):
    """A file of which a worker was sent the bytes, or why there are none."""

    def __init__(self, item: str, named: str, value: bytes, reason: str = ""):
        super().__init__(0, value, named)
        self.item, self.named, self.reason, self.path = item, named, reason, Path(named)

    def bytes(self) -> bytes:
        if self.reason:
            raise UnreadableImage(self.path, self.reason)
        return super().bytes()

    def __str__(self) -> str:
        return self.named


@dataclass
class Inputs:
    """What a job is about.

    Attributes
    ----------
    sources : list of Source
    broken : list of (Source, str)
        Containers that could not be listed, and why.
    passed_over : str
        What was in folders besides, in words.
    """

    sources: list
    broken: list[tuple[Any, str]]
    passed_over: str = ""


def find(images: str | Path | Iterable[str | Path], recursive: bool, out: str | Path, content: Content) -> Inputs:
    """The images named by files, folders, patterns, lists and URLs; errors as for `pipeline.find_images`."""
    named = list(_named([images] if isinstance(images, str | Path) else images))
    local, urls = [name for name in named if not is_url(name)], [str(name) for name in named if is_url(name)]
    inputs = Inputs([], [])
    if local or not urls:
        sources, unlisted, found = find_sources(local, recursive, None if is_url(out) else Path(out), content)
        inputs.sources += sources
        inputs.broken += [(Source(error.path, found.places[error.path]), error.reason) for error in unlisted]
        inputs.passed_over = str(found)
    known = set()
    for url in urls:
        found = [remote for remote in _at(url, recursive) if remote.url not in known]
        known |= {remote.url for remote in found}
        inputs.sources += found
    items = [source.item for source in inputs.sources]
    if len(set(items)) < len(items):
        twice = Counter(items).most_common(1)[0][0]
        raise ValueError(
            f"every image must get a result of its own name, got several {twice}; name their common folder"
        )
    if taken := known & set(place_of(out).urls(items) if is_url(out) else ()):
        raise ValueError(f"out must not be the folder of the images, {min(taken)} would be overwritten")
    return inputs


def batches(sources: Iterable, most: int = MOST_IMAGES) -> Iterator[list]:
    """The sources in lists of at most so many images and MOST_BYTES of files."""
    batch, held = [], 0
    for source in sources:
        size = source.size if isinstance(source, Remote) else _size(source)
        if batch and (len(batch) == most or held + size > MOST_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(source)
        held += size
    if batch:
        yield batch


def to_columns(sources: list) -> dict[str, list]:
    """Sources as columns of plain values, none of them missing: engines make NaN of columns of None."""
    members = [source.member for source in sources]
    return {
        "where": [source.url if isinstance(source, Remote) else absolute(source.path) for source in sources],
        "named": [str(source) for source in sources],
        "place": [source.place.as_posix() for source in sources],
        "is_member": [member is not None for member in members],
        "member": ["" if member is None else member.name for member in members],
        "index": [-1 if member is None or member.index is None else member.index for member in members],
        "position": [getattr(source, "position", 0) for source in sources],
    }


def from_columns(columns: dict) -> list[Source]:
    """The sources of columns. One at a URL is a `Source` of a place only: its bytes come beside it."""
    names = ("where", "place", "is_member", "member", "index", "position")
    rows = zip(*(columns[name] for name in names), strict=True)
    return [
        Source(
            Path(where),
            Path(place),
            Member(member, None if index < 0 else int(index)) if is_member else None,
            int(position),
        )
        for where, place, is_member, member, index, position in rows
    ]


def _named(images: Iterable[str | Path]) -> Iterator[str | Path]:
    """Lists of files that hold URLs are taken apart; others are left to those who know paths."""
    for name in images:
        text = str(name)
        if text.startswith(LIST_MARK) and Path(text[1:]).is_file() and MARK.encode() in Path(text[1:]).read_bytes():
            yield from (
                line.strip() for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line.strip()
            )
        else:
            yield name


def _at(url: str, recursive: bool) -> list[Remote]:
    """The images that a URL names: one, those of a folder, or those that match a pattern."""
    fs, path = file_system(url)
    start = url[: len(url.rstrip("/")) - len(path)] if url.rstrip("/").endswith(path) else url.partition(MARK)[0] + MARK
    if glob.has_magic(url) and not url.startswith("http"):
        fixed = path[: min(path.find(c) for c in "*?[" if c in path)].rpartition("/")[0]
        matches = sorted(retried(fs.glob, path, detail=True).items())
        found = [(name[len(fixed) :].lstrip("/"), f"{start}{name}", info) for name, info in matches]
        entries = [
            (Entry(inside, info.get("size") or 0), where) for inside, where, info in found if info["type"] == "file"
        ]
    elif Path(path).suffix.lower() in SOURCE_SUFFIXES and not url.endswith("/"):
        entries = [(Entry(path.rpartition("/")[2], 0), url)]  # reading it will say whether it is there
    else:
        place = place_of(url)
        listed = sorted(place.entries(recursive), key=lambda entry: entry.name)
        entries = [(entry, place.urls([entry.name])[0]) for entry in listed]
    remotes = [
        Remote.listed(where, entry)
        for entry, where in entries
        if Path(entry.name).suffix.lower() in formats.BY_SUFFIX and not Path(entry.name).name.startswith(".")
    ]
    if not remotes:
        raise FileNotFoundError(
            f"there are no images at {url}, or they are in subfolders, which --recursive looks into"
        )
    return remotes


def _size(source: Source) -> int:
    try:
        return source.path.stat().st_size if source.member is None else 0
    except OSError:
        return 0
