"""A job on Ray in a process of its own, with a log of what was computed and when batches were kept.

python -m bench.scale.job SETTINGS      a JSON object: images, out, workers, batch, task, log, events, memory
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lpn_fast as lf
from lpn_fast import jobs
from lpn_fast.io.formats import to_npy
from lpn_fast.jobs.engine import in_this_process
from lpn_fast.pipeline import Denoise, Reconstruct, problems

MODEL, SIGMA, SCALE = "frame-gray", 0.1, 2**14  # the first pixel of image k is k / SCALE
OBJECT_STORE = 2**27


@dataclass(frozen=True)
class Logged(Denoise):
    """Denoising that notes the numbers of the images it computes, in one write per batch."""

    log: str = ""

    def solve(self, y, model, *rest, **options):
        solution = super().solve(y, model, *rest, **options)
        if self.log and y.shape[-1] < 32:  # not the blank image that is tried before a job
            numbers = (y[:, 0, 0, 0] * SCALE).round().int().tolist()
            with open(self.log, "ab", buffering=0) as file:
                file.write("".join(f"{number}\n" for number in numbers).encode())
        return solution


def write_images(folder: Path, count: int, side: int, seed: int = 0) -> Path:
    """A folder of so many square images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = rng.random((side, side)).astype(np.float32)
        image[0, 0] = number / SCALE
        (folder / f"{number:06d}.npy").write_bytes(to_npy(image))
    return folder


def task_of(name: str, log: str = ""):
    """denoise: one evaluation of the network; pgd: ten, a quarter of a second for an image of 256 x 256."""
    if name == "denoise":
        return Logged(SIGMA, log=log)
    blur = problems.blur(lf.physics.Blur.gaussian(1.0))
    return Reconstruct(blur, SIGMA, solver="pgd", iterations=10)


def engine_of(workers: int, events: list):
    """An engine that notes (seconds, images) of every batch that was kept; 0 workers are this process."""
    engine = jobs.OnRay(workers=workers) if workers else in_this_process

    def noted(batches, solve, write):
        for kept in engine(batches, solve, write):
            events.append((time.monotonic(), len(kept["line"])))
            yield kept

    return noted


def start_ray(cores: int) -> None:
    """A small Ray on this machine."""
    import logging

    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # as any process: else whatever else runs takes their cores
    ray.init(
        num_cpus=cores,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def main(settings: dict) -> int:
    events: list = []
    if settings["workers"]:
        start_ray(settings["workers"])
    tally = jobs.reconstruct(
        settings["images"],
        settings["out"],
        task=task_of(settings.get("task", "denoise"), settings.get("log", "")),
        model=MODEL,
        engine=engine_of(settings["workers"], events),
        threads=1,
        batch_images=settings["batch"],
    )
    print(json.dumps({"done": tally.done, "earlier": tally.earlier, "failed": tally.failed, "events": events}))
    if settings["workers"]:
        import ray

        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
