"""What an image costs a job besides its solution, measured here; the numbers that bench.scale.queue takes.

Every figure is the median of ROUNDS repetitions, in seconds of CPU time: what a core is busy with, whoever else uses
the machine. Waiting, for a disk or an answer, is no cost of a core; the latency of a store is a parameter of the
simulation. Images are 64 x 64 float32 arrays, 16 kB, in files of their own. The object store of the requests is moto's
on loopback, in the same process: its work counts, too.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lpn_fast import jobs
from lpn_fast.io.containers import IMAGES
from lpn_fast.io.formats import decode, to_npy
from lpn_fast.jobs import inputs, ledger, places, stages
from lpn_fast.jobs.engine import Tally, _collect
from lpn_fast.jobs.reconstructor import objects
from lpn_fast.pipeline import Denoise
from lpn_fast.pipeline.manifest import ItemResult

SIDE, BATCH, NAMES, ROUNDS = 64, 64, 2000, 5


def measure() -> list[dict]:
    """A row per cost."""
    torch.set_num_threads(1)
    rows = []

    def add(what: str, unit: str, value: float) -> None:
        rows.append({"what": what, "value": f"{value:.4g}", "unit": unit})

    rng = np.random.default_rng(0)
    arrays = [rng.random((SIDE, SIDE)).astype(np.float32) for _ in range(BATCH)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        for number in range(NAMES):
            (folder / f"{number:06d}.npy").write_bytes(to_npy(arrays[number % BATCH]))
        add("find a file in a folder", "s per image", _seconds(lambda: _find(folder)) / NAMES)
        index = _find(folder)
        add("tell which batch it is in", "s per image", _seconds(lambda: list(inputs.batches(index.left()))) / NAMES)
        columns = {key: objects(v) for key, v in inputs.to_columns([*index.left()][:BATCH]).items()}
        add("read it", "s per image", _seconds(lambda: stages.read(columns)) / BATCH)
        read = stages.read(columns)
        add("decode it", "s per image", _seconds(lambda: [decode(d, Path("a.npy")) for d in read["bytes"]]) / BATCH)
        begin = time.process_time()
        reconstructor = jobs.Reconstructor(Denoise(0.1), "frame-gray", device="cpu")
        assert reconstructor.settings
        add("load the network", "s per worker", time.process_time() - begin)
        solve = stages.Solve(reconstructor)
        add("decode, denoise and encode it, one thread", "s per image", _seconds(lambda: solve(read)) / BATCH)
        solved = solve(read)
        write = stages.Write(f"{name}/out")
        add("write it and its line", "s per image", _seconds(lambda: write(solved)) / BATCH)
        kept = write(solved)
        add("line of the manifest", "bytes per image", sum(map(len, kept["line"])) / BATCH)
        with ledger.opened(f"{name}/out", index) as book:
            keep = _seconds(lambda: _collect(kept["line"], dict.fromkeys(kept["part"]), book, Tally("")))
        add("collect its line, in the driver", "s per image", keep / BATCH)
        add(
            "read its line again",
            "s per image",
            _seconds(lambda: list(map(ItemResult.from_line, kept["line"]))) / BATCH,
        )
        memory, disk = _remembered(folder)
        add("remember it, in memory", "bytes per image", memory)
        add("remember it, on disk", "bytes per image", disk)
    rows += _requests(to_npy(arrays[0]))
    return [*rows, _of_ray()]


def _find(folder: Path):
    return inputs.find(folder, False, folder / "out", IMAGES).index


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def _remembered(folder: Path) -> tuple[float, float]:
    """(what a driver holds of names beyond some pages of SQLite's, what is on disk)."""
    import tracemalloc

    tracemalloc.start()
    index = _find(folder)
    left = sum(1 for _ in index.left())
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left == NAMES
    return size / NAMES, index.bytes_on_disk / NAMES


def _requests(data: bytes) -> list[dict]:
    import logging
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    try:
        from object_store import BUCKET, object_store

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with object_store():
            place = places.place_of(f"s3://{BUCKET}/in")
            names = [f"{number:06d}.npy" for number in range(NAMES // 2)]
            begin = time.process_time()
            place.put(dict.fromkeys(names, data))
            put = (time.process_time() - begin) / len(names)
            listing = _seconds(lambda: list(place.entries())) / len(names)
            get = _seconds(lambda: place.read(names[:BATCH])) / BATCH
    except ImportError as error:
        return [{"what": f"requests: not measured, {error}"}]
    unit = "s per image"
    named = {"list an object": listing, "get an object": get, "put an object": put}
    return [{"what": what, "value": f"{value:.4g}", "unit": unit} for what, value in named.items()]


def _of_ray(batches: int = 300) -> dict:
    """What Ray Data takes to hand a batch of names through two stages that do nothing."""
    what = {"what": "hand on a batch, Ray", "unit": "s per batch"}
    try:
        import ray
        import ray.data
    except ImportError as error:
        return what | {"value": f"not measured, {error}"}
    from .job import start_ray

    class Nothing:
        def __call__(self, batch):
            return batch

    start_ray(2)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tables = ray.data.from_items([{"place": "x"}] * batches, override_num_blocks=batches)
    stages_of = tables.map_batches(
        lambda b: b, batch_size=None, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=1)
    ).map_batches(Nothing, batch_size=None, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=2))
    times = [time.process_time() for _ in stages_of.iter_batches(batch_size=None)]  # for the driver
    ray.shutdown()
    first, last = batches // 5, len(times) - batches // 10
    return what | {"value": f"{(times[last] - times[first]) / (last - first):.4g}"}
