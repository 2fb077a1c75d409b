"""Where images and results lie: folders of a file system, and URLs by fsspec.

    file system      a file gets its name once it is complete (atomic.py)
    object store     one put, which is atomic there
    other URLs       put under another name, then moved

Requests that fail are repeated a few times, ever later; what cannot become better is not. Credentials are whatever
fsspec finds for itself: its configuration files, FSSPEC_... and the store's own environment variables.
"""

import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .. import atomic
from ..contract import needed
from ..io import formats
from ..io.sources import Source

Answer = TypeVar("Answer")

MARK = "://"
WHOLE_PUTS = ("abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a")  # whose objects appear when they are complete
ATTEMPTS = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds
FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, NotImplementedError, PermissionError, TypeError)
MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")  # what file systems call it


@dataclass(frozen=True)
class Entry:
    """A file of a listing; `modified` in seconds since 1970, None where the place does not tell."""

    name: str
    size: int
    modified: float | None = None


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

    def __str__(self) -> str:
        return self.url


def is_url(where: str | Path) -> bool:
    """Whether that is a URL, not a path.

    Examples
    --------
    >>> is_url("s3://bucket/scans"), is_url("scans")
    (True, False)
    """
    return MARK in str(where)


def place_of(where: str | Path) -> "Folder | Bucket":
    """The folder or URL of that name."""
    return Bucket(str(where)) if is_url(where) else Folder(Path(where))


@dataclass(frozen=True)
class Folder:
    """A folder of a file system that all workers share."""

    path: Path

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files, each absent or complete at any moment."""
        for name, data in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, data)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Bucket:
    """A folder at a URL."""

    url: str

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write objects, each absent or complete at any moment."""
        if not files:
            return
        fs, root = file_system(self.url)
        paths = {f"{root}/{name}": data for name, data in files.items()}
        if self.url.partition(MARK)[0] in WHOLE_PUTS:
            retried(fs.pipe, paths)
            return
        for path, data in paths.items():
            temporary = f"{path}.{uuid.uuid4().hex}.tmp"
            retried(fs.makedirs, path.rpartition("/")[0], exist_ok=True)
            retried(fs.pipe_file, temporary, data)
            retried(fs.mv, temporary, path)

    def read(self, names: list[str]) -> list[bytes]:
        return [result if isinstance(result, bytes) else _raised(result) for result in read(self.urls(names))]

    def urls(self, names: Iterable[str]) -> list[str]:
        return [f"{self.url.rstrip('/')}/{name}" for name in names]

    def entries(self, recursive: bool = True) -> Iterator[Entry]:
        """What lies there, a folder, which an object store sends in pages, at a time; nothing of it is kept."""
        fs, root = file_system(self.url)
        depth = None if recursive else 1
        for folder, _, files in _walk(fs, root, depth):
            for name, info in sorted(files.items()):
                if name:  # else the empty object that some tools put in place of a folder
                    inside = f"{folder.rstrip('/')}/{name}"[len(root) :].lstrip("/")
                    yield Entry(inside, info.get("size") or 0, _modified(info))

    def remove(self, names: Iterable[str]) -> None:
        fs, root = file_system(self.url)
        if paths := [f"{root}/{name}" for name in names]:
            retried(fs.rm, paths)

    def __str__(self) -> str:
        return self.url


def read(urls: list[str]) -> list[bytes | Exception]:
    """The bytes at each URL, fetched side by side where the file system can; or why there are none."""
    results: dict[str, bytes | Exception] = {}
    left = list(dict.fromkeys(urls))
    for attempt in range(ATTEMPTS):
        by_system: dict = {}
        for url in left:
            fs, path = file_system(url)
            by_system.setdefault(id(fs), (fs, {}))[1][path] = url
        for fs, paths in by_system.values():
            found = fs.cat(list(paths), on_error="return")
            results.update((paths[path], found.get(path, FileNotFoundError(path))) for path in paths)
        left = [url for url in left if isinstance(results[url], Exception) and not isinstance(results[url], FINAL)]
        if not left:
            break
        _pause(attempt)
    return [results[url] for url in urls]


def read_any(where: list[str]) -> list[bytes | Exception]:
    """As `read`, of paths as well."""
    remote = dict(zip(urls := [name for name in where if is_url(name)], read(urls) if urls else [], strict=True))
    return [remote[name] if name in remote else _read_file(name) for name in where]


def _read_file(name: str) -> bytes | Exception:
    try:
        return formats.read_file(Path(name))
    except OSError as error:
        return error


def file_system(url: str) -> tuple:
    """(fsspec's file system, path in it); a ValueError says what to install.

    Listings are not kept: another process may have written since, and a million entries take a gigabyte.
    """
    fsspec = needed("fsspec", "remote", url)
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:  # the store's own package is missing
        raise ValueError(f"{url} needs another package: {error}") from error
    return fs, path.rstrip("/")


def retried(function: Callable[..., Answer], *arguments, **options) -> Answer:
    """The answer of a request, made again a few times if it fails; at last its error.

    Examples
    --------
    >>> answers = [OSError("busy"), OSError("busy")]
    >>> retried(lambda: "done" if not answers else (_ for _ in ()).throw(answers.pop()))
    'done'
    """
    for attempt in range(ATTEMPTS):
        try:
            return function(*arguments, **options)
        except FINAL:
            raise
        except Exception:  # every store has errors of its own
            if attempt == ATTEMPTS - 1:
                raise
            _pause(attempt)
    raise AssertionError("unreachable")


def _pause(attempt: int) -> None:
    """Ever longer, and for many workers not all at once."""
    if attempt < ATTEMPTS - 1:
        time.sleep(random.uniform(0.5, 1.5) * min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))


def _walk(fs, root: str, depth: int | None):
    """As `fs.walk`, whose errors are passed over by default: a folder that is left out would be a lost result."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = retried(fs.ls, folder, detail=True)
        except FileNotFoundError:  # nothing was written yet
            entries = []
        files, folders = {}, []
        for entry in entries:
            path = entry["name"].rstrip("/")
            if entry["type"] == "directory":
                folders.append(path)
            elif path != folder:
                files[path.rpartition("/")[2]] = entry
        yield folder, folders, files
        if depth is None:
            waiting += sorted(folders, reverse=True)


def _modified(info: Mapping) -> float | None:
    value = next((info[key] for key in MODIFIED if info.get(key)), None)
    if hasattr(value, "timestamp"):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def _raised(error: Exception):
    raise error


def absolute(path: str | Path) -> str:
    """For workers that have another working directory."""
    return os.path.abspath(path)
