"""`lpn-fast demo`: a page that stands alone, whose numbers are those of its methods."""

import re
import sys

import numpy as np
import pytest
import torch
from test_pipeline_report import Page

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.cli import demo

SIDE = 64


@pytest.fixture
def small(monkeypatch):
    """A demo of tiny images."""
    monkeypatch.setattr(demo, "QUICK_SIDE", SIDE)


def titles():
    return [case.title for case in demo.cases(SIDE)[0]]


def test_the_page_shows_every_case_beside_the_alternatives(small, tmp_path, capsys):
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    assert cli.main(["demo", "--quick", "-o", str(tmp_path / "demo")]) == 0
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["index.html"]
    page = Page((tmp_path / "demo/index.html").read_text(encoding="utf-8"))
    assert page.headings[1:] == titles() and len(titles()) == 4
    ct = ["measured", "FBP", "SART", "FBP and total variation", demo.OURS, "truth"]
    deblurring, inpainting = (["measured", name, demo.OURS, "truth"] for name in ("Wiener filter", "biharmonic"))
    assert [name for name, _ in page.pictures] == [*deblurring, *ct, *ct, *inpainting]
    assert all(reference.startswith("data:") for reference in page.references)  # nothing from elsewhere
    out = capsys.readouterr().out
    assert "index.html" in out and out.count(demo.OURS) == 4
    numbers = [caption for caption in page.captions if " dB, " in caption]
    assert len(numbers) == 12 and all(re.search(r"\d+\.\d\d(?= dB)", caption)[0] in out for caption in numbers)


def test_without_scikit_image_the_page_says_so_and_shows_the_rest(small, tmp_path, monkeypatch, capsys):
    for package in ("skimage", "pydicom"):
        monkeypatch.setitem(sys.modules, package, None)
    real = demo.importlib.util.find_spec
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda name: None if name in ("skimage", "pydicom") else real(name)
    )
    assert cli.main(["demo", "--quick", "-o", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [name for name, _ in page.pictures] == ["measured", demo.OURS, "truth"] * 3
    out = capsys.readouterr().out
    for package in ("scikit-image", "pydicom"):
        assert f"{package} is not installed" in text and f"note: {package} is not installed" in out


def test_somebody_elses_page_is_not_overwritten(small, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    assert cli.main(["demo", "--quick", "-o", str(tmp_path)]) == 2
    assert (tmp_path / "index.html").read_text() == "mine" and "not overwritten" in capsys.readouterr().err


def test_scikit_image_sees_the_same_scan():
    """Its filtered back-projection of our sinogram is ours."""
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    phantom = next(case for case in demo.cases(2 * SIDE)[0] if "phantom" in case.title)
    y = phantom.measured()
    theirs = phantom.alternatives["FBP"][0](y[0].double().numpy())
    ours = phantom.physics.fbp(y)[0].numpy()
    assert np.abs(theirs - ours).max() < 0.02 * np.abs(ours).max()


def test_a_method_gets_its_best_weight_and_numbers_are_of_its_image():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    case = demo.cases(SIDE)[0][0]
    _, (wiener, ours) = demo.solve(case)
    y = case.measured()[0].double().numpy()
    found = [torch.from_numpy(method(y)).float().clamp(0, 1) for method in case.alternatives["Wiener filter"]]
    psnr = max(float(lf.metrics.psnr(x[None], case.truth[None])) for x in found)
    assert wiener.psnr == pytest.approx(psnr) and wiener.x.shape == case.truth.shape
    assert ours.name == demo.OURS and ours.psnr > wiener.psnr


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_too_wide(small, tmp_path, browser, width):
    assert cli.main(["demo", "--quick", "-o", str(tmp_path)]) == 0
    browser.open(tmp_path / "index.html", width)
    assert browser.overflowing() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate("document.querySelectorAll('.card button')[1].click()")
    assert "CT" in browser.evaluate("document.querySelector('.compare figcaption span').textContent")
