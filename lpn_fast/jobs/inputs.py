"""The images of a job: files, members of containers, and objects at URLs, as rows that any worker can read."""

import glob
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ..io import Image, Member, Range, UnreadableImage, containers, formats
from ..io.containers import Content
from ..io.finding import LIST_MARK, SOURCE_SUFFIXES, Found, each
from ..io.sources import Source
from .index import Index
from .places import MARK, Entry, Remote, absolute, file_system, is_url, place_of, retried
from .rows import Cell

MOST_IMAGES, MOST_BYTES = 64, 2**26  # files that travel together: what a worker holds of them is bounded

NO_CONTAINER = (
    "a container is read from file systems only, since its images are read one by one, by many workers; copy it to a "
    "folder that all workers share and name that path"
)


class Arrived(Cell):
    """A file of which a worker was sent the bytes, or why there are none."""

    def __init__(self, item: str, named: str, value: bytes, reason: str = ""):
        super().__init__(0, value, named)
        self.item, self.named, self.reason, self.path = item, named, reason, Path(named)

    def bytes(self) -> bytes:
        if self.reason:
            raise UnreadableImage(self.path, self.reason)
        return super().bytes()

    def read(self, intensities: Range | None = None) -> tuple[Image, str]:
        try:
            return super().read(intensities)
        except UnreadableImage as error:
            if self.reason or not _is_stack(self.value, self.path):
                raise
            raise UnreadableImage(self.path, f"{error.reason}; {NO_CONTAINER}") from error

    def __str__(self) -> str:
        return self.named


@dataclass
class Inputs:
    """What a job is about.

    Attributes
    ----------
    index : Index
        Of the images.
    broken : list of (Source, str)
        Containers that cannot be read, and why.
    passed_over : str
        What was in folders besides, in words.
    """

    index: Index
    broken: list[tuple[Source, str]]
    passed_over: str = ""


def find(images: str | Path | Iterable[str | Path], recursive: bool, out: str | Path, content: Content) -> Inputs:
    """The images named by files, folders, patterns, lists and URLs; errors as for `pipeline.find_images`."""
    named = list(_named([images] if isinstance(images, str | Path) else images))
    local, urls = [name for name in named if not is_url(name)], [str(name) for name in named if is_url(name)]
    index, broken, found = Index(), [], Found()
    if local or not urls:
        for path, place in each(local, recursive, None if is_url(out) else Path(out), found):
            index.add_file(path, place)
        index.tell_apart()
        for number, path, place in index.files():
            if not containers.is_container(path, content):
                index.add_image(number, Source(path, place))
                continue
            try:
                members, others = containers.members(path, content)
            except UnreadableImage as error:
                broken.append((Source(path, place), error.reason))
                continue
            found.members += len(others)
            for position, member in enumerate(members):
                index.add_image(number, Source(path, place, member, position))
        if index.count_left() == 0 and not broken:
            raise ValueError("images must name at least one file, folder or pattern, got none")
    for url in urls:
        for where, entry in _at(url, recursive, found):
            if Path(entry.name).suffix.lower() in formats.BY_SUFFIX:
                index.add_remote(where, entry)
            else:
                broken.append((Remote(Path(where), Path(entry.name), url=where), NO_CONTAINER))
    index.add_remote_images()
    if (twice := index.shared_name()) is not None:
        raise ValueError(
            f"every image must get a result of its own name, got several {twice}; name their common folder"
        )
    taken = index.taken_at(str(out).rstrip("/")) if is_url(out) else None
    if taken is not None:
        raise ValueError(f"out must not be the folder of the images, {taken} would be overwritten")
    return Inputs(index, broken, str(found))


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


def _at(url: str, recursive: bool, found: Found) -> Iterator[tuple[str, Entry]]:
    """(URL, entry) of what a URL names: one file, those of a folder, or those that match a pattern."""
    fs, path = file_system(url)
    start = url[: len(url.rstrip("/")) - len(path)] if url.rstrip("/").endswith(path) else url.partition(MARK)[0] + MARK
    entries: Iterable[tuple[str, Entry]]
    if glob.has_magic(url) and not url.startswith("http"):
        fixed = path[: min(path.find(c) for c in "*?[" if c in path)].rpartition("/")[0]
        matches = sorted(retried(fs.glob, path, detail=True).items())
        entries = [
            (f"{start}{name}", Entry(name[len(fixed) :].lstrip("/"), info.get("size") or 0))
            for name, info in matches
            if info["type"] == "file"
        ]
    elif Path(path).suffix.lower() in SOURCE_SUFFIXES and not url.endswith("/"):
        entries = [(url, Entry(path.rpartition("/")[2], 0))]  # reading it will say whether it is there
    else:
        place = place_of(url)
        entries = ((f"{url.rstrip('/')}/{entry.name}", entry) for entry in place.entries(recursive))
    are_some = False
    for where, entry in entries:
        name = Path(entry.name)
        if name.name.startswith("."):
            continue
        if name.suffix.lower() in SOURCE_SUFFIXES:
            are_some = True
            yield where, entry
        else:
            found.ignored[name.suffix.lower().removeprefix(".") or "no suffix"] += 1
    if not are_some:
        raise FileNotFoundError(
            f"there are no images at {url}, or they are in subfolders, which --recursive looks into"
        )


def _is_stack(data: bytes, path: Path) -> bool:
    """Whether a file that is no image is several."""
    try:
        if path.suffix.lower() == ".npy":
            return len(formats.from_npy(data).shape) > 2
        return getattr(PIL.Image.open(io.BytesIO(data)), "n_frames", 1) > 1
    except Exception:  # it is anything
        return False


def _size(source: Source) -> int:
    try:
        return source.path.stat().st_size if source.member is None else 0
    except OSError:
        return 0
