"""The experiments on photographs end to end, on a made-up data folder: rows, provenance, wrong use."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tables import rows_of

import lpn_fast as lf
from bench.experiments.__main__ import main
from bench.experiments.denoising import test_photographs as photographs_of_the_test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with the layout of bsds500 and smooth random pictures."""
    root = tmp_path_factory.mktemp("data")
    base = root / "natural" / "bsds500"
    random = np.random.default_rng(0)
    for part in ("train", "test", "val"):
        (base / part).mkdir(parents=True)
        for index in range(4):
            picture = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((176, 164))
            picture.save(base / part / f"{part}{index}.jpg")
    (base / "val32.txt").write_text("\n".join(f"val/val{i}.jpg" for i in range(2)))
    (base / "cbsd68.txt").write_text("\n".join(f"val/val{i}.jpg" for i in range(2, 4)))
    return root


def test_denoising_measures_models_and_baselines(folder, tmp_path):
    arguments = ["--data", str(folder), *"--images 2 --baseline-images 1 --levels 25 --baselines tv".split()]
    assert main(["denoising", *arguments, "--models", "frame-gray", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "results.csv")
    assert [row["method"] for row in rows] == ["frame-gray", "tv"]
    assert all(float(row["psnr"]) > float(row["psnr_noisy"]) + 3 for row in rows)
    assert abs(float(rows[0]["psnr_noisy"]) - 20.17) < 0.1  # -20 log10(25 / 255)
    assert all(row["commit"] and row["torch"] == torch.__version__ for row in rows)


def test_faces_are_denoised_in_gray_and_colour(folder, tmp_path, monkeypatch):
    from bench.experiments import denoising

    pixels = np.random.default_rng(1).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    (folder / "faces_lfw").mkdir()
    with zipfile.ZipFile(folder / "faces_lfw" / "lfw150_train.zip", "w") as archive:
        for index, face in enumerate(pixels):
            with archive.open(f"{index}.png", "w") as file:
                Image.fromarray(face).resize((150, 150)).save(file, "PNG")
    monkeypatch.setattr(denoising.data, "FACE_SAMPLES", {"train": (0, 4), "validation": (4, 6)})
    monkeypatch.setitem(denoising.COUNTS, "faces", 2)
    arguments = ["--on", "faces", "--levels", "25", "--baseline-images", "1", "--baselines", "tv"]
    models = ["--models", "frame-gray", "frame-color"]
    assert main(["denoising", "--data", str(folder), *arguments, *models, "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "results.csv")
    seen = [(row["on"], row["method"], row["channels"], row["images"]) for row in rows]
    assert seen == [
        ("faces", "frame-gray", "1", "2"),
        ("faces", "frame-color", "3", "2"),
        ("faces", "tv", "1", "1"),
    ]
    assert all(float(row["psnr"]) > float(row["psnr_noisy"]) + 5 for row in rows)


def test_slices_are_denoised_in_two_sizes(tmp_path, monkeypatch):
    from bench.experiments import denoising

    (tmp_path / "ct_mayo").mkdir()
    axis = np.linspace(0, 3, 512)
    for index in range(3):
        disc = 200 * (axis[:, None] ** 2 + axis**2 < 4 + index)
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path / "ct_mayo" / f"{index}.png")
    rows = "".join(f"{index}.png,{'p9' if index else 'p1'}\n" for index in range(3))
    (tmp_path / "ct_mayo" / "slices.csv").write_text("file,patient_group_inferred\n" + rows)
    for on, side in denoising.SLICE_SIDES.items():
        monkeypatch.setitem(denoising.COUNTS, on, 2)
        arguments = ["--on", on, "--levels", "25", "--baseline-images", "1", "--baselines", "--models", "ct"]
        assert main(["denoising", "--data", str(tmp_path), *arguments, "--out", str(tmp_path)]) == 0
        assert denoising.test_slices(on, tmp_path, 1, 1)[0][1].shape == (1, 1, side, side)
        assert denoising.tuning_images(tmp_path, on).shape == (1, 1, denoising.TUNING_SIDE, denoising.TUNING_SIDE)
    rows = rows_of(tmp_path / "results.csv")
    assert [(row["on"], row["images"]) for row in rows] == [("slices", "2"), ("half-slices", "2")]
    assert all(float(row["psnr"]) > float(row["psnr_noisy"]) + 8 for row in rows)


def test_the_colour_baseline_subtracts_what_its_network_says(folder, tmp_path, capsys):
    (folder / "weights").mkdir()
    weight, sigma = np.zeros((3, 3, 3, 3), np.float32), 25 / 255
    weight[range(3), range(3), 1, 1] = 0.25  # y - net(y) = 3/4 y
    layer = {"conv00.weight": weight, "conv00.bias": np.zeros(3, np.float32)}
    np.savez(folder / "weights" / "dncnn_color_sigma25_cszn.npz", **layer)
    arguments = ["--models", "--baselines", "cdncnn", "--images", "2", "--levels", "25", "50"]
    assert main(["denoising", "--data", str(folder), *arguments, "--out", str(tmp_path)]) == 0
    assert "no weights for 50/255" in capsys.readouterr().out
    (row,) = rows_of(tmp_path / "results.csv")
    clean = [x for _, x in photographs_of_the_test(folder, 2, 3)]
    errors = [10 * np.log10((x / 4).square().mean().item() + (0.75 * sigma) ** 2) for x in clean]
    assert float(row["psnr"]) == pytest.approx(-np.mean(errors), abs=0.05)


def test_study_trains_variants_for_equal_time_and_keeps_those_measured_before(folder, tmp_path, monkeypatch):
    from bench.experiments import study

    small = {name: study.VARIANTS[name] for name in ("multiscale", "frame-5", "width-8")}
    monkeypatch.setattr(study, "VARIANTS", {name: replace(variant, batch=2) for name, variant in small.items()})
    arguments = ["--data", str(folder), "--seconds", "0.5", "--images", "2", "--threads", str(torch.get_num_threads())]
    assert main(["study", *arguments, "--variants", "shape", "--out", str(tmp_path)]) == 0
    before = rows_of(tmp_path / "results.csv")
    assert main(["study", *arguments, "--variants", "multiscale", "frame-5", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "results.csv")
    assert [row for row in rows if row["variant"] == "width-8"] == before
    assert list(dict.fromkeys(row["variant"] for row in rows)) == ["multiscale", "frame-5", "width-8"]
    for name in small:
        own = [row for row in rows if row["variant"] == name]
        assert float(own[0]["seconds"]) == 0 and float(own[-1]["seconds"]) >= 0.5
        assert int(own[-1]["steps"]) >= 1
        if name != "width-8":
            assert abs(float(own[-1]["psnr_symmetric"]) - float(own[-1]["psnr"])) < 2
    assert (tmp_path / "study.png").stat().st_size > 1000
    starts = {row["variant"]: float(row["psnr"]) for row in rows if row["seconds"] == "0.0"}
    assert min(starts["frame-5"], starts["multiscale"]) > 21.5, "they denoise before any training, the noisy have 20.2"


def test_the_mean_over_symmetries_is_that_of_a_symmetric_potential():
    """f_8 of a rotated image is the rotated f_8; of a network that has the symmetries it is f."""
    from bench.experiments.study import symmetric_psnr

    torch.manual_seed(0)
    x, y = torch.rand(1, 1, 12, 12), torch.rand(1, 1, 12, 12)
    model = lf.ConvLPN(1, hidden=4, strides=(1,))
    turned = symmetric_psnr(model, torch.rot90(x, 1, (-2, -1)), torch.rot90(y, 1, (-2, -1)), None)
    assert turned == pytest.approx(symmetric_psnr(model, x, y, None), abs=1e-4)
    shrinks = lambda y, level: 0.5 * y  # noqa: E731
    assert symmetric_psnr(shrinks, x, y, None) == pytest.approx(lf.metrics.psnr(0.5 * y, x).item(), abs=1e-4)


def test_study_says_how_much_sooner_the_goals_of_the_published_way_are_reached():
    from bench.experiments.study import how_much_sooner

    published = [(0.0, 0, 8.0), (4.0, 3, 12.0), (6.0, 4, 11.0), (8.0, 6, 13.0)]
    curves = {"published": published, "multiscale": [(0.0, 0, 9.0), (0.5, 7, 12.5)], "ridge": [(0.0, 0, 11.0)]}
    (row,) = how_much_sooner(curves)
    assert (row["variant"], row["its_seconds"], row["seconds"], row["ratio"]) == ("multiscale", 4.0, 0.5, 8.0)
    started = how_much_sooner({"published": published, "frame": [(0.0, 0, 27.0)]})
    assert [(row["goal_psnr"], row["its_steps"], row["ratio"]) for row in started] == [
        (12.0, 3, "at the start"),
        (13.0, 6, "at the start"),
    ]
    assert not how_much_sooner({"frame": [(0.0, 0, 27.0)]})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read on Linux only")
def test_large_images_take_less_memory_in_tiles(tmp_path):
    assert main(["large-images", "--side", "1344", "--networks", "ConvLPN", "--out", str(tmp_path)]) == 0
    whole, tiles = rows_of(tmp_path / "results.csv")
    assert (whole["side"], tiles["side"]) == ("1024", "1344")
    # tiles of 512 and their halo are a third of 1024 squared, and one image of results
    assert 4 * 1344**2 / 2**20 < float(tiles["peak_megabytes"]) < 0.75 * float(whole["peak_megabytes"])
    assert float(tiles["max_difference"]) < 1e-5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read on Linux only")
def test_volumes_have_their_peak_measured(tmp_path):
    assert main(["large-images", "--side", "64", "--networks", "ConvLPN-volume", "--out", str(tmp_path)]) == 0
    whole, tiles = rows_of(tmp_path / "results.csv")
    assert whole["side"] == tiles["side"] == "64" and float(whole["peak_megabytes"]) > 4 * 64 * 64**3 / 2**20
    assert json.loads(tiles["config_json"])["tile"] == 64 and float(tiles["max_difference"]) < 1e-5


@pytest.mark.parametrize("arguments", [["study", "--seconds", "0"], ["denoising", "--images", "69"]])
def test_wrong_numbers_are_named(folder, arguments, capsys):
    assert main([*arguments, "--data", str(folder)]) == 2
    assert "must be" in capsys.readouterr().err


def test_ranking_tells_noise_from_clean_images(folder, tmp_path):
    assert main(["ranking", "--data", str(folder), "--count", "2", "--sigmas", "0.05", "--out", str(tmp_path)]) == 0
    rows = {row["damage"]: row for row in rows_of(tmp_path / "results.csv")}
    assert float(rows["noise 0.03"]["envelope at 0.05"]) == 1.0, "these pictures are smooth, noise is not"
    assert set(rows) >= {"random phases", "blur 1.0"} and "R at 0.05" not in rows["blur 1.0"]


def test_an_explicit_prior_ranks_by_its_values_and_gradients_too(folder, tmp_path):
    options = ["--model", "natural-gray", "--count", "2", "--sigmas", "0.05", "--out", str(tmp_path)]
    assert main(["ranking", "--data", str(folder), *options]) == 0
    noise = next(row for row in rows_of(tmp_path / "results.csv") if row["damage"] == "noise 0.03")
    assert float(noise["R at 0.05"]) == float(noise["|grad R| at 0.05"]) == 1.0


def test_area_under_the_curve_leaves_an_image_out_of_its_own_comparison():
    from bench.experiments.ranking import auc

    assert auc(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])) == 0.0  # 2 < 3 and 0 < 1
    assert auc(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 2.0])) == 0.75  # a tie and a win
