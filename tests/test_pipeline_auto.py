"""What a job finds out by itself: how noisy an image is, and which network suits it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.data.synthetic import synthetic_images
from lpn_fast.pipeline import Denoise, Score, read_image, reconstruct
from lpn_fast.pipeline.problems import noise_levels
from lpn_fast.solvers import estimate_noise

SIDE = 48

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def noisy_picture(path, sigma, channels=1, side=SIDE, seed=0):
    """A ramp with noise, 8 bits."""
    generator = np.random.default_rng(seed)
    clean = np.broadcast_to(np.linspace(0.2, 0.8, side)[None, :, None], (side, side, channels))
    stored = np.rint(255 * (clean + sigma * generator.standard_normal(clean.shape)).clip(0, 1)).astype(np.uint8)
    Pillow.fromarray(stored[..., 0] if channels == 1 else stored).save(path)


# ---- noise


@pytest.mark.parametrize("sigma", [0.003, 0.0045, 0.007, 0.02])
def test_quantised_noise_is_not_found_in_steps(sigma):
    """8 bits add a twelfth of a squared level to its variance, and nothing else."""
    ramp = torch.linspace(0.1, 0.9, 256).expand(1, 1, 256, 256)
    noisy = ramp + sigma * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(1))
    stored = (255 * noisy).round() / 255
    expected = (sigma**2 + 1 / (12 * 255**2)) ** 0.5
    assert float(estimate_noise(stored)) == pytest.approx(expected, rel=0.03)
    assert float(estimate_noise(255 * stored)) == pytest.approx(255 * expected, rel=0.03)
    assert noise_levels([stored[0]])[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("sky", [0.95, 1.0, 1.2])
@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_a_bright_sky_does_not_hide_the_noise(sky, sigma):
    scene = torch.linspace(0.2, 0.8, 256).expand(1, 1, 256, 256).clone()
    scene[:, :, :170] = sky
    noisy = scene + sigma * torch.randn(scene.shape, generator=torch.Generator().manual_seed(0))
    stored = (255 * noisy.clamp(0, 1)).round() / 255
    assert float(estimate_noise(stored)) == pytest.approx(sigma, rel=0.05)
    assert noise_levels([stored[0]])[0] == pytest.approx(sigma, rel=0.1)


def test_an_image_that_is_clipped_everywhere_still_gets_a_number():
    bright = (1 + 0.1 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert 0 < float(estimate_noise(bright)) < 0.1


def test_every_image_is_denoised_by_what_it_shows(folder, tmp_path):
    for name, sigma in (("a", 0.02), ("b", 0.1), ("c", 0.05)):
        noisy_picture(folder / f"{name}.png", sigma, seed=ord(name))
    Pillow.fromarray(np.full((SIDE, SIDE), 90, np.uint8)).save(folder / "blank.png")
    Pillow.fromarray(np.full((SIDE, 4), 90, np.uint8)).save(folder / "narrow.png")
    model = lf.pretrained("frame-gray")
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(), model=model, batch_pixels=3 * SIDE * SIDE)
    done = {r.item: r for r in summary.done}
    assert [done[f"{name}.png"].sigma for name in "abc"] == pytest.approx([0.02, 0.1, 0.05], rel=0.15)
    for name in "abc":
        result = done[f"{name}.png"]
        assert result.sigma == pytest.approx(result.noise_estimate, rel=1e-6)
        with torch.no_grad():
            wanted = model(read_image(folder / result.item).pixels[None], sigma=result.sigma)[0]
        assert float((read_image(tmp_path / "out" / result.item).pixels - wanted).abs().max()) <= 0.51 / 255
    assert int(np.asarray(Pillow.open(tmp_path / "out/blank.png")).max()) == 90
    assert [r.item for r in summary.failed] == ["narrow.png"]
    assert "its noise cannot be estimated from 48 x 4 values; give the noise level" in summary.failed[0].error


def test_a_level_far_from_what_images_show_is_warned_of(folder, tmp_path, capsys):
    noisy_picture(folder / "a.png", 0.01)
    noisy_picture(folder / "b.png", 0.08, seed=1)
    command = ["denoise", str(folder), "--model", "frame-gray"]
    assert cli.main([*command, "-o", str(tmp_path / "far"), "--sigma", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "warning: the noise given, 0.1, is off by a factor above 3 from what 1 of 2 images show" in out
    assert cli.main([*command, "-o", str(tmp_path / "near"), "--sigma", "0.028"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert cli.main([*command, "-o", str(tmp_path / "auto")]) == 0
    out = capsys.readouterr().out
    assert "warning" not in out and "noise: 0.0" in out
    recorded = [json.loads(line) for line in (tmp_path / "auto/manifest.jsonl").read_text().splitlines()]
    assert sorted(line["sigma"] for line in recorded) == pytest.approx([0.01, 0.08], rel=0.15)


def test_options_without_effect_are_refused(folder, tmp_path, capsys):
    noisy_picture(folder / "a.png", 0.01)
    for options, message in (
        (["--seed", "1"], "--seed has no effect without --simulate"),
        (["--simulate"], "--simulate needs --sigma"),
        (["--sigma", "much"], "must be a positive number or auto, got 'much'"),
    ):
        assert cli.main(["denoise", str(folder), "-o", str(tmp_path / "out"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- networks


def write_ct(path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra 'ct')")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CTImageStorage, "1.2.3", "CT"
    stored = np.random.default_rng(0).integers(800, 1300, (SIDE, SIDE)).astype("<u2")
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = stored.tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def test_colour_gray_and_ct_get_their_own_networks(folder, tmp_path, capsys):
    noisy_picture(folder / "gray.png", 0.05)
    noisy_picture(folder / "colour.png", 0.05, channels=3)
    write_ct(folder / "slice.dcm")
    wanted = {"gray.png": "fast-gray", "colour.png": "fast-color", "slice.dcm": "fast-ct"}
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(0.05), model="auto")
    assert {r.item: r.model for r in summary.done} == wanted
    for item, name in wanted.items():
        with torch.no_grad():
            expected = lf.pretrained(name)(read_image(folder / item).pixels[None], sigma=0.05)[0]
        got = read_image(tmp_path / "out" / item).pixels
        assert float((got - expected.clamp(0, 1)).abs().max()) <= 0.51 / 255, item
    assert cli.main(["denoise", str(folder), "-o", str(tmp_path / "cli")]) == 0
    assert "models: " in capsys.readouterr().out


def test_priors_are_read_from_r_itself_in_one_pass(folder, tmp_path):
    noisy_picture(folder / "gray.png", 0.05)
    noisy_picture(folder / "colour.png", 0.05, channels=3)
    write_ct(folder / "slice.dcm")
    wanted = {"gray.png": "natural-gray", "colour.png": "natural-color", "slice.dcm": "ct"}
    summary = reconstruct(folder, tmp_path / "out", task=Score(sigma=0.05), model="auto")
    assert {r.item: r.model for r in summary.done} == wanted
    for result in summary.done:
        model, x = lf.pretrained(wanted[result.item]), read_image(folder / result.item).pixels[None]
        assert result.value == pytest.approx(model.prior(x, sigma=0.05).item(), rel=1e-5) and result.iterations == 0


def test_colour_is_restored_better_in_colour_than_plane_by_plane(folder, tmp_path):
    clean = torch.from_numpy(synthetic_images("dead-leaves", 3, 96)).reshape(3, 96, 96)
    mixed = torch.einsum("ij,jhw->ihw", torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2]]), clean)
    noisy = mixed + 0.1 * torch.randn(mixed.shape, generator=torch.Generator().manual_seed(0))
    np.save(folder / "a.npy", noisy.numpy().astype(np.float32))
    error = {}
    for model in ("auto", lf.pretrained("fast-gray")):
        out = tmp_path / str(len(error))
        reconstruct(folder, out, task=Denoise(0.1), model=model)
        error[len(error)] = float((torch.from_numpy(np.load(out / "a.npy")) - mixed).square().mean())
    assert error[0] < 0.8 * error[1]


def test_jobs_take_a_network_that_is_the_prior_itself(folder, tmp_path, capsys):
    noisy_picture(folder / "gray.png", 0.05, side=32)
    noisy_picture(folder / "colour.png", 0.05, channels=3, side=32)
    name = "natural-gray"
    model = lf.pretrained(name)
    assert cli.main(["denoise", str(folder), "-o", str(tmp_path / "out"), "--model", name, "--sigma", "0.05"]) == 0
    options = ["-o", str(tmp_path / "r.csv"), "--model", name, "--sigma", "0.05"]
    assert cli.main(["prior", str(folder), *options]) == 0
    rows = csv.DictReader((tmp_path / "r.csv").read_text().splitlines())
    values = {Path(row["image"]).name: float(row["value"]) for row in rows}
    for file in folder.iterdir():
        planes = read_image(file).pixels[:, None]
        wanted = model(planes, sigma=0.05)[:, 0].detach()
        assert float((read_image(tmp_path / "out" / file.name).pixels - wanted).abs().max()) <= 0.51 / 255
        assert values[file.name] == pytest.approx(model.prior(planes, sigma=0.05).sum().item(), rel=1e-5)


def test_a_word_that_is_no_network_is_refused(folder, tmp_path):
    noisy_picture(folder / "gray.png", 0.05)
    with pytest.raises(TypeError, match="model must be \"auto\", an LPN or an ExplicitLPN, got 'frame-gray'"):
        reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model="frame-gray")
