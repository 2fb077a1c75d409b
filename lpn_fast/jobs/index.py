"""What a job knows of its images, in a database of its own on disk: memory does not grow with their number.

    files       that were found, each once, with the place of its result
    images      in them, in order, and which of them are finished
    recorded    what manifests say of finished and failed ones
    there       what lies at the URL of the results

SQLite keeps some megabytes in memory and the rest in a file that nobody else sees, which is gone when the job ends.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..io import Member
from ..io.finding import identity
from ..io.sources import Source
from ..pipeline.manifest import ItemResult
from .places import Entry, Remote, is_url

CHUNK = 1000  # images that are looked at together

TABLES = """
CREATE TABLE files (number INTEGER PRIMARY KEY, own TEXT UNIQUE, path TEXT, place TEXT, size INTEGER, modified REAL);
CREATE TABLE images (
    number INTEGER PRIMARY KEY, item TEXT, file INTEGER, member TEXT, within INTEGER, position INTEGER, is_done INTEGER
);
CREATE TABLE recorded (item TEXT PRIMARY KEY, status TEXT, digest TEXT, source TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE latest (item TEXT PRIMARY KEY, status TEXT, digest TEXT, source TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE there (name TEXT PRIMARY KEY, modified REAL) WITHOUT ROWID;
"""
SOURCES = (
    "SELECT images.number, path, place, size, modified, member, within, position "
    "FROM images JOIN files ON files.number = images.file "
)


class Index:
    """The images of one job.

    Examples
    --------
    >>> index = Index()
    >>> index.add_file(Path("scans/a.png"), Path("a.png"))
    >>> for number, path, place in index.files():
    ...     index.add_image(number, Source(path, place))
    >>> [source.item for source in index.sources()]
    ['a.png']
    """

    def __init__(self):
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # "": of its own, on disk
        self._database.text_factory = _named
        self._database.executescript(TABLES)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("BEGIN")  # one transaction: nothing of this outlives the job
        self._settings: dict[str, dict] = {}

    # ---- what there is

    def add_file(self, path: Path, place: Path) -> None:
        """A file, unless it is known."""
        self._add_file(os.path.abspath(path), str(path), place, 0, None)

    def add_remote(self, url: str, entry: Entry) -> None:
        """A file at a URL, unless it is known."""
        self._add_file(url, url, Path(entry.name), entry.size, entry.modified)

    def _add_file(self, own: str, path: str, place: Path, size: int, modified: float | None) -> None:
        row = own, path, place.as_posix(), size, modified
        self._do("INSERT OR IGNORE INTO files (own, path, place, size, modified) VALUES (?, ?, ?, ?, ?)", *row)

    def tell_apart(self) -> None:
        """Where two files would get one result, all keep their names below the folder that they have in common."""
        if self._one("SELECT 1 FROM files GROUP BY place HAVING COUNT(*) > 1 LIMIT 1") is None:
            return
        shared: str | None = None
        for (own,) in self._do("SELECT own FROM files"):
            folder = os.path.dirname(own)
            shared = folder if shared is None else os.path.commonpath([shared, folder])
        start = len(_stored(str(shared).rstrip(os.sep))) + 2  # SQL counts from 1
        self._do("UPDATE files SET place = substr(own, ?)", start)

    def files(self) -> Iterator[tuple[int, Path, Path]]:
        """(number, path, place) of those that were found."""
        for number, path, place in self._do("SELECT number, path, place FROM files ORDER BY number"):
            yield number, Path(path), Path(place)

    def add_image(self, file: int, source: Source) -> None:
        member = source.member
        row = source.item, file, member and member.name, member and member.index, source.position
        self._do("INSERT INTO images (item, file, member, within, position, is_done) VALUES (?, ?, ?, ?, ?, 0)", *row)

    def add_remote_images(self) -> None:
        """Each file at a URL is an image."""
        self._do(
            "INSERT INTO images (item, file, position, is_done) "
            "SELECT place, number, 0, 0 FROM files WHERE own LIKE '%://%' ORDER BY number"
        )

    def shared_name(self) -> str | None:
        """An item that several images have; None where all have names of their own, as they must."""
        self._do("CREATE INDEX items ON images (item)")
        return self._one("SELECT item FROM images GROUP BY item HAVING COUNT(*) > 1 LIMIT 1")

    def taken_at(self, folder: str) -> str | None:
        """An image at a URL that is itself the result of one, for results below the URL `folder`."""
        return self._one("SELECT MIN(own) FROM files WHERE own IN (SELECT ? || item FROM images)", f"{folder}/")

    def overwritten_in(self, out: Path) -> bool:
        """Whether a result in the folder `out` would take the place of an image."""
        if not out.exists():
            return False
        self._do("CREATE TEMP TABLE identities (name TEXT PRIMARY KEY) WITHOUT ROWID")
        for (place,) in self._do("SELECT DISTINCT place FROM files"):
            if (name := identity(out / place)) is not None:
                self._do("INSERT OR IGNORE INTO identities VALUES (?)", name)
        if self._one("SELECT 1 FROM identities LIMIT 1") is None:
            return False
        return any(
            self._one("SELECT 1 FROM identities WHERE name = ?", identity(Path(own))) is not None
            for (own,) in self._do("SELECT own FROM files WHERE own NOT LIKE '%://%'")
        )

    # ---- what is done

    def record(self, results: Iterable[ItemResult]) -> None:
        """What one manifest says: the last word on every item, but one that any manifest calls done stays so."""
        for result in results:
            self._settings.setdefault(result.digest, result.settings)
            row = result.item, result.status, result.digest, result.source, result.source_sha256
            self._do("INSERT OR REPLACE INTO latest VALUES (?, ?, ?, ?, ?)", *row)
        self._do(
            "INSERT OR REPLACE INTO recorded SELECT * FROM latest WHERE status = 'done' "
            "OR item NOT IN (SELECT item FROM recorded WHERE status = 'done')"
        )
        self._do("DELETE FROM latest")

    def recorded(self, sources: list[Source]) -> dict[str, ItemResult]:
        """What is recorded of these images."""
        found = {}
        for source in sources:
            row = self._do("SELECT status, digest, source, sha256 FROM recorded WHERE item = ?", source.item).fetchone()
            if row is not None:
                status, digest, named, sha256 = row
                found[source.item] = ItemResult(source.item, status, named, sha256, self._settings[digest], digest)
        return found

    def mark_done(self, items: Iterable[str]) -> None:
        for item in items:
            self._do("UPDATE images SET is_done = 1 WHERE item = ?", item)

    def add_there(self, entries: Iterable[Entry]) -> None:
        """What lies at the URL of the results."""
        for entry in entries:
            self._do("INSERT OR REPLACE INTO there VALUES (?, ?)", entry.name, entry.modified)

    def is_there(self, name: str) -> bool:
        return self._one("SELECT 1 FROM there WHERE name = ?", name) is not None

    def modified_there(self, name: str) -> float | None:
        """When that was written, in seconds since 1970; None where the place does not tell."""
        return self._one("SELECT modified FROM there WHERE name = ?", name)

    def names_there(self, pattern: str) -> list[str]:
        """Those that match, as SQL's GLOB does."""
        return [name for (name,) in self._do("SELECT name FROM there WHERE name GLOB ?", pattern)]

    # ---- in order

    def sources(self, with_members_only: bool = False) -> Iterator[Source]:
        """All images."""
        where = "WHERE member IS NOT NULL " if with_members_only else ""
        for row in self._do(f"{SOURCES}{where}ORDER BY images.number"):
            yield _source(row)

    def left(self) -> Iterator[Source]:
        """Images that are not finished."""
        for row in self._do(f"{SOURCES}WHERE NOT is_done ORDER BY images.number"):
            yield _source(row)

    def count_left(self) -> int:
        return self._one("SELECT COUNT(*) FROM images WHERE NOT is_done")

    def chunks(self) -> Iterator[list[Source]]:
        """All images in lists of CHUNK; they may be marked meanwhile."""
        last = 0
        while rows := self._do(
            f"{SOURCES}WHERE images.number > ? ORDER BY images.number LIMIT ?", last, CHUNK
        ).fetchall():
            last = rows[-1][0]
            yield [_source(row) for row in rows]

    def has_members(self) -> bool:
        """Whether some images are in containers."""
        return self._one("SELECT 1 FROM images WHERE member IS NOT NULL LIMIT 1") is not None

    @property
    def bytes_on_disk(self) -> int:
        """Of the database, including what SQLite still has in memory."""
        return self._one("PRAGMA page_count") * self._one("PRAGMA page_size")

    def close(self) -> None:
        self._database.close()

    def _do(self, statement: str, *values) -> sqlite3.Cursor:
        return self._database.execute(statement, [_stored(v) if isinstance(v, str) else v for v in values])

    def _one(self, statement: str, *values):
        row = self._do(statement, *values).fetchone()
        return None if row is None else row[0]


def _stored(text: str) -> str:
    """Text of the same bytes that SQLite takes: names of files need not be Unicode."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _named(stored: bytes) -> str:
    return stored.decode().encode("latin-1").decode("utf-8", "surrogatepass")


def _source(row: tuple) -> Source:
    _, path, place, size, modified, member, within, position = row
    if is_url(path):
        return Remote(Path(path), Path(place), url=path, size=size, modified=modified)
    return Source(Path(path), Path(place), None if member is None else Member(member, within), position)
