"""What objects look like at a prompt and in a notebook: lines and pictures for people, never a dump of tensors."""

import importlib
import sys

import pytest
import torch
import tqdm.auto

import lpn_fast as lf

GRAY = lf.pretrained("frame-gray")


@pytest.fixture(scope="module")
def result():
    physics = lf.physics.Blur.gaussian(1.6, "valid")
    scene = torch.rand(2, 1, 48, 40, generator=torch.Generator().manual_seed(0))
    return lf.reconstruct(physics.A(scene), physics, GRAY, noise=0.005)


def test_a_model_prints_as_what_a_user_asks_first():
    text = repr(GRAY)
    for part in (
        "FrameLPN 'frame-gray'", "gray images (N, 1, H, W), values in [0, 1]", "sigma from 0.01 to 0.3", "8,114",
        "trained on: BSDS500", "cpu, float32", "precision fp32",
    ):  # fmt: skip
        assert part in text
    assert lf.explain(GRAY, torch.zeros(1, 1, 9, 9)).split(":")[0] in text.splitlines()[-1]


@pytest.mark.parametrize(
    "model, part",
    [
        (lf.MLPLPN(3), "vectors (N, 3)"),
        (lf.ConvLPN(2, hidden=4, ndim=3), "volumes (N, 2, D, H, W)"),
        (lf.ConvLPN(3, hidden=4), "colour images (N, 3, H, W)"),
        (lf.ConvLPN(1, hidden=4), "one level, sigma is not given"),
        (lf.ExplicitLPN(1, kernel=4, groups=8), "ExplicitLPN\n"),
        (lf.InTiles(lf.ConvLPN(1, hidden=4)), "InTiles of 512 pixels"),
    ],
)
def test_every_kind_of_model_has_such_lines(model, part):
    assert part in repr(model) and "parameters" in repr(model) and len(repr(model).splitlines()) < 12


def test_models_that_were_never_loaded_have_no_name_and_loaded_ones_have_their_file(tmp_path):
    assert repr(lf.MLPLPN(3)).startswith("MLPLPN\n")
    path = lf.save(lf.MLPLPN(3), tmp_path / "mine.safetensors")
    assert "mine.safetensors" in repr(lf.load(path)).splitlines()[0]


def test_html_escapes_what_a_card_says():
    model = lf.MLPLPN(3)
    model.card = {"data": "<script>alert(1)</script>"}
    assert "<script>" not in model._repr_html_() and "&lt;script&gt;" in model._repr_html_()


def test_a_result_shows_its_pictures_in_a_notebook(result):
    page = result._repr_html_()
    assert page.count("data:image/png;base64,") == 2 and "iterations" in page


def test_a_plot_has_before_after_truth_and_objective(result):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure = result.plot(1, truth=torch.zeros_like(result.x))
    assert [axes.get_title() for axes in figure.axes] == ["start", "result", "truth", "objective"]
    shown = [axes.images[0].get_array() for axes in figure.axes[:3]]
    assert {array.shape for array in shown} == {tuple(result.x.shape[-2:])}  # the rim of the scene is cut off
    line = figure.axes[-1].lines[0].get_ydata().tolist()
    assert line == result.objective[: int(result.iterations[1]), 1].tolist()


def test_a_plot_without_matplotlib_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "lpn-fast\[plot\]"'):
        result.plot()


def test_what_cannot_be_plotted_is_named(result):
    with pytest.raises(IndexError, match="between 0 and 1, got 2"):
        result.plot(2)


@pytest.mark.parametrize("samples", [0, 5])
def test_inversions_and_values_print_their_certificates(samples):
    model, x = lf.MLPLPN(3, alpha=0.1), torch.zeros(samples, 3)
    assert f"of {samples} samples" in repr(lf.invert(model, x)) and "tensor(" not in repr(lf.invert(model, x))
    assert f"of {samples} samples" in repr(lf.prior(model, x)) and "tensor(" not in repr(lf.prior(model, x))


@pytest.mark.parametrize(
    "module", ["pipeline.job", "jobs.engine", "training.trainer", "solvers.driver", "solvers.continuation"]
)
def test_progress_is_shown_by_the_bar_that_suits_the_place(module):
    """tqdm.auto: a widget in a notebook, where standard error is no terminal and the plain bar would stay away."""
    assert importlib.import_module(f"lpn_fast.{module}").tqdm is tqdm.auto.tqdm


def test_a_verification_is_a_table_in_a_notebook():
    report = lf.verify(lf.MLPLPN(3), torch.randn(4, 3))
    assert repr(report) == str(report) and "all properties hold" in report._repr_html_()
    assert report._repr_html_().count("<tr>") == len(report.properties) + 1
