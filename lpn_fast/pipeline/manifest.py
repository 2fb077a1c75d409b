"""The manifest of an output folder: one JSON line per image, the memory of a batch job.

A result file and its line become true together in this order: the file is complete under a temporary name;
the line is on disk; the file gets its name. An image counts as finished if both are there, so a kill
between the steps costs images computed again, never a result without a record. Where an image has
several lines the last one counts. A line cut short by a kill is removed when the manifest is opened.

Of W processes, started by `torchrun` or whatever else sets RANK and WORLD_SIZE, on machines that share the folder, each
has every W-th image of the whole list, so that none has to talk to another. It appends to a manifest of its own,
`manifest.1.jsonl` and so on, and reads them all: a job may go on with another number of processes.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from .. import atomic

MANIFEST = "manifest.jsonl"
LINE_START = b'{"item": "'  # how every line starts, by the order of the fields
PATIENCE = 1.0  # seconds


@dataclass(frozen=True)
class Share:
    """Process `rank` of `world`; the default is the only one. ValueError for a rank outside 0 .. world - 1."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among the processes of this machine: which GPU is its own

    def __post_init__(self):
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be in 0 .. {self.world - 1}, got {self.rank}")

    @classmethod
    def from_environment(cls) -> "Share":
        """What torchrun says, or the only process; ValueError for RANK without WORLD_SIZE, or what is no number."""
        given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
        if not given:
            return cls()
        try:
            return cls(int(given["RANK"]), int(given["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
        except (KeyError, ValueError) as error:
            wanted = "set together and must be numbers, 0 <= RANK < WORLD_SIZE"
            raise ValueError(f"RANK and WORLD_SIZE must be {wanted}, got {given}") from error


ALONE = Share()


@dataclass(frozen=True)
class ItemResult:
    """What became of one image; a line of the manifest. None is what is not known, or does not apply.

        item                    file name of the result; `container::member` for an image in a container
        status                  "done" or "failed"
        source, source_sha256   the input as it was named, and the digest of its bytes ("" if it could not be read)
        settings, digest        everything that decides the result, apart from the input; digest of that
        error                   why it failed
        height, width, channels                of the result
        objective_first, objective_last        the function minimised, after the first and the last iteration
        residual                relative change in the last iteration
        iterations, converged   how many, and whether the tolerance was met
        seconds                 share of the batch's time, by pixels
        psnr_before, ssim_before, psnr, ssim   of the measurement and of the result, both clipped to [0, 1]
        misfit                  |A x - y| over what the noise makes of it; near 1 where all fits
        noise_estimate          of the measurement, from itself (pipeline/problems.py)
        sigma                   noise level that the network was told, by which it may differ from image to image
        model                   name of the network, where it was chosen by the image
        value, verdict          of the learned prior, where the task is to find it; how the search for it ended
        notes                   what was changed in reading, and what is doubtful about the result

    Of colour planes, objectives and values are summed; the others are those of the worst plane.
    """

    item: str
    status: str
    source: str
    source_sha256: str
    settings: dict
    digest: str
    error: str | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    objective_first: float | None = None
    objective_last: float | None = None
    residual: float | None = None
    iterations: int | None = None
    converged: bool | None = None
    seconds: float | None = None
    psnr_before: float | None = None
    ssim_before: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    misfit: float | None = None
    noise_estimate: float | None = None
    sigma: float | None = None
    model: str | None = None
    value: float | None = None
    verdict: str | None = None
    notes: tuple[str, ...] = ()

    def to_line(self) -> str:
        # JSON has no infinity and no NaN: the PSNR of equal images and unknown objectives become null
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(self).items()}
        return json.dumps(values, allow_nan=False) + "\n"  # other alphabets are escaped: lines are ASCII

    @classmethod
    def from_line(cls, line: str) -> "ItemResult":
        """The result of a line; ValueError if it is none. Fields of a later version are ignored."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        if values.get("status") not in ("done", "failed"):
            raise ValueError(f"its status is {values.get('status')!r}")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        try:
            return cls(**known | {"notes": tuple(known.get("notes", ()))})
        except TypeError as error:
            raise ValueError(str(error)) from error


Results = dict[str, ItemResult]  # by item


class Manifest:
    """The results recorded in a folder, open for more; `open_manifest` makes one. Threads may share it."""

    def __init__(self, descriptor: int, results: Results):
        self.results = results
        self._descriptor, self._lock = descriptor, threading.Lock()

    def append(self, *results: ItemResult) -> None:
        """Record results; they are on disk when this returns, or, after an OSError, none of them is."""
        self.append_lines("".join(result.to_line() for result in results).encode())
        with self._lock:
            self.results.update((result.item, result) for result in results)

    def append_lines(self, lines: bytes) -> None:
        """As `append`, of lines that this object need not remember."""
        with self._lock:
            atomic.append(self._descriptor, lines)


def manifest_name(rank: int) -> str:
    return MANIFEST if rank == 0 else MANIFEST.replace(".", f".{rank}.", 1)


def number_of(name: str) -> int | None:
    """The process that a manifest of that name belongs to; None if it is none."""
    found = re.fullmatch(r"manifest(?:\.(\d+))?\.jsonl", name)
    return None if found is None else int(found[1] or 0)


def manifests(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("manifest*.jsonl") if number_of(path.name) is not None)


def lock_of(path: Path) -> Path:
    """The file that is locked for another one: locking may truncate."""
    return atomic.beside(path, ".", ".lock")


def read_results(folder: Path) -> Results:
    """The last word on every item in a folder, done if any process finished it; ValueError for what is no manifest."""
    results: Results = {}
    settings: dict[str, dict] = {}
    for path in manifests(folder):
        for item, result in {result.item: result for result in results_in(path, lines_of(path), settings)}.items():
            known = results.get(item)
            if known is None or known.status != "done" or result.status == "done":
                results[item] = result
    return results


def lines_of(path: Path) -> Iterator[bytes]:
    """The complete lines of a manifest, one after the other; ValueError if what follows is not the beginning of one."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
            elif line[: len(LINE_START)] == LINE_START[: len(line)]:
                return  # also where another process is writing it: the rest would look like a line
            else:
                raise ValueError(f"{path} is no manifest: it ends in {line[:40]!r}; rename it or choose another folder")


def results_in(path: Path, lines: Iterable[bytes], settings: dict[str, dict]) -> Iterator[ItemResult]:
    """What the lines of a manifest say; `settings` holds one copy per digest, since they make up most of a line."""
    for number, line in enumerate(lines, start=1):
        try:
            result = ItemResult.from_line(line.decode(errors="replace"))
        except ValueError as error:
            raise ValueError(
                f"{path} line {number} is no manifest entry ({error}); choose another folder, or remove that line and "
                "the result that it records, which is then made again"
            ) from error
        yield replace(result, settings=settings.setdefault(result.digest, result.settings))


def digest_of(settings: dict) -> str:
    """Digest of JSON-ready settings, the same for equal ones in any order."""
    return short_digest(json.dumps(settings, sort_keys=True).encode())


def short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def open_manifest(
    folder: Path, share: Share = ALONE, read: Callable[[Path], Results] = read_results
) -> Iterator[Manifest]:
    """The manifest of a folder, which exists, for this process; locked against a second job while open.

    `read` finds what was recorded before, `results` of the manifest. A ValueError says that another job is writing
    there, or that a file is no manifest.
    """
    path = folder / manifest_name(share.rank)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        running = folder / f".process-{share.rank}-of-{share.world}.lock"
        with FileLock(lock_of(path), timeout=0), FileLock(running, timeout=0):  # a kill releases them
            # A job of more or fewer processes that still runs would do the same images. Of two that start together the
            # later one finds the lock of the other, since each has its own before it looks.
            for other in folder.glob(".process-*-of-*.lock"):
                if other.name.removesuffix(".lock").rpartition("-")[2] != str(share.world):
                    with FileLock(other, timeout=PATIENCE):  # others may be looking as well
                        pass
            results = read(folder)
            os.ftruncate(descriptor, sum(map(len, lines_of(path))))  # not before all of it was found to be a manifest
            yield Manifest(descriptor, results)
    except Timeout as error:
        raise ValueError(f"another job writes to {folder}; wait for it or choose another folder") from error
    finally:
        os.close(descriptor)
