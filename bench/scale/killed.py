"""A job on Ray of which one worker and then the driver are killed at random, and which is run again.

Checked at the end, with an error if it does not hold: every image has one right result, to the bit that of one
process; images computed more than once are at most those of the batches that were in flight at a kill. Processes of
Ray's own that outlive the driver by 20 seconds are named.
"""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast import pipeline
from lpn_fast.jobs.on_ray import CALLS
from lpn_fast.pipeline import Denoise
from lpn_fast.pipeline.manifest import read_results

from .job import MODEL, SIGMA, write_images
from .processes import actors, below, end_all, finish, start_job

SIDE, WORKERS = 8, 2
IN_FLIGHT = CALLS  # batches that an actor has in hand at once


def run(count: int = 1000, batch: int = 20, seed: int = 0) -> dict:
    """The job; what was seen, once everything has held."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, out, log = write_images(folder / "in", count, SIDE), folder / "out", folder / "computed.log"
        settings = {"images": str(images), "out": str(out), "workers": WORKERS, "batch": batch, "log": str(log)}
        job = start_job(settings)
        at_worker = chance.randrange(count // 10, count // 3)
        _wait_for(job, out, at_worker)
        victim = chance.choice(actors(job.pid))
        os.kill(victim, signal.SIGKILL)
        at_driver = chance.randrange(count // 2, 3 * count // 4)
        _wait_for(job, out, at_driver)
        family = below(job.pid)
        job.kill()
        job.communicate()
        stayed = end_all(family)
        kept = len(_finished(out))
        computed_before = len(log.read_text().split())
        second = finish(start_job(settings), 600)
        computed = Counter(int(number) for number in log.read_text().split())
        torch.set_num_threads(1)
        pipeline.reconstruct(images, folder / "one", task=Denoise(SIGMA), model=lf.pretrained(MODEL))
        right = sum((out / p.name).read_bytes() == p.read_bytes() for p in (folder / "one").glob("*.npy"))
        lines = sum(path.read_bytes().count(b"\n") for path in out.glob("manifest*.jsonl"))
        manifests = len(list(out.glob("manifest*.jsonl")))
        stray = [path.name for path in out.iterdir() if path.name.endswith(".tmp")]
    twice = sum(computed.values()) - count
    seen = {
        "images": count,
        "worker_killed_at": at_worker,
        "driver_killed_at": at_driver,
        "kept_at_the_kill": kept,
        "computed_at_the_kill": computed_before,
        "processes_that_stayed": " ".join(stayed),
        "done_by_the_second_run": second["done"],
        "found_by_the_second_run": second["earlier"],
        "right_results": right,
        "computed_twice": twice,
        "lines_beyond_one_per_image": lines - count,
        "manifests": manifests,
        "temporary_files": len(stray),
    }
    assert right == count == len(computed) and second["done"] + second["earlier"] == count, seen
    assert twice <= (1 + WORKERS) * IN_FLIGHT * batch, seen  # one worker, then all with the driver
    assert manifests == 1 and second["failed"] == 0, seen
    return seen


def _wait_for(job, out: Path, images: int) -> None:
    while len(_finished(out)) < images:
        if job.poll() is not None:
            raise RuntimeError(f"the job ended before its kill: {job.communicate()[1].decode()[-2000:]}")
        time.sleep(0.01)


def _finished(out: Path) -> set[str]:
    if not out.is_dir():
        return set()
    try:
        results = read_results(out)
    except FileNotFoundError:  # a part that was merged meanwhile
        return set()
    return {item for item, result in results.items() if result.status == "done" and (out / item).exists()}
