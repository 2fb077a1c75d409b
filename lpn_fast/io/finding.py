"""Which files are meant by what was named, where their results belong, and what was passed over.

    named file      a result of its name
    folder          of the names below the folder: photos/trip/a.jpg found in photos is trip/a.jpg
    pattern         of the names below its fixed part: photos/*/a.jpg likewise

Where two files would get one result, all keep their names below the folder that they have in common.
"""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import containers, formats

SOURCE_SUFFIXES = (*formats.BY_SUFFIX, *containers.CONTAINER_SUFFIXES)
LIST_MARK = "@"  # before the name of a text file that lists images, one per line
Patterns = str | Path | Iterable[str | Path]
Placed = tuple[Path, Path]  # a file, and the place of its result


@dataclass
class Found:
    """Files to be read, each with the name of its result inside the output folder, and what was passed over."""

    places: dict[Path, Path] = field(default_factory=dict)  # in a reproducible order
    ignored: Counter[str] = field(default_factory=Counter)  # files of folders that are no images, by suffix
    folders: int = 0  # that were not looked into
    members: int = 0  # what containers hold besides images

    def __str__(self) -> str:
        by_suffix = ", ".join(f"{suffix} {count}" for suffix, count in sorted(self.ignored.items()))
        passed_over = (
            (self.ignored.total(), "file", f"ignored: {by_suffix}"),
            (self.folders, "subfolder", "not looked into, which --recursive does"),
            (self.members, "member", "of containers ignored, no images"),
        )
        return "; ".join(f"{count} {what}{'s' * (count != 1)} {why}" for count, what, why in passed_over if count)


def find_images(patterns: Patterns, recursive: bool = False) -> list[Path]:
    """Image and container files named by files, folders, patterns and lists, in a reproducible order.

    A folder stands for the files directly in it that have a known suffix, without hidden ones. A file that is
    named is returned, once, whatever it is called: if it is no image, reading it will say so.

    Parameters
    ----------
    patterns : path or iterable of paths
        Each an existing file or folder; a pattern with `*`, `?` or `[...]` (`**` descends); or
        `@list.txt`, a text file (UTF-8) with one of these per line.
    recursive : bool
        Whether a folder stands for the files in its subfolders as well.

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
    return list(find(patterns, recursive).places)


def find(patterns: Patterns, recursive: bool = False, besides: Path | None = None) -> Found:
    """As `find_images`, with the places of results and what was passed over; nothing inside the folder `besides`."""
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    found, files = Found(), dict[str, Placed]()
    for path, place in each(patterns, recursive, besides, found):
        files.setdefault(os.path.abspath(path), (path, place))
    if not files:
        raise ValueError("images must name at least one file, folder or pattern, got none")
    found.places = dict(files.values())
    if len(set(found.places.values())) < len(files):
        shared = os.path.commonpath(map(os.path.dirname, files))
        found.places = {path: Path(own).relative_to(shared) for own, (path, _) in files.items()}
    return found


def each(patterns: Iterable[str | Path], recursive: bool, besides: Path | None, found: Found) -> Iterator[Placed]:
    """One after the other, some of them maybe twice, and no more held than the names in one folder."""
    for pattern in map(Path, patterns):
        named = [pattern]
        if str(pattern).startswith(LIST_MARK) and not pattern.exists():
            path = Path(str(pattern).removeprefix(LIST_MARK))
            if not path.is_file():
                raise FileNotFoundError(f"there is no list of files {path}")
            try:
                named = list(map(Path, filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines()))))
            except UnicodeDecodeError as error:
                raise ValueError(f"a list of files must be UTF-8 text, {path} is none: {error}") from error
        for one in named:
            yield from _matches(one, recursive, besides, found)


def _matches(pattern: Path, recursive: bool, besides: Path | None, found: Found) -> Iterator[Placed]:
    if pattern.is_file():
        yield pattern, Path(pattern.name)
    elif pattern.is_dir():
        path = None
        for path in _inside(pattern, recursive, besides, found):
            yield path, path.relative_to(pattern)
        if path is None:
            besides_these = f" ({found})" if str(found) else ""
            raise ValueError(f"{pattern} must hold images ({', '.join(SOURCE_SUFFIXES)}), found none{besides_these}")
    elif not glob.has_magic(str(pattern)):
        raise FileNotFoundError(f"there is no file or folder {pattern}")
    else:
        matching = sorted(p for p in map(Path, glob.glob(str(pattern), recursive=True)) if p.is_file())
        if not matching:
            raise FileNotFoundError(f"no file matches {str(pattern)!r}")
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
        yield from ((path, path.relative_to(fixed)) for path in matching)


def _inside(folder: Path, recursive: bool, besides: Path | None, found: Found) -> Iterator[Path]:
    """The image files of a folder, sorted by name, those of its subfolders after them."""
    with os.scandir(folder) as listing:  # which knows of most entries what they are
        entries = sorted((entry.name, entry.is_dir()) for entry in listing if not entry.name.startswith("."))
    for path in (folder / name for name, is_folder in entries if not is_folder):
        if containers.is_source(path):  # pipes and links to nothing as well: reading them says so
            yield path
        else:
            found.ignored[path.suffix.lower().removeprefix(".") or "no suffix"] += 1
    for path in (folder / name for name, is_folder in entries if is_folder):
        if besides is not None and path.resolve() == besides.resolve():
            continue
        if recursive and not path.is_symlink():
            yield from _inside(path, recursive, besides, found)
        else:
            found.folders += 1


def identity(path: Path) -> str | None:
    """The same for all names of a file; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return f"{status.st_dev} {status.st_ino}"
