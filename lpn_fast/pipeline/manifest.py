"""The manifest of an output folder: one JSON line per image, the memory of a batch job.

A result file and its line become true together in this order: the file is complete under a temporary name;
the line is on disk; the file gets its name. An image counts as finished if both are there, so a kill
between the steps costs one image computed again, never a result without a record. Where an image has
several lines the last one counts. A line cut short by a kill is removed when the manifest is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two jobs in one folder are then not told apart
    fcntl = None

NAME = "manifest.jsonl"


@dataclass(frozen=True)
class ItemResult:
    """What became of one image; a line of the manifest.

    Attributes
    ----------
    item : str
        File name of the result.
    status : "done" or "failed"
    source, source_sha256 : str
        The input as it was named, and the digest of its bytes ("" if it could not be read).
    settings : dict
        Everything that decides the result, apart from the input.
    digest : str
        Of the settings.
    error : str or None
        Why it failed.
    height, width, channels : int or None
        Of the result.
    objective_first, objective_last : float or None
        The function minimised, after the first and the last iteration; summed over colour planes.
    residual : float or None
        Relative change in the last iteration, the largest of the colour planes.
    iterations : int or None
        The largest of the colour planes.
    converged : bool or None
        Whether all planes met the tolerance.
    seconds : float or None
        Share of the batch's time, by pixels.
    psnr_before, ssim_before, psnr, ssim : float or None
        Of the measurement and of the result, both clipped to [0, 1], where the truth is known.
    notes : tuple of str
        What was changed in reading.
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
    notes: tuple[str, ...] = ()

    def to_line(self) -> str:
        values = {name: _json_number(value) for name, value in asdict(self).items()}
        return json.dumps(values, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ItemResult:
        """The result of a line; ValueError if it is none. Fields of a later version are ignored."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        try:
            return cls(**known | {"notes": tuple(known.get("notes", ()))})
        except TypeError as error:
            raise ValueError(str(error)) from error


class Manifest:
    """The results recorded in a folder, open for more; `open_manifest` makes one."""

    def __init__(self, path: Path, descriptor: int, results: dict[str, ItemResult]):
        self.path, self.results = path, results
        self._descriptor = descriptor

    def append(self, result: ItemResult) -> None:
        """Record a result; it is on disk when this returns."""
        os.write(self._descriptor, result.to_line().encode())
        os.fsync(self._descriptor)
        self.results[result.item] = result


@contextlib.contextmanager
def open_manifest(folder: Path) -> Iterator[Manifest]:
    """The manifest of a folder, which exists; locked against a second job while open.

    Raises
    ------
    ValueError
        Another job is writing there, or the file is no manifest.

    Examples
    --------
    >>> import tempfile
    >>> with open_manifest(Path(tempfile.mkdtemp())) as manifest:
    ...     manifest.append(ItemResult("a.png", "failed", "a.png", "", {}, "", error="it is empty"))
    """
    path = folder / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _lock(descriptor, folder)
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.ftruncate(descriptor, len(whole))
        yield Manifest(path, descriptor, _parsed(path, whole))
    finally:
        os.close(descriptor)  # releases the lock, as a kill does


def digest_of(settings: dict) -> str:
    """Digest of JSON-ready settings, the same for equal ones in any order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"another job writes to {folder}; wait for it or choose another folder") from error


def _parsed(path: Path, text: bytes) -> dict[str, ItemResult]:
    results = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
        try:
            result = ItemResult.from_line(line)
        except ValueError as error:
            raise ValueError(
                f"{path} line {number} is no manifest entry ({error}); remove it or choose another folder"
            ) from error
        results[result.item] = result
    return results


def _json_number(value):
    """JSON has no infinity and no NaN: the PSNR of equal images and unknown objectives become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
