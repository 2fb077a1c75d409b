"""Batch jobs: bit depths survive, bad files do not stop good ones, kills cost nothing, grouping changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import pipeline
from lpn_fast.physics import Blur
from lpn_fast.pipeline import Denoise, Reconstruct, find_images, problems, read_image, reconstruct, write_image
from lpn_fast.pipeline.batches import bucketed, to_samples
from lpn_fast.pipeline.manifest import ItemResult, open_manifest

SIDE = 16
ROUNDING = 1  # levels of 255: another batch may round a value to the other side of a half
ROOT = Path(lf.__file__).parents[1]


def network(gain=0.4, **options):
    """An untrained network whose slopes lie below 1; with gain 20 they reach 20 and iterations diverge."""
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name:
                parameter.mul_(gain)
    return model


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return network(sigma_conditional=True)


def deblur(physics, noise, *, solver="pgd", iterations=100):
    return Reconstruct(problems.blur(physics), noise=noise, solver=solver, iterations=iterations)


@pytest.fixture(scope="module")
def task():
    return deblur(Blur.gaussian(1.0), noise=0.03, iterations=4)


def save_picture(path, shape=(SIDE, SIDE), dtype=np.uint8, seed=0):
    levels = np.iinfo(dtype).max
    array = np.random.default_rng(seed).integers(0, levels, shape, dtype=dtype, endpoint=True)
    Pillow.fromarray(array).save(path)
    return array


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def stored(path):
    with Pillow.open(path) as picture:
        return np.asarray(picture)


def lines(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


# ---- files


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", ["gray 8", "gray 16", "colour 8"])
def test_reading_and_writing_gives_back_every_level(tmp_path, suffix, kind):
    if suffix == ".bmp" and kind == "gray 16":
        pytest.skip("BMP has no 16-bit gray")
    shape = (256, 256, 3) if kind == "colour 8" else (256, 256)
    array = save_picture(tmp_path / f"a{suffix}", shape, np.uint16 if kind == "gray 16" else np.uint8)
    image = read_image(tmp_path / f"a{suffix}")
    write_image(tmp_path / f"b{suffix}", image.pixels, image.encoding)
    again = stored(tmp_path / f"b{suffix}")
    assert again.dtype == array.dtype
    assert (again == array).all()
    assert image.pixels.shape == (3 if kind == "colour 8" else 1, 256, 256)
    assert 0 <= image.pixels.min() and image.pixels.max() <= 1


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "uint16"])
def test_arrays_keep_shape_and_dtype(tmp_path, shape, dtype):
    array = np.random.default_rng(0).random(shape)
    array = array.astype(dtype) if dtype.startswith("f") else (array * np.iinfo(dtype).max).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    image = read_image(tmp_path / "a.npy")
    write_image(tmp_path / "b.npy", image.pixels, image.encoding)
    again = np.load(tmp_path / "b.npy")
    assert again.dtype == array.dtype and again.shape == array.shape
    assert np.allclose(again, array, rtol=1e-7, atol=0)


def test_alpha_is_dropped_with_a_note(tmp_path):
    save_picture(tmp_path / "a.png", (8, 8, 4))
    image = read_image(tmp_path / "a.png")
    assert image.pixels.shape == (3, 8, 8)
    assert image.notes == ("alpha channel dropped",)


def test_orientation_and_profile_travel_with_the_pixels(tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    picture = Pillow.fromarray(np.zeros((8, 8, 3), np.uint8))
    picture.save(tmp_path / "a.jpg", exif=exif, icc_profile=b"profile")
    image = read_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", image.pixels, image.encoding)
    with Pillow.open(tmp_path / "b.jpg") as again:
        assert again.getexif()[0x0112] == 6
        assert again.info["icc_profile"] == b"profile"


BAD_FILES = {
    "truncated.png": "truncated",
    "text.png": "cannot identify",
    "pages.tif": "2 pages",
    "wide.npy": "shape",
    "complex.npy": "dtype",
    "nan.npy": "1 NaN",
    "range.npy": "give the intensities",
    "empty.npy": "empty",
    "missing.png": "No such file",
    "document.pdf": "suffix",
}


def make_bad_file(path):
    name = path.name
    frame = Pillow.fromarray(np.zeros((8, 8), np.uint8))
    if name == "truncated.png":
        save_picture(path, (64, 64))
        path.write_bytes(path.read_bytes()[:1000])
    elif name == "text.png":
        path.write_text("not a picture")
    elif name == "pages.tif":
        frame.save(path, save_all=True, append_images=[frame])
    elif name == "wide.npy":
        np.save(path, np.zeros((2, 4, 4)))
    elif name == "complex.npy":
        np.save(path, np.zeros((4, 4), complex))
    elif name == "nan.npy":
        np.save(path, np.where(np.eye(4) * np.arange(4) == 3, np.nan, 0.5))
    elif name == "range.npy":
        np.save(path, np.full((4, 4), 200.0))
    elif name in ("empty.npy", "document.pdf"):
        path.write_bytes(b"")


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_the_reason(tmp_path, name):
    make_bad_file(tmp_path / name)
    with pytest.raises(pipeline.UnreadableImage, match=BAD_FILES[name]) as caught:
        read_image(tmp_path / name)
    assert caught.value.path == tmp_path / name
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_failing_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "a.png", torch.zeros(1, 8, 8), pipeline.Encoding(".png", "uint8"))
    assert list(tmp_path.iterdir()) == []


def test_files_folders_and_patterns_are_found_once(folder):
    for name in ("b.png", "a.TIF", ".hidden.png", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert [p.name for p in find_images([folder, folder / "b.png", f"{folder}/*.png"])] == ["a.TIF", "b.png"]
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_images(folder / "c.png")
    with pytest.raises(FileNotFoundError, match="matches"):
        find_images(f"{folder}/*.bmp")
    with pytest.raises(ValueError, match="at least one"):
        find_images([])


# ---- batches


def test_every_job_is_batched_once_with_its_size_and_within_the_budget():
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 5, (40, 2), generator=generator).tolist()
    jobs = [torch.zeros(1, 1, 2 * h, w) for h, w in sizes]
    batches = list(bucketed(iter(jobs), lambda job: job, batch_pixels=30))
    assert sorted(id(job) for batch in batches for job in batch) == sorted(map(id, jobs))
    for batch in batches:
        assert len({job.shape for job in batch}) == 1
        assert len(batch) == 1 or sum(job.numel() for job in batch) <= 30


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_go_there_and_back(channels):
    image = torch.rand(3, 4, 5)
    assert torch.equal(to_samples(image, channels).flatten(0, 1), image)


# ---- jobs


def test_colour_is_solved_plane_by_plane(folder, tmp_path, model, task):
    array = save_picture(folder / "colour.png", (SIDE, SIDE, 3))
    for channel, name in enumerate("rgb"):
        Pillow.fromarray(array[..., channel]).save(folder / f"{name}.png")
    summary = reconstruct(folder, tmp_path / "out", task=task, model=model, batch_pixels=SIDE * SIDE)
    planes = np.stack([stored(tmp_path / f"out/{name}.png") for name in "rgb"], axis=-1)
    assert np.abs(planes.astype(int) - stored(tmp_path / "out/colour.png")).max() <= ROUNDING
    objective = {result.item: result.objective_last for result in summary.done}
    assert objective["colour.png"] == pytest.approx(sum(objective[f"{name}.png"] for name in "rgb"), rel=1e-4)


@pytest.mark.parametrize("boundary", ["circular", "full"])
def test_results_do_not_depend_on_batching(folder, tmp_path, model, boundary):
    task = deblur(Blur.gaussian(1.0, boundary=boundary), noise=0.03, iterations=4)
    for index, shape in enumerate([(SIDE, SIDE), (12, 20), (SIDE, SIDE), (12, 20, 3), (SIDE, SIDE), (9, 11)]):
        save_picture(folder / f"{index}.png", shape, seed=index)
    one_by_one = reconstruct(folder, tmp_path / "one", task=task, model=model, batch_pixels=1, simulate=True)
    together = reconstruct(folder, tmp_path / "all", task=task, model=model, batch_pixels=10**6, simulate=True)
    assert len(one_by_one.done) == len(together.done) == 6
    for path in sorted(folder.iterdir()):
        a, b = stored(tmp_path / "one" / path.name), stored(tmp_path / "all" / path.name)
        assert a.shape == stored(path).shape
        assert np.abs(a.astype(int) - b).max() <= ROUNDING
    psnr = [{r.item: r.psnr for r in summary.done} for summary in (one_by_one, together)]
    assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)


def test_simulation_records_quality_and_keeps_the_degraded_picture(folder, tmp_path, model):
    truth = save_picture(folder / "a.png", (SIDE, SIDE), np.uint16)
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model=model, simulate=True, seed=3)
    degraded = stored(tmp_path / "out/degraded/a.png")
    assert degraded.dtype == np.uint16
    mean_square = np.mean((degraded / 65535 - truth / 65535) ** 2)
    assert summary.done[0].psnr_before == pytest.approx(-10 * np.log10(mean_square), abs=1e-2)
    assert summary.done[0].psnr is not None and summary.done[0].ssim is not None


def test_denoising_is_one_prox(folder, tmp_path, model):
    noisy = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    np.save(folder / "a.npy", noisy.numpy())
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model=model)
    with torch.no_grad():
        expected = model(noisy[None], sigma=0.1)[0]
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "out/a.npy")), expected, atol=1e-6)
    assert (summary.done[0].iterations, summary.done[0].converged) == (1, True)


@pytest.mark.parametrize(("solver", "level"), [("pgd", 0.03 * 0.95**0.5), ("admm", 0.03 / 1.05**0.5)])
def test_the_default_level_is_the_map_choice(model, solver, level):
    task = deblur(Blur.gaussian(1.0), noise=0.03, solver=solver, iterations=1)
    y = task.degrade(torch.rand(1, SIDE, SIDE), torch.Generator().manual_seed(0))[None]
    assert task.solve(y, model).sigma.tolist() == pytest.approx([level], rel=1e-6)
    assert task.conditions(model).all_hold


def test_unreadable_images_are_listed_and_the_others_done(folder, tmp_path, model, task):
    for name in ("a.png", "z.png"):
        save_picture(folder / name)
    make_bad_file(folder / "text.png")
    make_bad_file(folder / "nan.npy")
    summary = reconstruct(folder, tmp_path / "out", task=task, model=model)
    assert sorted(result.item for result in summary.done) == ["a.png", "z.png"]
    assert sorted(result.item for result in summary.failed) == ["nan.npy", "text.png"]
    recorded = {line["item"]: line for line in lines(tmp_path / "out")}
    assert "NaN" in recorded["nan.npy"]["error"]
    assert recorded["a.png"]["iterations"] == 4 and recorded["a.png"]["settings"]["noise"] == 0.03


def test_an_image_too_small_for_the_kernel_fails_alone(folder, tmp_path, model):
    save_picture(folder / "a.png")
    save_picture(folder / "tiny.png", (3, 3))
    task = deblur(Blur.gaussian(1.0, boundary="full"), noise=0.03, iterations=2)
    summary = reconstruct(folder, tmp_path / "out", task=task, model=model)
    assert [r.item for r in summary.done] == ["a.png"]
    assert "y must be at least as large as the 9 x 9 kernel" in summary.failed[0].error


@pytest.mark.parametrize(("factor", "reason"), [(100.0, "diverged, to values of"), (float("nan"), "NaN or infinite")])
def test_images_that_diverge_are_failed_not_written(folder, tmp_path, model, factor, reason):
    """Where a blur hides a pattern that the network amplifies, iterates leave the range of images for good."""

    class Diverging(Denoise):
        def solve(self, y, model, *rest, **options):
            solution = super().solve(y, model, *rest, **options)
            x = factor * solution.x
            return replace(solution, x=x, broken=~x.flatten(1).isfinite().all(1))

    save_picture(folder / "a.png")
    summary = reconstruct(folder, tmp_path / "out", task=Diverging(0.1), model=model)
    assert reason in summary.failed[0].error
    assert not (tmp_path / "out/a.png").exists()


def test_resuming_does_nothing_twice(folder, tmp_path, model, task):
    out = tmp_path / "out"
    for index in range(3):
        save_picture(folder / f"{index}.png", seed=index)
    make_bad_file(folder / "text.png")
    reconstruct(folder, out, task=task, model=model)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    save_picture(folder / "text.png")  # mended in the meantime
    summary = reconstruct(folder, out, task=task, model=model)
    assert [r.item for r in summary.done] == ["text.png"]
    assert [r.item for r in summary.skipped] == ["0.png", "1.png", "2.png"]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert len(lines(out)) == 5  # 3 done, 1 failed, 1 done


def test_a_torn_line_costs_one_image(folder, tmp_path, model, task):
    out = tmp_path / "out"
    for index in range(3):
        save_picture(folder / f"{index}.png", seed=index)
    reconstruct(folder, out, task=task, model=model)
    text = (out / "manifest.jsonl").read_text()
    (out / "manifest.jsonl").write_text(text[:-40])
    (out / "2.png").unlink()  # a kill while the line is written: the result does not bear its name yet
    summary = reconstruct(folder, out, task=task, model=model)
    assert [r.item for r in summary.done] == ["2.png"]
    assert [line["item"] for line in lines(out)] == ["0.png", "1.png", "2.png"]


def test_nothing_finished_is_overwritten(folder, tmp_path, model, task):
    out = tmp_path / "out"
    save_picture(folder / "a.png")
    reconstruct(folder, out, task=task, model=model)
    before = (out / "a.png").read_bytes()
    other = deblur(task.problem.physics, task.noise, iterations=5)
    with pytest.raises(ValueError, match="other settings"):
        reconstruct(folder, out, task=other, model=model)
    save_picture(folder / "a.png", seed=1)
    with pytest.raises(ValueError, match="another"):
        reconstruct(folder, out, task=task, model=model)
    (out / "manifest.jsonl").unlink()
    with pytest.raises(ValueError, match="not recorded"):
        reconstruct(folder, out, task=task, model=model)
    with pytest.raises(ValueError, match="folder of the images"):
        reconstruct(folder, folder, task=task, model=model)
    assert (out / "a.png").read_bytes() == before


def test_one_job_writes_at_a_time(folder, tmp_path, model, task):
    save_picture(folder / "a.png")
    (tmp_path / "out").mkdir()
    with open_manifest(tmp_path / "out"), pytest.raises(ValueError, match="another job"):
        reconstruct(folder, tmp_path / "out", task=task, model=model)


def test_a_foreign_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"item": 3}\n')
    with pytest.raises(ValueError, match="line 1"), open_manifest(tmp_path):
        pass


def test_infinite_numbers_become_null():
    line = ItemResult("a", "done", "a", "", {}, "", psnr=float("inf"), residual=float("nan")).to_line()
    assert json.loads(line)["psnr"] is None and json.loads(line)["residual"] is None
    assert ItemResult.from_line(line).item == "a"


def test_a_killed_job_goes_on_to_the_same_results(folder, tmp_path, model):
    for index in range(8):
        save_picture(folder / f"{index}.png", (32, 32), seed=index)
    checkpoint = lf.save(model, tmp_path / "model.safetensors")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "lpn_fast.cli", "reconstruct", folder, "-o", out, "--model", checkpoint]
    command += ["--noise", "0.03", "--iterations", "60", "--batch-pixels", "1", "--threads", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 50
    while not (out / "manifest.jsonl").exists() or len((out / "manifest.jsonl").read_bytes().splitlines()) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "the job ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9].png")}
    assert 1 <= len(finished) < 8

    job = deblur(Blur.gaussian(1.6, "valid"), noise=0.03, iterations=60)
    resumed = reconstruct(folder, out, task=job, model=lf.load(checkpoint), batch_pixels=1)
    straight = reconstruct(folder, tmp_path / "straight", task=job, model=model, batch_pixels=1)
    assert len(resumed.skipped) == len(finished) and len(resumed.done) + len(finished) == 8
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not list(out.glob(".*.tmp"))
    for result in straight.done:
        a, b = stored(out / result.item), stored(tmp_path / "straight" / result.item)
        assert np.abs(a.astype(int) - b).max() <= ROUNDING
