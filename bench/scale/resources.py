"""Memory of jobs on Ray: peak of private memory of the driver, of the largest other process, and of all processes.

Shared memory counts once.
"""

import tempfile
import threading
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
        peaks, ended = [0, 0, 0], threading.Event()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                peaks[:] = map(max, peaks, processes.memory(job.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert finish(job, TIMEOUT)["done"] == images
        finally:
            ended.set()
            watcher.join()
    megabytes = {f"{who}_mb": round(peak / 1e6) for who, peak in zip(("driver", "worker", "all"), peaks, strict=True)}
    return {"images": images} | megabytes
