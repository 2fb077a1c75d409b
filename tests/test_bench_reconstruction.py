"""The comparison on inverse problems: its tasks and baselines on made-up data, and a small run of every part."""

import csv
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tables import rows_of

import lpn_fast as lf
from bench.reconstruction import baselines, oscillating, ours, tasks, throughput
from bench.reconstruction.__main__ import main
from lpn_fast.physics import Blur, Denoising, GaussianNoise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return lf.pretrained("frame-gray").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder of smooth pictures and random networks."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def picture(path, side):
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)

    natural = folder / "natural" / "bsds500"
    for part in ("train", "val"):
        for i in range(2):
            picture(natural / part / f"{i}.png", 80)
            (natural / part / f"{i}.png").rename(natural / part / f"{i}.jpg")
    (natural / "val32.txt").write_text("val/0.jpg\nval/1.jpg\n")
    rows = [("train/a.png", 0, "p1"), ("train/b.png", 1, "p9")]
    for name, _, _ in rows:
        picture(folder / "ct_mayo" / name, 512)
    with open(folder / "ct_mayo" / "slices.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "upstream_index", "patient_group_inferred"), *rows])
    (folder / "kernels").mkdir()
    np.savez(folder / "kernels" / "kernels.npz", levin09_00=rng.random((3, 5)), levin09_01=rng.random((5, 3)))
    (folder / "weights").mkdir()
    shapes = [(3, 2), (1, 3)]
    layers = {f"conv{i:02d}.weight": 0.1 * rng.standard_normal((*s, 3, 3)) for i, s in enumerate(shapes)}
    layers |= {f"conv{i:02d}.bias": np.zeros(s[0]) for i, s in enumerate(shapes)}
    np.savez(folder / "weights" / "fdncnn_gray.npz", **{k: v.astype(np.float32) for k, v in layers.items()})
    ridge = {
        "mu_": np.array(1.0),
        "conv_layer.conv_layers.0.parametrizations.weight.original": rng.standard_normal((2, 1, 3, 3)),
        "conv_layer.conv_layers.1.weight": rng.standard_normal((3, 2, 3, 3)),
        "conv_layer.conv_layers.2.weight": rng.standard_normal((4, 3, 3, 3)),
        "activation_cvx.coefficients": np.linspace(-0.1, 0.1, 11)[None] ** 3,
        "activation_ccv.coefficients": np.linspace(-0.1, 0.1, 11)[None] / 2,
        "spline_scaling.coefficients": np.ones((4, 5)),
    }
    np.savez(folder / "weights" / "wcrr_repo_WCRR-CNN.npz", **{k: v.astype(np.float32) for k, v in ridge.items()})
    return folder


def test_wrong_use_is_one_line_and_exit_code_two(capsys, tmp_path):
    assert main(["--help"]) == 0 and "--quick" in capsys.readouterr().out
    assert main(["--quick"]) == 2 and "--out must be given" in capsys.readouterr().err
    assert main(["--only", "nothing"]) == 2
    assert main(["--data", str(tmp_path / "absent"), "--out", str(tmp_path)]) == 2
    assert "the data folder must exist" in capsys.readouterr().err


def test_the_published_settings_are_outside_by_the_known_factors():
    by_name = {task.name: task.published for task in tasks.TASKS}
    assert 1 / by_name["deblur-1-0.02"].equivalent_rho == pytest.approx(10)
    assert 1 / by_name["deblur-2-0.02"].equivalent_rho == pytest.approx(40)
    assert 1.37e4 / by_name["ct"].equivalent_rho == pytest.approx(55, rel=0.01)
    assert 1.73 / by_name["cs-16"].equivalent_rho == pytest.approx(70, rel=0.02)
    assert by_name["motion-0.02"] is None


@pytest.mark.parametrize("name, side", [("deblur-2-0.04", 64), ("motion-0.02", 64), ("ct", 128), ("cs-4", 128)])
def test_every_task_measures_what_it_says(root, name, side):
    task = next(t for t in tasks.TASKS if t.name == name)
    instance = task.instance(root, "validation", 2, side)
    assert instance.simple.shape == instance.x.shape and instance.x.shape[-1] == side
    noise = instance.y - instance.physics.A(instance.x)
    assert noise.std().item() == pytest.approx(instance.noise, rel=0.05)
    assert torch.equal(instance.y, task.instance(root, "validation", 2, side).y)
    assert not torch.equal(instance.x[:1], task.instance(root, "train", 1, side).x)


# ---------------------------------------------------------------- baselines


def make_instance(physics, x, noise):
    physics = physics.with_noise(GaussianNoise(noise))
    y = physics.simulate(x, 0)
    return tasks.Instance(x, physics, y, noise, physics.A_adjoint(y))


def test_total_variation_of_a_step_is_shrunk_in_closed_form():
    """Two halves of n columns: each level moves towards the other by weight s^2 / n."""
    x = torch.zeros(1, 1, 4, 8)
    x[..., 4:] = 1
    instance = tasks.Instance(x, Denoising(), x, 1.0, x)
    found = baselines.total_variation(instance, 0.4, iterations=2000).x
    expected = torch.where(x > 0.5, 1 - 0.4 / 4, 0.4 / 4)
    assert torch.allclose(found, expected, atol=1e-3)


def test_differences_and_their_adjoint_match():
    x, u = torch.randn(2, 1, 5, 6, dtype=torch.float64), torch.randn(2, 2, 1, 5, 6, dtype=torch.float64)
    left, right = (baselines.differences(x) * u).sum(), (x * baselines.differences_adjoint(u)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-12)


def test_the_ridge_regulariser_composes_its_convolutions(root):
    regulariser = baselines.RidgeRegulariser(root)
    x = torch.randn(1, 1, 20, 20)
    inner = x
    for kernel in regulariser.kernels:
        inner = torch.nn.functional.conv2d(inner, kernel)
    composed = torch.nn.functional.conv2d(x, regulariser.kernel)
    scale = (inner * composed).sum() / (composed * composed).sum()
    assert torch.allclose(inner, scale * composed, atol=1e-4 * inner.abs().max().item())
    # |W| = 1 up to the grid: no random image of a large support is stretched
    x = torch.nn.functional.pad(x, (20, 20, 20, 20))
    assert torch.nn.functional.conv2d(x, regulariser.kernel, padding=3).norm() <= 1.01 * x.norm()


def test_the_gradient_of_the_ridge_regulariser_is_a_gradient(root):
    """Symmetric Jacobian, by differences along two directions."""
    regulariser = baselines.RidgeRegulariser(root)
    torch.manual_seed(0)
    x, u, v = 0.02 * torch.randn(3, 1, 1, 16, 16)
    left, right = (
        (b * (regulariser.gradient(x + 1e-2 * a, 0.1) - regulariser.gradient(x - 1e-2 * a, 0.1))).sum()
        for a, b in ((u, v), (v, u))
    )
    assert left.item() == pytest.approx(right.item(), rel=0.02, abs=1e-6)


def test_tuning_takes_the_value_with_the_best_psnr():
    x = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4), size=32, mode="bilinear")
    instance = make_instance(Blur.gaussian(1.0), x, 0.05)
    scores = {
        c: lf.metrics.psnr(baselines.total_variation(instance, c, 50).x.clamp(0, 1), x).item() for c in (0.1, 20.0)
    }
    chosen = baselines.tuned(lambda i, c: baselines.total_variation(i, c, 50), (0.1, 20.0), instance)
    assert chosen == max(scores, key=scores.get)


