"""The HTML page about a job: well formed, self-contained, and saying what the manifest says."""

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.io.sources import find_sources
from lpn_fast.pipeline import report
from lpn_fast.pipeline.manifest import read_results

SIDE = 24
VOID = {"meta", "img"}  # elements without an end


class Page(HTMLParser):
    """Tables as rows of texts, headings, figures; fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.headings, self.pictures, self.captions, self.references = [], [], [], [], []
        self._open, self._text = [], ""
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.references += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID:
            self._open.append(tag)
        self._text = "" if tag in ("td", "th", "h1", "h2", "figcaption") else self._text
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag == "img":
            self.pictures.append((attributes["alt"], attributes["src"]))

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._text)
        if tag in ("h1", "h2"):
            self.headings.append(self._text)
        if tag == "figcaption":
            self.captions.append(self._text)


@pytest.fixture
def place(tmp_path):
    """A gray and a colour picture, one whose name is markup, one that is none; and a small model."""
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=2, strides=(1, 2), sigma_conditional=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name:
                parameter.mul_(0.02)
    lf.save(model, tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    ramp = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)
    Pillow.fromarray(ramp).save(tmp_path / "images/a.png")
    Pillow.fromarray(np.stack([ramp, ramp.T, ramp], 2)).save(tmp_path / "images/b.png")
    Pillow.fromarray(np.tile(ramp, (10, 10))).save(tmp_path / "images/<script>&.png")
    (tmp_path / "images/broken.png").write_text("no picture")
    return tmp_path


def run(place, *command):
    folders = [str(place / "images"), "-o", str(place / "out"), "--report", str(place / "page/report.html")]
    code = cli.main([command[0], *folders, "--model", str(place / "model.safetensors"), *command[1:]])
    return code, Page((place / "page/report.html").read_text(encoding="utf-8"))


def decoded(source):
    kind, data = source.split(",")
    assert kind == "data:image/png;base64"
    return Pillow.open(io.BytesIO(base64.b64decode(data)))


def test_a_simulated_job_shows_before_after_quality_and_conditions(place):
    code, page = run(place, "reconstruct", "--simulate", "--iterations", "3")
    assert code == 1  # one picture is none
    results = {r.item: r for r in read_results(place / "out").values()}
    assert page.headings[1:] == [
        "Settings", "Conditions of the convergence theorem", "Failed", "Before and after", "Numbers",
    ]  # fmt: skip
    assert "natural" not in page.headings[0] and "noise 0.03" in page.headings[0]
    settings, conditions, failed, numbers = page.tables
    assert ["iterations", "3"] in settings and ["solver", "pgd"] in settings
    assert {row[-1] for row in conditions[1:]} <= {"yes", "no"} and len(conditions) > 2
    assert [Path(row[0]).name for row in failed[1:]] == ["broken.png"] and "cannot identify" in failed[1][1]
    assert [row[0] for row in numbers[1:]] == ["<script>&.png", "a.png", "b.png", "mean"]
    column = numbers[0].index("PSNR")
    for row in numbers[1:-1]:
        assert row[column] == f"{results[row[0]].psnr:.2f}"
        assert row[column - 2] == f"{results[row[0]].psnr_before:.2f}"
    mean = sum(results[row[0]].psnr for row in numbers[1:-1]) / 3
    assert numbers[-1][column] == f"{mean:.2f}"
    assert [what for what, _ in page.pictures] == ["before", "after"] * 3
    pictures = [decoded(source) for _, source in page.pictures]
    assert [p.mode for p in pictures] == ["L"] * 4 + ["RGB"] * 2
    assert max(pictures[0].size) == report.THUMBNAIL_SIDE and pictures[2].size == (SIDE, SIDE)
    for picture, path in ((pictures[2], "out/degraded/a.png"), (pictures[3], "out/a.png")):
        assert (np.asarray(picture) == np.asarray(Pillow.open(place / path))).all()
    assert "a.png, 24 x 24" in page.captions[1] and "dB" in page.captions[1]
    assert all(reference.startswith("data:") for reference in page.references)


def test_a_denoised_job_shows_the_measurements_and_no_quality(place):
    _, page = run(place, "denoise", "--sigma", "0.1")
    assert "Conditions of the convergence theorem" not in page.headings
    numbers = page.tables[-1]
    assert not any("PSNR" in heading for heading in numbers[0]) and "noise estimate" in numbers[0]
    before = decoded(page.pictures[2][1])
    assert (np.asarray(before) == np.asarray(Pillow.open(place / "images/a.png"))).all()


def test_thumbnails_show_the_intensities_of_the_job(place):
    for path in (place / "images").iterdir():
        path.unlink()
    stored = np.linspace(0, 4095, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    Pillow.fromarray(stored).save(place / "images/a.png")
    _, page = run(place, "denoise", "--sigma", "0.1", "--intensities", "0", "4095")
    assert (np.asarray(decoded(page.pictures[0][1])) == np.rint(stored / 4095 * 255)).all()


def test_a_result_that_misses_its_measurement_says_so_in_its_line_and_on_the_page(place):
    rng = np.random.default_rng(0)  # noise, which no blur can have made
    Pillow.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(place / "images/b.png")
    _, page = run(place, "reconstruct", "--noise", "0.01", "--iterations", "2")
    results = read_results(place / "out")
    assert results["b.png"].misfit > 2 and 0 < results["a.png"].misfit
    (note,) = results["b.png"].notes
    assert note.startswith(f"misses its measurement by {results['b.png'].misfit:.3g} times the noise")
    assert any(note in caption for caption in page.captions) and "misfit" in page.tables[-1][0]


def test_a_large_job_shows_some_pictures_and_all_numbers(place, monkeypatch):
    monkeypatch.setattr(report, "MOST_PICTURES", 2)
    _, page = run(place, "denoise", "--sigma", "0.1")
    assert "Before and after, the first 2 of 3" in page.headings and len(page.pictures) == 4
    assert len(page.tables[-1]) == 1 + 3 + 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium to show the page with")
def test_a_browser_shows_the_pictures(place):
    """A picture of one colour, which the page's style does not use, covers as many pixels as it has."""
    colour = np.array([230, 20, 140], np.uint8)
    for path in (place / "images").iterdir():
        path.unlink()
    Pillow.fromarray(np.broadcast_to(colour, (64, 64, 3)).copy()).save(place / "images/a.png")
    run(place, "denoise", "--sigma", "0.1")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,1200"]
    page, shot = f"file://{place}/page/report.html", place / "shot.png"
    subprocess.run([*command, f"--user-data-dir={place}/profile", f"--screenshot={shot}", page],
                   capture_output=True, timeout=60, check=True)  # fmt: skip
    seen = np.asarray(Pillow.open(shot).convert("RGB")).astype(int)
    assert (np.abs(seen - colour).max(2) <= 1).sum() == 64 * 64


def test_a_result_that_is_gone_leaves_a_note_in_its_place(place):
    run(place, "denoise", "--sigma", "0.1")
    (place / "out/b.png").unlink()
    results, (sources, *_) = list(read_results(place / "out").values()), find_sources(place / "images")
    text = report.write_report(place / "later.html", results, sources, place / "out", "a < b").read_text()
    assert text.count("after: cannot be shown") == 1 and "<h1>a &lt; b</h1>" in text
