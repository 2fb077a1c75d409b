"""The end of a job: container files are put together, and what became of all images is known."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from . import containers
from .images import UnreadableImage
from .manifest import ItemResult, read_results
from .sources import PARTS, Source

try:
    import fcntl
except ImportError:  # Windows: processes may then pack the same container twice, with the same outcome
    fcntl = None


def gather(
    sources: list[Source], broken: list[UnreadableImage], out: Path
) -> tuple[tuple[ItemResult, ...] | None, tuple[str, ...]]:
    """(results of the whole job if all are known, containers that could not be put together).

    Every process does this after its share, one at a time, so the last one finds everything.
    """
    with _alone(out):
        results = read_results(out)
        items = [source.item for source in sources] + [error.path.name for error in broken]
        by_container: dict[Path, list[Source]] = {}
        for source in sources:
            if source.member is not None:
                by_container.setdefault(source.path, []).append(source)
        incomplete = []
        for path, members in by_container.items():
            folder, target = out / f"{path.name}{PARTS}", out / path.name
            if not target.exists() and all(member.result(out).exists() for member in members):
                containers.pack(path, [(member.member, member.result(out)) for member in members], target)
            if target.exists() and folder.is_dir():
                containers.remove_parts(folder)
            elif not target.exists():
                incomplete.append(path.name)
        if not all(item in results for item in items):
            return None, tuple(incomplete)
        return tuple(results[item] for item in items), tuple(incomplete)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """While other processes of the job wait; the lock is on the folder itself."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
