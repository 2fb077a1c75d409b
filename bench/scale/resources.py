"""Memory and throughput of jobs on Ray.

memory        peak of private memory of the driver, of the largest other process and of all, shared memory once
throughput    images per second between 20 and 90 % of a job, so that starting and ending do not count
"""

import statistics
import tempfile
import threading
import time
from pathlib import Path

from . import processes
from .job import write_images
from .processes import finish, start_job

POLL_SECONDS, TIMEOUT = 0.5, 900
FROM, TO = 0.2, 0.9  # shares of the images
ROUNDS = 3


def memory(count: int = 10_000, side: int = 8, batch: int = 64) -> list[dict]:
    """A row for a tenth of the images, and one for all."""
    return [_peak(images, side, batch) for images in (count // 10, count)]


def throughput(count: int = 240, side: int = 64, batch: int = 8) -> list[dict]:
    """A row per round, one worker and two in turns, and one of the medians."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        images = write_images(Path(name) / "in", count, side)
        for index in range(ROUNDS):
            order = (1, 2) if index % 2 == 0 else (2, 1)
            rates = {workers: _rate(images, Path(name) / f"out{index}{workers}", workers, batch) for workers in order}
            rows.append({"round": index, "one": rates[1], "two": rates[2], "ratio": rates[2] / rates[1]})
    middle = {name: statistics.median(row[name] for row in rows) for name in ("one", "two", "ratio")}
    return [{name: _rounded(value) for name, value in row.items()} for row in (*rows, {"round": "median"} | middle)]


def _peak(images: int, side: int, batch: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = write_images(Path(name) / "in", images, side)
        job = start_job({"images": str(folder), "out": f"{name}/out", "workers": 2, "batch": batch})
        peaks, ended = [0, 0, 0], threading.Event()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                peaks[:] = map(max, peaks, processes.memory(job.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            begin = time.monotonic()
            assert finish(job, TIMEOUT)["done"] == images
            seconds = time.monotonic() - begin
        finally:
            ended.set()
            watcher.join()
    megabytes = {f"{who}_mb": round(peak / 1e6) for who, peak in zip(("driver", "worker", "all"), peaks, strict=True)}
    return {"images": images, **megabytes, "seconds": round(seconds)}


def _rate(images: Path, out: Path, workers: int, batch: int) -> float:
    settings = {"images": str(images), "out": str(out), "workers": workers, "batch": batch, "task": "pgd"}
    events = finish(start_job(settings), TIMEOUT)["events"]
    total, done, inside = sum(count for _, count in events), 0, []
    for seconds, count in events:
        done += count
        if FROM * total <= done <= TO * total:
            inside.append((seconds, done))
    (first, before), (last, after) = inside[0], inside[-1]
    return (after - before) / (last - first)


def _rounded(value):
    return round(value, 3) if isinstance(value, float) else value
