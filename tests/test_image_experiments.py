"""The experiments on photographs end to end, on a made-up data folder: rows, provenance, wrong use."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_denoising_measures_models_and_baselines(folder, tmp_path):
    arguments = [
        "--data",
        str(folder),
        "--images",
        "2",
        "--baseline-images",
        "1",
        "--levels",
        "25",
        "--baselines",
        "tv",
    ]
    assert main(["denoising", *arguments, "--models", "natural-gray", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "results.csv")
    assert [row["method"] for row in rows] == ["natural-gray", "tv"]
    assert all(float(row["psnr"]) > float(row["psnr_noisy"]) + 3 for row in rows)
    assert abs(float(rows[0]["psnr_noisy"]) - 20.17) < 0.1  # -20 log10(25 / 255)
    assert all(row["commit"] and row["torch"] == torch.__version__ for row in rows)


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


def test_study_trains_variants_for_equal_time(folder, tmp_path, capsys):
    arguments = ["--data", str(folder), "--seconds", "0.5", "--images", "2", "--threads", str(torch.get_num_threads())]
    variants = ["--variants", "ridge", "frame-5"]
    assert main(["study", *arguments, *variants, "--batch-size", "2", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "results.csv")
    for name in variants[1:]:
        own = [row for row in rows if row["variant"] == name]
        assert float(own[0]["seconds"]) == 0 and float(own[-1]["seconds"]) >= 0.5
        assert int(own[-1]["steps"]) >= 1
    assert (tmp_path / "study.png").stat().st_size > 1000
    frame, ridge = (next(float(r["psnr"]) for r in rows if r["variant"] == name) for name in ("frame-5", "ridge"))
    assert frame > ridge, "a frame network denoises before any training"


def test_study_says_how_much_sooner_the_end_of_the_published_way_is_reached():
    from bench.experiments.study import how_much_sooner

    published = [(0.0, 0, 8.0), (4.0, 3, 12.0), (8.0, 6, 12.0)]  # ends where it was at 4 s
    curves = {"published": published, "multiscale": [(0.0, 0, 9.0), (0.5, 7, 12.5)], "ridge": [(0.0, 0, 11.0)]}
    (row,) = how_much_sooner(curves)
    assert (row["variant"], row["its_seconds"], row["seconds"], row["ratio"]) == ("multiscale", 4.0, 0.5, 8.0)
    started = how_much_sooner({"published": published, "frame": [(0.0, 0, 27.0)]})
    assert started[0]["ratio"] == "at the start"
    assert not how_much_sooner({"frame": [(0.0, 0, 27.0)]})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read on Linux only")
def test_large_images_take_less_memory_in_tiles(tmp_path):
    assert main(["large-images", "--side", "1344", "--networks", "ConvLPN", "--out", str(tmp_path)]) == 0
    whole, tiles = rows_of(tmp_path / "results.csv")
    assert (whole["side"], tiles["side"]) == ("1024", "1344")
    # tiles of 512 and their halo are a third of 1024 squared, and one image of results
    assert 4 * 1344**2 / 2**20 < float(tiles["peak_megabytes"]) < 0.75 * float(whole["peak_megabytes"])
    assert float(tiles["max_difference"]) < 1e-5


@pytest.mark.parametrize("arguments", [["study", "--seconds", "0"], ["denoising", "--images", "69"]])
def test_wrong_numbers_are_named(folder, arguments, capsys):
    assert main([*arguments, "--data", str(folder)]) == 2
    assert "must be" in capsys.readouterr().err


def test_ranking_tells_noise_from_clean_images(folder, tmp_path):
    assert main(["ranking", "--data", str(folder), "--count", "2", "--sigmas", "0.05", "--out", str(tmp_path)]) == 0
    rows = {row["damage"]: row for row in rows_of(tmp_path / "results.csv")}
    assert float(rows["noise 0.03"]["envelope at 0.05"]) == 1.0, "these pictures are smooth, noise is not"
    assert set(rows) >= {"random phases", "blur 1.0"}


def test_area_under_the_curve_leaves_an_image_out_of_its_own_comparison():
    from bench.experiments.ranking import auc

    assert auc(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])) == 0.0  # 2 < 3 and 0 < 1
    assert auc(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 2.0])) == 0.75  # a tie and a win
