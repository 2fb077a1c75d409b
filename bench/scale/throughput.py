"""One worker against two, in turns: on Ray, and as plain processes, which is what the machine has to give.

Rates are images per second from a tenth to nine tenths of a job (the slope of a line through what was kept when), so
that starting Ray, workers and networks does not count, nor the end, when a worker has nothing left. Ray is started
once. Beside them stands what does not depend on who else uses the machine: seconds of CPU time for an image in
workers, in the driver and in everything else of Ray, in the job of two workers.
"""

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from lpn_fast import jobs

from .job import MODEL, engine_of, start_ray, task_of, write_images
from .processes import ACTOR, cpu_seconds, finish, start_job

FROM, TO = 0.1, 0.9  # shares of the images
TIMEOUT, SECONDS = 900, 240  # of a job; after which no further round begins


def throughput(count: int = 128, rounds: int = 3, side: int = 256, batch: int = 4) -> Iterator[dict]:
    """A row per round, and one of the medians."""
    import ray

    if count < 10 * batch:
        raise ValueError(f"count must be at least {10 * batch}, for ten batches, got {count}")
    begin, rows = time.monotonic(), []
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_images(folder / "in", count, side)
        halves = [write_images(folder / f"half{half}", count // 2, side) for half in range(2)]
        start_ray(2)
        try:
            for index in range(rounds):
                if rows and (time.monotonic() - begin) * (1 + 1 / len(rows)) > SECONDS:
                    break
                row: dict = {"round": index}
                for workers in (1, 2) if index % 2 == 0 else (2, 1):
                    out = folder / f"out{index}{workers}"
                    on_ray = _on_ray(images, out / "ray", workers, batch)
                    plain = _plain(halves[:workers], out / "plain", batch)
                    row |= {f"plain_{workers}": plain} | {f"{key}_{workers}": on_ray[key] for key in on_ray}
                row["ray_ratio"] = row["ray_2"] / row["ray_1"]
                row["plain_ratio"] = row["plain_2"] / row["plain_1"]
                rows.append(row)
                yield _shown(row)
        finally:
            ray.shutdown()
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    yield _shown(middle | {"round": "median"})


def _on_ray(images: Path, out: Path, workers: int, batch: int) -> dict[str, float]:
    """Images per second, and CPU seconds per image by kind of process."""
    events: list = []
    count = len(list(images.iterdir()))
    engine, usage = engine_of(workers, events), []

    def accounted(batches, solve, write):
        for kept in engine(batches, solve, write):
            done = sum(number for _, number in events)
            if len(usage) < 1 and done >= FROM * count or len(usage) < 2 and done >= TO * count:
                usage.append((done, _by_kind(cpu_seconds(os.getpid()))))
            yield kept

    jobs.reconstruct(images, out, task=task_of("pgd"), model=MODEL, engine=accounted, threads=1, batch_images=batch)
    (first, before), (last, after) = usage
    costs = {f"{kind}_cpu": (after[kind] - before[kind]) / (last - first) for kind in ("worker", "driver", "other")}
    return {"ray": _rate(events)} | costs


def _by_kind(seconds: dict[int, tuple[str, float]]) -> Counter:
    kinds: Counter = Counter()
    for process, (name, used) in seconds.items():
        kinds["driver" if process == os.getpid() else "worker" if ACTOR in name else "other"] += used
    return kinds


def _plain(folders: list[Path], out: Path, batch: int) -> float:
    """Images per second of a process for each folder."""
    common = {"workers": 0, "batch": batch, "task": "pgd"}
    started = [start_job({"images": str(f), "out": str(out / f.name)} | common) for f in folders]
    return sum(_rate(finish(process, TIMEOUT)["events"]) for process in started)


def _rate(events: list) -> float:
    total, done, inside = sum(count for _, count in events), 0, []
    for seconds, count in events:
        done += count
        if FROM * total <= done <= TO * total:
            inside.append((seconds, done))
    return statistics.linear_regression(*zip(*inside, strict=True)).slope


def _shown(row: dict) -> dict:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
