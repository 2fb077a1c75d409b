"""Jobs on a real object store on loopback lose nothing, whatever share of its requests fails."""

import importlib.util
import logging

import numpy as np
import pytest
from object_store import BUCKET, object_store

import lpn_fast as lf
from lpn_fast import jobs, pipeline
from lpn_fast.io.formats import to_npy
from lpn_fast.jobs import places
from lpn_fast.pipeline import Denoise

NEEDED = ("boto3", "moto", "s3fs", "flask")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not installed (s3fs: extra 'remote'; moto[server])"
    ),
    pytest.mark.usefixtures("one_thread"),
]
COUNT = 100


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(COUNT):
        (folder / f"{number:03d}.npy").write_bytes(to_npy(rng.random((8, 8)).astype(np.float32)))
    return folder


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_a_job_on_an_object_store_loses_nothing(images, tmp_path, monkeypatch, share):
    start, end = (f"s3://{BUCKET}/{share}/{name}" for name in ("in", "out"))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    monkeypatch.setattr(places, "FIRST_PAUSE", 0.01)
    pipeline.reconstruct(images, tmp_path / "one", task=Denoise(0.1), model=lf.pretrained("frame-gray"))
    with object_store(share) as store:
        places.place_of(start).put({path.name: path.read_bytes() for path in images.iterdir()})
        tally = jobs.reconstruct(start, end, task=Denoise(0.1), model="frame-gray", batch_images=16)
        assert (tally.done, tally.failed) == (COUNT, 0)
        again = jobs.reconstruct(start, end, task=Denoise(0.1), model="frame-gray")
        assert (again.done, again.earlier) == (0, COUNT)
        there = sorted(entry.name for entry in places.place_of(end).entries())
        assert there == [*(f"{number:03d}.npy" for number in range(COUNT)), "manifest.jsonl"]
        results = places.place_of(end).read(there[:-1])
    assert results == [(tmp_path / "one" / name).read_bytes() for name in there[:-1]]
    assert store.requests > 4 * COUNT and (store.failed > store.requests / 40) == (share > 0)
