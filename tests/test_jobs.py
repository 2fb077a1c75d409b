"""A task as a function of batches: the rows of any engine get the pixels of a job of one machine."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import lpn_fast as lf
from lpn_fast.jobs import Reconstructor, reconstructor
from lpn_fast.pipeline import Denoise, Reconstruct, Score, problems, reconstruct

pytestmark = pytest.mark.usefixtures("one_thread")
BLUR = problems.blur(lf.physics.Blur.gaussian(0.8))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=2, strides=(1, 2), alpha=0.1, sigma_conditional=True).eval()
    return str(lf.save(model, tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture
def folder(tmp_path):
    """Gray and colour pictures of several formats and sizes, an array, and a file that is broken."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for name, shape in (("a.png", (40, 33)), ("b.png", (24, 24, 3)), ("c.tif", (33, 40)), ("d.bmp", (40, 33))):
        Image.fromarray(rng.integers(60, 200, shape, dtype=np.uint8)).save(folder / name)
    np.save(folder / "e.npy", rng.random((40, 33)).astype(np.float32))
    (folder / "f.png").write_bytes((folder / "a.png").read_bytes()[:90])
    return folder


def as_batch(folder):
    """The batch that `ray.data.read_binary_files(folder, include_paths=True)` gives."""
    paths = sorted(folder.iterdir())
    data = np.empty(len(paths), object)
    data[:] = [path.read_bytes() for path in paths]
    return {"bytes": data, "path": np.array([str(path) for path in paths], object)}


@pytest.mark.parametrize(
    "task", [Denoise(0.1), Denoise(), Reconstruct(BLUR, 0.05, solver="pgd", iterations=3)], ids=["given", "auto", "pgd"]
)
def test_files_in_a_batch_become_the_bytes_that_a_job_writes(folder, tmp_path, checkpoint, task):
    summary = reconstruct(folder, tmp_path / "out", task=task, model=lf.load(checkpoint))
    batch = Reconstructor(task, checkpoint)(as_batch(folder))
    assert batch["error"][:5].tolist() == [""] * 5 and "truncated" in batch["error"][5]
    assert batch["bytes"][5] == b"" and np.isnan(batch["iterations"][5])
    for path, data in zip(sorted(folder.iterdir())[:5], batch["bytes"], strict=False):
        assert (tmp_path / "out" / path.name).read_bytes() == data
    by_name = {result.item: result for result in summary.done}
    for row, path in enumerate(sorted(folder.iterdir())[:5]):
        line = by_name[path.name]
        assert (line.source_sha256, line.digest) == (batch["source_sha256"][row], batch["digest"][row])
        for name in ("height", "objective_last", "residual", "iterations", "noise_estimate", "sigma"):
            assert getattr(line, name) == batch[name][row]


@pytest.mark.parametrize("model", ["frame-gray", "fast-gray", "fast-gray-deblur"])
@pytest.mark.parametrize("solver", ["denoise", "pgd", "admm"])
def test_pixels_do_not_depend_on_the_batch(solver, model):
    images = np.random.default_rng(1).random((12, 24, 24)).astype(np.float32)
    task = Denoise() if solver == "denoise" else Reconstruct(BLUR, 0.05, solver=solver, iterations=2)
    together = Reconstructor(task, model)({"image": images})["image"]
    one_by_one = Reconstructor(task, model, batch_pixels=1)
    assert np.array_equal(together, np.concatenate([one_by_one({"image": image[None]})["image"] for image in images]))
    torch.set_num_threads(2)
    try:  # two batches at a time, each by one thread
        halves = Reconstructor(task, model, batch_pixels=6 * 24 * 24)({"image": images})["image"]
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(together, halves)


def test_a_prox_that_is_a_solve_is_as_exact_in_a_batch_as_alone():
    images = np.random.default_rng(1).random((5, 24, 24)).astype(np.float32)
    alone, together = (Reconstructor(Denoise(), "natural-gray", batch_pixels=n) for n in (1, None))
    found = together({"image": images})["image"]
    assert np.abs(found - alone({"image": images})["image"]).max() < 1e-4


