"""On Ray: the callable in `map_batches` as it is, and a whole job, with the results of one process."""

import importlib.util
import os
import time

import numpy as np
import pytest

import lpn_fast as lf
from lpn_fast import cli, jobs, pipeline
from lpn_fast.io.formats import to_npy
from lpn_fast.jobs import on_ray
from lpn_fast.pipeline import Denoise

IS_THERE = importlib.util.find_spec("ray") is not None and importlib.util.find_spec("pyarrow") is not None
pytestmark = pytest.mark.skipif(not IS_THERE, reason="ray is not installed (extra 'ray')")
COUNT, BATCH = 60, 12


@pytest.fixture(scope="module")
def cluster():
    """One for all tests: it takes seconds to start."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, object_store_memory=2**27, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(COUNT):
        (folder / f"{number:03d}.npy").write_bytes(to_npy(rng.random((8, 8)).astype(np.float32)))
    (folder / "broken.npy").write_bytes(b"no array")
    return folder


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    pipeline.reconstruct(images, out, task=Denoise(0.1), model=lf.pretrained("frame-gray"))
    return out


def test_the_callable_is_one_of_ray_data(cluster, images, alone):
    restore = jobs.Reconstructor(Denoise(0.1), "frame-gray")
    files = cluster.data.read_binary_files(str(images), include_paths=True)
    rows = files.map_batches(restore, batch_size=16).take_all()
    assert len(rows) == COUNT + 1 and [os.path.basename(row["path"]) for row in rows if row["error"]] == ["broken.npy"]
    for row in rows:
        if not row["error"]:
            assert row["bytes"] == (alone / os.path.basename(row["path"])).read_bytes()


def test_a_job_on_ray_is_a_job(cluster, images, alone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lpn_fast.jobs.inputs.MOST_BYTES", BATCH * 200)  # several batches
    monkeypatch.setattr(on_ray, "BATCHES", 3)  # in several pipelines
    monkeypatch.setattr(on_ray, "BATCHES_PER_WORKER", 1)
    command = ["denoise", str(images), "-o", str(tmp_path / "out"), "--sigma", "0.1", "--model", "frame-gray"]
    assert cli.main([*command, "--engine", "ray", "--workers", "2"]) == 1
    assert f"{COUNT} done, 1 failed" in capsys.readouterr().out
    for path in alone.glob("*.npy"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert cli.main(command) == 1  # one machine goes on: what failed is tried again
    assert f"0 done, {COUNT} finished earlier, 1 failed" in capsys.readouterr().out


def test_no_worker_is_given_up_while_reading_is_slow(cluster, monkeypatch):
    """Ray Data ends idle actors of a pool that may shrink, ten seconds after it was started."""
    slow, long_ones = 14, 4

    def read(batch):
        time.sleep(1.0)
        return batch

    def solve(batch):
        if batch["number"][0] >= slow:
            time.sleep(3.0)
        return batch

    def write(batch):
        return {"line": [str(batch["number"][0])], "part": [str(os.getpid())]}

    monkeypatch.setattr(on_ray, "read", read)
    batches = ({"number": np.array([number])} for number in range(slow + long_ones))
    kept = list(jobs.OnRay(workers=2)(batches, solve, write))
    assert len({batch["part"][0] for batch in kept if int(batch["line"][0]) >= slow}) == 2
