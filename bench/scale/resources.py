"""Memory of jobs on Ray: peak of private memory of the driver, of the largest other process, and of all processes.

Shared memory counts once. Peaks of two jobs of one size differ by some megabytes, so each row also has the peak until
a tenth of its images were done: how it grows within one job.
"""

import itertools
import tempfile
import threading
import time
from pathlib import Path

from . import processes
from .job import write_images
from .processes import finish, start_job

POLL_SECONDS, TIMEOUT = 0.5, 900


def memory(count: int = 10_000, side: int = 8, batch: int = 64) -> list[dict]:
    """A row for a tenth of the images, and one for all."""
    return [_peak(images, side, batch) for images in (count // 10, count)]


def _peak(images: int, side: int, batch: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = write_images(Path(name) / "in", images, side)
        job = start_job({"images": str(folder), "out": f"{name}/out", "workers": 2, "batch": batch})
        samples: list[tuple[float, ...]] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                samples.append((time.monotonic(), *processes.memory(job.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            told = finish(job, TIMEOUT)
        finally:
            ended.set()
            watcher.join()
    assert told["done"] == images, told
    done = list(itertools.accumulate(count for _, count in told["events"]))
    tenth = next(seconds for (seconds, _), count in zip(told["events"], done, strict=True) if count >= images / 10)
    row = {"images": images}
    for place, who in enumerate(("driver", "worker", "all"), start=1):
        row[f"{who}_mb"] = round(max(sample[place] for sample in samples) / 1e6)
        row[f"{who}_mb_at_a_tenth"] = round(max(sample[place] for sample in samples if sample[0] <= tenth) / 1e6)
    return row
