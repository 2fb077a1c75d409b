"""A job whose batches are done by an engine: in this process, or by Ray on many machines.

    find -> skip what is finished -> [ read -> solve -> write ] in batches, anywhere -> collect lines

What is in brackets are the stages of stages.py. The driver holds counts, neither images nor lines; names and what is
finished are in a database on disk (index.py).
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..io import Range
from ..io.sources import Source, put_together
from ..networks import LPN, ExplicitLPN
from ..pipeline.flow import in_order
from ..pipeline.job import BAR, content_of, finished
from ..pipeline.manifest import ItemResult, digest_of
from ..pipeline.tasks import Task
from . import inputs, ledger
from .places import is_url
from .reconstructor import Reconstructor, objects
from .stages import Batch, Solve, Write, read

READERS, WRITERS, AHEAD = 4, 4, 2  # threads of one process, and batches that they are ahead
LISTED = 1000  # failures that are kept to be shown; all are in the manifest

Engine = Callable[[Iterator[Batch], Solve, Write], Iterator[Batch]]


@dataclass
class Tally:
    """What became of the images of a job.

    Attributes
    ----------
    out : str
    done, earlier, failed : int
        Images finished by this call, finished before it, and not reconstructed.
    failures : list of ItemResult
        The first of those.
    late : int
        Did not converge within the iterations allowed.
    models : Counter of str
    notes : list of (source, note)
        The first of them.
    incomplete : tuple of str
        Containers some of whose images failed.
    passed_over : str
        What was in folders besides, in words.
    """

    out: str
    done: int = 0
    earlier: int = 0
    failed: int = 0
    failures: list[ItemResult] = field(default_factory=list)
    late: int = 0
    models: Counter = field(default_factory=Counter)
    notes: list[tuple[str, str]] = field(default_factory=list)
    incomplete: tuple[str, ...] = ()
    passed_over: str = ""

    def add(self, result: ItemResult) -> None:
        """Count one image of this call."""
        if result.status != "done":
            self.failed += 1
            if len(self.failures) < LISTED:
                self.failures.append(result)
            return
        self.done += 1
        self.late += result.converged is False and result.value is None
        if result.model is not None:
            self.models[result.model] += 1
        if len(self.notes) < LISTED:
            self.notes += [(result.source, note) for note in result.notes]


def reconstruct(
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    task: Task,
    model: str | LPN | ExplicitLPN,
    engine: Engine | None = None,
    recursive: bool = False,
    intensities: Range | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch_pixels: int | None = None,
    batch_images: int = inputs.MOST_IMAGES,
    progress: bool = False,
) -> Tally:
    """As `pipeline.reconstruct`, by an engine, and of images and results at URLs as well.

    Parameters
    ----------
    images, out, task, model, recursive, intensities, batch_pixels, progress
        As there; paths and URLs that fsspec knows, which all workers must be able to read and write.
    engine : callable, optional
        Runs the stages over batches, see `on_ray`; None is this process.
    device, threads
        Of a worker, see `Reconstructor`.
    batch_images : int
        Most images of a batch: what is computed again if its worker is lost.

    Returns
    -------
    Tally

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        As there.

    Examples
    --------
    >>> import tempfile, torch
    >>> from lpn_fast.pipeline import Denoise, Encoding, write_image
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_image(folder / "a.png", torch.rand(1, 16, 16), Encoding(".png", "uint8"))
    >>> reconstruct(folder, folder / "out", task=Denoise(0.1), model="fast-gray").done
    1
    """
    if batch_images < 1:
        raise ValueError(f"batch_images must be at least 1, got {batch_images}")
    told = {"intensities": intensities, "threads": threads, "batch_pixels": batch_pixels}
    settings = Reconstructor(task, model, device="cpu", **told).settings
    found = inputs.find(images, recursive, out, content_of(task, False, intensities))
    index = found.index
    if not is_url(out):
        if index.overwritten_in(Path(out)):
            raise ValueError(f"out must not be the folder of the images, {out}: they would be overwritten")
    elif index.has_members():
        raise ValueError(f"results of containers are put together in a folder, got the URL {out}")
    tally = Tally(str(out), passed_over=found.passed_over)
    with contextlib.closing(index), ledger.opened(out, index) as book:
        for chunk in index.chunks():
            earlier = finished(chunk, index.recorded(chunk), settings, task.makes_images, book)
            index.mark_done(earlier)
            tally.earlier += len(earlier)
        refused = [_refused(source, reason, settings) for source, reason in found.broken]
        _collect([line.to_line() for line in refused], (), book, tally)
        hidden = None if progress else True  # None: hidden unless standard error is a terminal
        with tqdm(total=index.count_left(), desc=task.name, unit="img", bar_format=BAR, disable=hidden) as bar:
            batches = (
                {k: objects(v) for k, v in inputs.to_columns(b).items()}
                for b in inputs.batches(index.left(), batch_images)
            )
            solve = Solve(Reconstructor(task, model, device=device, **told))
            for kept in (engine or in_this_process)(batches, solve, Write(str(out))):
                _collect(kept["line"], dict.fromkeys(kept["part"]), book, tally)
                bar.update(len(kept["line"]))
        book.close()
        if task.makes_images and index.has_members():
            tally.incomplete = put_together(index.sources(with_members_only=True), Path(out))
    return tally


def in_this_process(batches: Iterator[Batch], solve: Solve, write: Write) -> Iterator[Batch]:
    """Reading ahead and writing behind in threads, solving in the caller's."""
    solved = (solve(batch) for batch in in_order(read, batches, READERS, AHEAD))
    return in_order(write, solved, WRITERS, AHEAD)


def _collect(lines: Iterable[str], parts: Iterable[str], book, tally: Tally) -> None:
    lines = list(lines)
    for line in lines:
        tally.add(ItemResult.from_line(line))
    if lines:
        book.keep(lines, parts)


def _refused(source: Source, reason: str, settings: dict) -> ItemResult:
    return ItemResult(source.item, "failed", str(source), source.sha256() or "", settings, digest_of(settings), reason)
