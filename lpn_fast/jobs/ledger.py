"""The manifest of a job whose images are done in many places: parts, which one collector merges.

    worker       puts one part, `manifest.NUMBER.jsonl`, for each batch that it keeps
    collector    once it hears that a batch is kept, merges the part into a larger one and removes it

At any moment all lines are in some part, a few of them in two, and `pipeline.manifest` reads parts as it reads the
manifests of torchrun's processes: a job may go on with another engine. In a folder everything ends in
`manifest.jsonl`. Objects cannot be appended to: there, parts of MERGED lines remain, so that neither a million small
objects are left nor one that grows with the job is rewritten.
"""

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..pipeline.job import InFolder
from ..pipeline.manifest import (
    MANIFEST,
    ItemResult,
    Manifest,
    lines_of,
    manifest_name,
    manifests,
    number_of,
    open_manifest,
    results_in,
)
from .index import Index
from .places import Bucket, Folder, Remote, place_of
from .stages import FIRST_PART

MERGED = 4096  # lines, some 4 MB


class FolderLedger(InFolder):
    """Of results in a folder."""

    def __init__(self, out: Path, manifest: Manifest):
        super().__init__(out)
        object.__setattr__(self, "_manifest", manifest)
        self._sweep()

    def is_current(self, source, result: ItemResult) -> bool:
        return result.source == str(source) if isinstance(source, Remote) else super().is_current(source, result)

    def keep(self, lines: Iterable[str], parts: Iterable[str]) -> None:
        """Merge parts that hold these lines."""
        self._manifest.append_lines("".join(lines).encode())
        Folder(self.out).remove(parts)

    def close(self) -> None:
        """Merge what workers have left that were killed."""
        self._sweep()

    def _sweep(self) -> None:
        for path in sorted(self.out.glob(f"{Path(MANIFEST).stem}.*")):
            if (number_of(path.name) or 0) >= FIRST_PART:
                self._manifest.append_lines(path.read_bytes())
                path.unlink()


class BucketLedger:
    """Of results at a URL."""

    def __init__(self, bucket: Bucket, index: Index):
        self._bucket, self._index = bucket, index
        self._lines: list[str] = []
        self._parts: list[str] = []
        index.add_there(bucket.entries())
        self._has_manifest = index.is_there(MANIFEST)
        settings: dict[str, dict] = {}
        for name in index.names_there(f"{Path(MANIFEST).stem}*"):
            if number_of(name) is not None:  # one after the other: together they may be large
                lines = bucket.read([name])[0].splitlines(keepends=True)
                index.record(results_in(Path(name), lines, settings))

    def has(self, source) -> bool:
        return self._index.is_there(self.name(source))

    def is_current(self, source, result: ItemResult) -> bool:
        """By name and time: reading all images to compare them would cost as much as doing them again."""
        made, changed = self._index.modified_there(self.name(source)), getattr(source, "modified", None)
        return result.source == str(source) and (made is None or changed is None or changed <= made)

    @staticmethod
    def name(source) -> str:
        return source.result(Path()).as_posix()

    def where(self, source) -> str:
        return f"{self._bucket}/{self.name(source)}"

    def keep(self, lines: Iterable[str], parts: Iterable[str]) -> None:
        """Merge parts that hold these lines, once there are many."""
        self._lines += lines
        self._parts += parts
        if len(self._lines) >= MERGED:
            self._merge()

    def close(self) -> None:
        """Merge what is left."""
        if len(self._parts) > 1 or (self._parts and not self._has_manifest):
            self._merge()

    def _merge(self) -> None:
        name = manifest_name(FIRST_PART + uuid.uuid4().int % 2**62) if self._has_manifest else MANIFEST
        self._bucket.put({name: "".join(self._lines).encode()})
        self._has_manifest = True
        self._bucket.remove(self._parts)
        self._lines, self._parts = [], []

    def __str__(self) -> str:
        return str(self._bucket)


@contextlib.contextmanager
def opened(out: str | Path, index: Index) -> Iterator[FolderLedger | BucketLedger]:
    """The ledger of a place, whose records go into the index.

    One in a folder is locked against other jobs, one at a URL cannot be.

    Raises
    ------
    ValueError
        Another job is writing there, or a file is no manifest.
    """
    place = place_of(out)
    if isinstance(place, Bucket):
        yield BucketLedger(place, index)
        return
    if place.path.exists() and not place.path.is_dir():
        raise ValueError(f"out must be a folder, {place} is a file")
    place.path.mkdir(parents=True, exist_ok=True)
    with open_manifest(place.path, read=lambda folder: _record(folder, index)) as manifest:
        yield FolderLedger(place.path, manifest)


def _record(folder: Path, index: Index) -> dict[str, ItemResult]:
    """Nothing for memory: what was done before is in the index."""
    settings: dict[str, dict] = {}
    for path in manifests(folder):
        index.record(results_in(path, lines_of(path), settings))
    return {}
