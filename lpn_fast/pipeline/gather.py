"""The end of a job: container files are put together, and what became of all images is known."""

from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from ..io import containers
from ..io.sources import Source
from .manifest import ItemResult, lock_of, read_results


def gather(
    sources: list[Source],
    broken: list[Source],
    out: Path,
    makes_images: bool = True,
    known: dict[str, ItemResult] | None = None,
) -> tuple[tuple[ItemResult, ...] | None, tuple[str, ...]]:
    """(results of the whole job if all are known, containers that could not be put together).

    Every process does this after its share, one at a time, so the last one finds everything. What is `known` need not
    be read: the only process has the whole manifest in mind.
    """
    with FileLock(lock_of(out / "gather")):
        results = read_results(out) if known is None else known
        items = [source.item for source in (*sources, *broken)]
        incomplete = put_together(sources, out) if makes_images else ()
        if not all(item in results for item in items):
            return None, incomplete
        return tuple(results[item] for item in items), incomplete


def put_together(sources: Iterable[Source], out: Path) -> tuple[str, ...]:
    """Containers of those results that are all there; the names of the others."""
    by_container: dict[Path, list[Source]] = {}
    for source in sources:
        if source.member is not None:
            by_container.setdefault(source.path, []).append(source)
    incomplete = []
    for path, members in by_container.items():
        folder, target = members[0].parts(out), members[0].target(out)
        if not target.exists() and all(member.result(out).exists() for member in members):
            containers.pack(path, [(member.member, member.result(out)) for member in members], target)
        if target.exists() and folder.is_dir():
            containers.remove_parts(folder)
        elif not target.exists():
            incomplete.append(members[0].place.as_posix())
    return tuple(incomplete)
