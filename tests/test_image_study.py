"""The experiments on faces and CT: exact tiles, nearness to the MAP denoiser, gray levels, and a small run of each."""

import csv
import importlib
import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lpn_fast as lf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is run from a checkout, it is not installed
REASON = "bench/ is not part of the source archive"
main = pytest.importorskip("bench.experiments.__main__", reason=REASON).main
data = pytest.importorskip("bench.reconstruction.data", reason=REASON)
GaussianMixture = pytest.importorskip("bench.densities", reason=REASON).GaussianMixture
gray_levels = pytest.importorskip("bench.experiments.gray_levels", reason=REASON)
hits = pytest.importorskip("bench.experiments.hits", reason=REASON)
image_study = pytest.importorskip("bench.experiments.image_study", reason=REASON)
tiles = pytest.importorskip("bench.experiments.tiles", reason=REASON)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder of smooth pictures: six faces, two slices of each of two patients."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def picture(side, bands):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3) if bands == 3 else (6, 6), dtype=np.uint8))
        content = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(content, "PNG")
        return content.getvalue()

    for name in ("faces_lfw", "ct_mayo/train"):
        (folder / name).mkdir(parents=True)
    with zipfile.ZipFile(folder / data.FACES, "w") as archive:
        for index in range(6):
            archive.writestr(f"train/{index:04}.png", picture(150, 3))
    rows = [(f"train/{i}.png", i, f"p{1 + 8 * (i // 2)}") for i in range(4)]
    for name, _, _ in rows:
        (folder / "ct_mayo" / name).write_bytes(picture(512, 1))
    with open(folder / "ct_mayo" / "slices.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "upstream_index", "patient_group_inferred"), *rows])
    return folder


# ---- tiles


@pytest.fixture(scope="module")
def tiled():
    """A network of 28 x 28 pixels at stride 14, with weights that bend it."""
    torch.manual_seed(0)
    model = lf.paper_network("mnist").double()
    for name, p in model.named_parameters():
        if name.endswith(("core", "head")):
            p.data = torch.rand_like(p) / p[0].numel()
    return tiles.Tiled(model.requires_grad_(False), 14)


def test_tiles_are_the_gradient_of_a_potential_up_to_the_borders(tiled):
    x, u, v = (torch.randn(1, 1, 42, 28, dtype=torch.float64) for _ in range(3))
    u[..., 4:, :], v[..., :-4, :] = 0, 0  # two borders, which unequal counts would tell apart
    u[..., :2], v[..., :2] = 1, 1
    step = 1e-5
    slope = (tiled.potential_and_prox(x + step * u)[0] - tiled.potential_and_prox(x - step * u)[0]) / (2 * step)
    assert slope.item() == pytest.approx((tiled(x) * u).sum().item(), rel=1e-7)
    ju, jv = ((tiled(x + step * d) - tiled(x - step * d)) / (2 * step) for d in (u, v))
    assert (ju * v).sum().item() == pytest.approx((jv * u).sum().item(), rel=1e-5, abs=1e-12)


def test_tiles_of_one_patch_do_what_their_size_allows(tiled):
    whole = tiles.Tiled(tiled.model, 28)  # no overlap: every pixel in one patch
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    psi, f = tiled.model.potential_and_prox(x)
    assert torch.allclose(whole(x), f) and torch.allclose(whole.potential_and_prox(x)[0], psi.double())
    y, value = whole.prox_and_prior(x)
    assert torch.allclose(value, tiled.model.prox_and_prior(x)[1])
    with pytest.raises(ValueError, match="multiples of 14"):
        tiled(torch.rand(1, 1, 30, 28, dtype=torch.float64))
    with pytest.raises(ValueError, match="strength 1"):
        tiled.prox_and_prior(x, strength=0.5)
    with pytest.raises(ValueError, match="stride must divide"):
        tiles.Tiled(tiled.model, 5)


# ---- hits


class Known(torch.nn.Module):
    """A denoiser in closed form; the parameter says its type."""

    def __init__(self, f):
        super().__init__()
        self.f, self.own = f, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, y):
        return self.f(y)


def test_map_hits_more_often_at_small_widths_and_the_mean_at_large_ones():
    mixture = GaussianMixture()
    x = mixture.sample(40_000, torch.Generator().manual_seed(0)).double()[:, :, None, None]
    counts = {}
    for name, f in (("map", mixture.prox), ("mean", mixture.posterior_mean)):
        distance = hits.distances(Known(f), x, mixture.SIGMA, batch=5000)
        counts[name] = [torch.exp(-((distance / width) ** 2)).mean().item() for width in (0.15, 4.0)]
    assert counts["map"][0] > 1.005 * counts["mean"][0] and counts["map"][1] < counts["mean"][1]