def test_arrays_keep_type_and_shape_and_other_columns_travel_along(checkpoint):
    images = np.random.default_rng(2).integers(0, 256, (3, 16, 20), dtype=np.uint8)
    batch = Reconstructor(Denoise(0.1), checkpoint)({"image": images, "id": np.arange(3)})
    assert batch["image"].shape == images.shape and batch["image"].dtype == np.uint8
    assert batch["id"].tolist() == [0, 1, 2] and batch["converged"].all()
    with torch.no_grad():
        pixels = torch.from_numpy(images / np.float32(255))[:, None]
        expected = lf.load(checkpoint)(pixels, sigma=0.1)[:, 0].numpy() * np.float32(255)
    assert np.array_equal(batch["image"], np.clip(np.rint(expected), 0, 255).astype(np.uint8))


def test_a_row_of_anything_costs_itself_only(checkpoint):
    good = np.full((16, 16), 0.5, np.float32)
    strange = [good, None, "text", np.full((16, 16), np.nan), np.zeros((2, 2, 2, 2)), {}, b"", good[:0], good]
    column = np.empty(len(strange), object)
    column[:] = strange
    batch = Reconstructor(Denoise(0.1), checkpoint)({"image": column})
    assert [row for row, error in enumerate(batch["error"]) if not error] == [0, 8]
    assert all(len(error) > 10 for error in batch["error"][1:8])


def test_an_error_that_no_image_should_cause_costs_the_rows_that_cause_it(checkpoint):
    class Touchy(Denoise):
        def solve(self, y, *rest, **options):
            if (y[:, 0, 0, 0] > 0.9).any():
                raise KeyError("a fault of the program")
            return super().solve(y, *rest, **options)

    images = np.full((4, 16, 16), 0.5, np.float32)
    images[2] = 0.95
    batch = Reconstructor(Touchy(0.1), checkpoint)({"image": images})
    assert batch["error"].tolist() == ["", "", "KeyError: 'a fault of the program'", ""]


def test_values_of_the_prior_leave_images_as_they_are(checkpoint):
    images = np.random.default_rng(3).random((2, 16, 16)).astype(np.float32)
    batch = Reconstructor(Score(0.1, max_iter=3), checkpoint)({"image": images})
    assert batch["image"] is images and np.isfinite(batch["value"]).all() and batch["verdict"][0]


def test_measurements_that_are_no_images_become_images(tmp_path):
    task = Reconstruct(problems.cs(lf.physics.CompressedSensing(16, 0.5)), 0.05, solver="pgd", iterations=2)
    y = task.problem.physics.A(torch.full((2, 1, 16, 16), 0.5))[:, 0].numpy()
    (tmp_path / "y").mkdir()
    np.save(tmp_path / "y/vector.npy", y[0])
    reconstruct(tmp_path / "y", tmp_path / "out", task=task, model="auto")
    batch = Reconstructor(task)({"content": [(tmp_path / "y/vector.npy").read_bytes()], "path": ["s3://y/vector.npy"]})
    assert batch["error"].tolist() == [""] and batch["height"][0] == 16
    assert batch["content"][0] == (tmp_path / "out/vector.npy").read_bytes()
    assert np.array_equal(np.load(io.BytesIO(batch["content"][0])), Reconstructor(task)({"image": y[:1]})["image"][0])


def test_copies_of_one_callable_load_its_networks_once(checkpoint, monkeypatch):
    loads = []
    load = reconstructor.shipped_or_loaded
    monkeypatch.setattr(reconstructor, "shipped_or_loaded", lambda *a: loads.append(a) or load(*a))
    restore = Reconstructor(Denoise(0.1), checkpoint)
    sent = pickle.dumps(restore)
    assert len(sent) < 2000 and not loads  # nothing is loaded before the first batch
    image = np.full((1, 16, 16), 0.5, np.float32)
    results = [pickle.loads(sent)({"image": image})["image"] for _ in range(3)]
    assert len(loads) == 1 and np.array_equal(results[0], results[2])
    network = pickle.loads(pickle.dumps(Reconstructor(Denoise(0.1), lf.load(checkpoint))))
    assert np.array_equal(network({"image": image})["image"], results[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be at least 1"),
        ({"batch_pixels": -1}, "batch_pixels"),
        ({"intensities": (1, 0)}, "low < high"),
    ],
)
def test_wrong_options_are_refused_where_they_are_given(options, message):
    with pytest.raises(ValueError, match=message):
        Reconstructor(Denoise(0.1), **options)


def test_a_batch_without_images_is_refused(checkpoint):
    with pytest.raises(ValueError, match="column bytes or content or image, got pixels"):
        Reconstructor(Denoise(0.1), checkpoint)({"pixels": np.zeros((1, 4, 4))})