# ---------------------------------------------------------------- the parts


def test_a_batch_gives_what_the_published_way_gives(model):
    rows = throughput.run(model, side=16, iterations=2, rounds=1, seconds=0.1, show=lambda line: None)
    found = [row["what"] for row in rows]
    assert found == ["throughput", *(["deepinv"] if importlib.util.find_spec("deepinv") else []), "objective"]
    assert all(row["relative_difference"] < 1e-5 for row in rows) and rows[-1]["relative_difference"] == 0
    assert all(row["ratio_p50"] > 0 for row in rows)


def test_descent_does_not_need_definability(model):
    rows = oscillating.run(model, iterations=25, show=lambda line: None)
    assert {row["case"] for row in rows} == {"linear", "pointwise", "spiral", "spiral, no prior"}
    for row in rows:
        if row["solver"] not in ("admm", "drs"):  # their envelope falls, not F
            assert row["largest_relative_rise_of_objective"] < 1e-12


def test_the_oscillating_operator_is_linear_with_a_matched_adjoint():
    operator = oscillating.SineOfReciprocal(50)
    torch.manual_seed(0)
    x, y = torch.randn(1, 1, 24, 24, dtype=torch.float64), torch.randn(1, 50, dtype=torch.float64)
    assert lf.physics.adjoint_mismatch(operator, x, y).item() < 1e-12
    assert operator.A(x).norm() <= operator.norm() * x.norm()


def test_a_run_writes_rows_and_pictures(root, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    options = ["--data", str(root), "--quick", "--out", str(tmp_path), "--threads", "1", "--only", "quality"]
    assert main([*options, "--tasks", "deblur-1-0.04", "--methods", "degraded|TV|Dn|WCRR|tuned|pgd|published"]) == 0
    rows = {row["method"]: row for row in rows_of(tmp_path / "quality.csv")}
    assert list(rows) == [
        "degraded",
        "TV",
        "PnP-DnCNN",
        "PnP-DnCNN-30",
        "WCRR",
        "lpn-tuned",
        "lpn-pgd",
        "lpn-published",
    ]
    assert json.loads(rows["lpn-tuned"]["config_json"])["assumed_noise"] in ours.ASSUMED_GRID
    assert rows["lpn-tuned"]["outside_factor"] == "1.0"
    assert float(rows["lpn-pgd"]["psnr_mean"]) > float(rows["degraded"]["psnr_mean"])
    assert rows["lpn-pgd"]["outside_factor"] == "1.0" and float(rows["lpn-published"]["outside_factor"]) > 9.9
    assert {"device", "commit", "seconds_per_image", "peak_mb", "ssim_gaussian_std"} <= rows["TV"].keys()
    assert (tmp_path / "deblur-1-0.04.png").read_bytes().startswith(b"\x89PNG")
    assert main([*options, "--tasks", "deblur-1-0.04", "--methods", "lpn-fista|degraded"]) == 0
    again = {row["method"]: row for row in rows_of(tmp_path / "quality.csv")}
    assert again.keys() == {*rows, "lpn-fista"} and again["TV"] == rows["TV"]  # the others keep theirs
    assert main([*options, "--tasks", "nothing"]) == 2