# ---- gray levels


def test_the_dither_makes_the_prior_as_rough_as_a_prox_allows():
    counts = np.zeros(256, np.int64)
    counts[[10, 12, 200]] = 3, 5, 4
    mixture, dither = gray_levels.dithered(counts)
    assert sum(w * m for w, m in zip(mixture.weights, mixture.means, strict=True)) == pytest.approx(0, abs=1e-12)
    assert 0.7 < gray_levels.roughness(mixture) <= gray_levels.CURVATURE
    assert gray_levels.roughness(gray_levels.mixture_of(counts, 0.9 * dither)) > gray_levels.CURVATURE
    flat = np.full(256, 7)  # a smooth density needs no more than the least
    assert gray_levels.dithered(flat)[1] == gray_levels.LEAST


def test_gray_levels_write_a_table_and_a_figure(root, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.experiments.laplacian.QUICK_STEPS", 6)
    monkeypatch.setattr("lpn_fast.training.laplacian.BATCH", 200)
    options = ["--quick", "--images", "mayo", "--data", str(root), "--out", str(tmp_path)]
    assert main(["gray-levels", *options]) == 0
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["l2", "l1", "matching"] and "commit" in rows[0]
    assert (tmp_path / "gray_levels.png").read_bytes().startswith(b"\x89PNG")


# ---- faces, ct, cs


@pytest.fixture
def small(monkeypatch):
    """Few levels, few iterations, one task."""
    monkeypatch.setattr(data, "FACE_SAMPLES", {"train": (0, 4), "validation": (4, 6)})
    monkeypatch.setattr(image_study, "QUICK", image_study.Setting(8, 2, 16, 32, 2, (0.1,), (0.015,), 1, 2, 8, 4, 2))
    levels = {"noise": (0.0, 0.1), "mix": (0.0, 0.5, 1.0), "degraded": (0.0, 1.0)}
    monkeypatch.setattr("bench.experiments.perturbations.LEVELS", levels)
    for name in ("faces", "ct", "cs"):
        study = importlib.import_module(f"bench.experiments.{name}").STUDY
        task = replace(study.tasks[0], published=replace(study.tasks[0].published, iterations=2))
        monkeypatch.setattr(f"bench.experiments.{name}.STUDY", replace(study, tasks=(task,)))


@pytest.mark.parametrize("name", ["faces", "ct", "cs"])
def test_studies_train_and_write_tables_and_figures(root, tmp_path, small, capsys, name):
    options = ["--quick", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1"]
    assert main([name, *options, "--out", str(tmp_path / "out")]) == 0
    tables = {}
    for part in ("hits", "prior", "reconstruction"):
        with open(tmp_path / "out" / f"{part}.csv", newline="") as file:
            tables[part] = list(csv.DictReader(file))
        assert {"device", "commit", "config_json"} <= tables[part][0].keys()
        assert (tmp_path / "out" / f"{part}.png").read_bytes().startswith(b"\x89PNG")
    assert len(tables["hits"]) == 3 * len(hits.WIDTHS) and len(tables["prior"]) == 3 * 7
    assert len(tables["reconstruction"]) == 7 and len(list((tmp_path / "runs" / name).glob("*.png"))) == 1
    assert "R rises with noise" in capsys.readouterr().out.replace("does NOT rise", "rises")


def test_finished_runs_are_read_and_a_network_can_be_given(root, tmp_path, small):
    options = ["--quick", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1"]
    assert main(["ct", *options, "--out", str(tmp_path / "no"), "--train-only"]) == 0 and not (tmp_path / "no").exists()
    models = sorted((tmp_path / "runs").glob("mayo*/*/model.safetensors"))
    before = [lf.load(path).packed() for path in models]
    assert len(models) == 3 and main(["cs", *options, "--out", str(tmp_path / "no"), "--train-only"]) == 0
    assert models == sorted((tmp_path / "runs").glob("*/*/model.safetensors"))  # those of ct
    assert all(torch.equal(lf.load(path).packed(), p) for path, p in zip(models, before, strict=True))
    assert main(["ct", *options, "--out", str(tmp_path / "one"), "--model", str(models[0])]) == 0
    assert (tmp_path / "one" / "reconstruction.csv").exists()
