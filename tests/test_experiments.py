"""The experiments: their command line, their perturbations, and one small run of each on a file of fake digits."""

import os

import numpy as np
import pytest
import torch
from tables import rows_of

import lpn_fast as lf
from bench.experiments import mnist, mnist_inversion, perturbations, three_losses
from bench.experiments.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file like mnist.npz whose every digit is a soft bar somewhere."""
    rows = np.arange(28)[None, :, None]
    centre = np.random.default_rng(0).integers(6, 22, 60_000)[:, None, None]
    bars = (255 * np.exp(-0.2 * (rows - centre) ** 2)).astype(np.uint8)  # [60000, 28, 1]
    digits = np.zeros((60_000, 28, 28), np.uint8)
    digits[:, :, 8:20] = bars
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    np.savez_compressed(path, x_train=digits)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """A network that is quick to invert, of the published architecture."""
    torch.manual_seed(0)
    model = lf.paper_network("mnist")
    return lf.save(model, tmp_path / "model.safetensors")


def test_help_shows_the_experiments_and_examples(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "mnist-prior" in text and "mnist-inversion" in text and "examples:" in text
    assert main(["mnist-prior", "--help"]) == 0 and "example" in capsys.readouterr().out


def test_wrong_use_is_one_line_and_exit_code_two(capsys, monkeypatch, tmp_path, data):
    monkeypatch.delenv(mnist.VARIABLE, raising=False)
    assert main(["nonsense"]) == 2
    capsys.readouterr()
    assert main(["mnist-prior"]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["mnist-prior", "--quick", "--data", str(data)]) == 2
    assert "--out" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    assert main(["mnist-prior", "--data", str(tmp_path / "other.npz")]) == 2
    assert "x_train" in capsys.readouterr().err


def test_the_data_are_found_through_the_environment(monkeypatch, data):
    monkeypatch.setenv(mnist.VARIABLE, str(data.parent))
    assert mnist.find_digits(None) == data


@pytest.mark.skipif(not os.environ.get("LPN_FAST_DATA"), reason="LPN_FAST_DATA names no folder with MNIST")
def test_the_digits_are_the_digits():
    images = mnist.as_images(mnist.read_digits(mnist.find_digits(None)))
    assert images.mean().item() == pytest.approx(0.13066, abs=1e-5)
    assert images.std().item() == pytest.approx(0.30811, abs=1e-5)


def test_perturbations_are_what_they_are_called():
    x = torch.zeros(4, 1, 28, 28)
    x[:, :, 14, 14] = 1
    blurred = perturbations.perturb(x, "blur", 2.0)[0, 0]
    place = torch.arange(28.0) - 14
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    assert (blurred.sum(0) * place**2).sum().item() == pytest.approx(4.0, rel=0.02)  # the variance
    x[0] = 0.5
    noise = perturbations.perturb(x, "noise", 0.1)[0] - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.allclose(perturbations.perturb(x, "mix", 0.25)[0], 0.75 * x[0] + 0.25 * x[3])
    assert all(torch.equal(perturbations.perturb(x, kind, 0.0), x) for kind in perturbations.LEVELS)


def test_rising_means_what_it_says():
    assert perturbations.rises({0.0: 1, 0.1: 2, 0.2: 3}, "noise")
    assert not perturbations.rises({0.0: 1, 0.1: 3, 0.2: 2}, "noise")
    assert perturbations.rises({0.0: 1, 0.25: 2, 0.5: 3, 0.75: 2, 1.0: 0}, "mix")
    assert not perturbations.rises({0.0: 3, 0.25: 2, 0.5: 1, 0.75: 2, 1.0: 3}, "mix")  # as every convex R does


def test_the_schedules_have_the_steps_asked_for():
    for loss in three_losses.LOSSES:
        assert sum(phase.steps for phase in three_losses.short_phases(loss, 80, mnist.ENTRIES)) == 80
    assert three_losses.short_phases("matching", 80, mnist.ENTRIES)[-1].gamma == pytest.approx(2.24)


def test_the_prior_study_trains_evaluates_and_resumes(tmp_path, data, capsys):
    out = tmp_path / "out"
    options = ["--data", str(data), "--steps", "8", "--count", "2", "--threads", "1", "--runs", str(tmp_path / "runs")]
    code = main(["mnist-prior", *options, "--out", str(out)])
    rows = rows_of(out / "results.csv")
    assert code in (0, 1) and len(rows) == 45 and {row["loss"] for row in rows} == set(three_losses.LOSSES)
    assert {"device", "threads", "torch", "commit", "converged", "mean", "std"} <= rows[0].keys()
    assert (out / "prior.png").read_bytes().startswith(b"\x89PNG")
    assert ("does NOT rise" in capsys.readouterr().out) or code == 0

    trained = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/model.safetensors")}
    assert len(trained) == 3
    assert main(["mnist-prior", *options, "--out", str(out)]) == code
    again = rows_of(out / "results.csv")
    assert [row["mean"] for row in again] == [row["mean"] for row in rows]


def test_the_inversion_bench_says_what_the_baseline_reached(tmp_path, data, checkpoint):
    pytest.importorskip("scipy", reason="the baseline is scipy's")
    options = ["--data", str(data), "--count", "3", "--baseline", "1", "--model", str(checkpoint), "--threads", "1"]
    assert main(["mnist-inversion", *options, "--out", str(tmp_path)]) == 0
    published, single, double = rows_of(tmp_path / "results.csv")
    assert "published" in published["baseline"] and float(published["ratio_cpu"]) > 0
    assert single["ours_converged"] == "3" and float(single["ours_residual_max"]) <= 1e-5
    assert single["extrapolated"] == "True" and single["baseline_images"] == "1"
    assert double["baseline_reached_tol"] == "1" and float(double["ratio"]) > 0


@pytest.mark.parametrize("objective", ["together", "published"])
def test_the_scipy_baselines_invert(checkpoint, objective):
    pytest.importorskip("scipy", reason="the baseline is scipy's")
    model = lf.load(checkpoint).double().requires_grad_(False)
    x = torch.rand(1, 1, 28, 28, dtype=torch.float64)
    tol = 1e-7  # values of 1e4, in float64, tell points apart down to a residual of some 1e-8
    y = mnist_inversion.scipy_inversion(getattr(mnist_inversion, objective)(model), x, tol)
    assert (model(y) - x).norm() / x.norm() <= 1.01 * tol
