"""The HTML page about a job: well formed, self-contained, and saying what the manifest says."""

import base64
import io
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import cli, pages
from lpn_fast.io.sources import find_sources
from lpn_fast.pipeline import ItemResult, Summary, report
from lpn_fast.pipeline.manifest import read_results

SIDE = 24
VOID = {"meta", "img", "input", "br"}  # elements without an end
DRAWN = {"rect", "line"}  # closed by themselves
MOST_BYTES, MOST_SECONDS = 15e6, 8.0  # of the page about 1,000 images, where they are noise in colour


class Page(HTMLParser):
    """Tables as rows of texts, headings, figures, facts; fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.headings, self.pictures, self.captions, self.references = [], [], [], [], []
        self.terms, self.definitions, self.plots, self.images = [], [], [], []
        self._open, self._text = [], ""
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.references += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID | DRAWN:
            self._open.append(tag)
        self._text = "" if tag in ("td", "th", "h1", "h2", "figcaption", "dt", "dd", "strong") else self._text
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag == "img":
            self.images.append(attributes)
        if tag == "img" and "src" in attributes:
            self.pictures.append((attributes["alt"], attributes["src"]))

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._text)
        for names, texts in (
            (("h1", "h2"), self.headings), (("figcaption",), self.captions), (("strong",), self.plots),
            (("dt",), self.terms), (("dd",), self.definitions),
        ):  # fmt: skip
            if tag in names:
                texts.append(self._text.strip())

    def handle_startendtag(self, tag, attributes):
        assert tag in DRAWN, tag

    @property
    def facts(self):
        return dict(zip(self.terms, self.definitions, strict=True))

    @property
    def files(self):
        return [unquote(reference) for reference in self.references if reference[:1] not in ("#", "d")]


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
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return Pillow.open(io.BytesIO(base64.b64decode(data)))


def test_a_simulated_job_shows_before_after_truth_quality_and_conditions(place):
    code, page = run(place, "reconstruct", "--simulate", "--iterations", "3")
    assert code == 1  # one picture is none
    results = {r.item: r for r in read_results(place / "out").values()}
    assert page.headings == [
        "3 images deblurred", "Conditions of the convergence theorem", "Failed", "Numbers", "Settings",
    ]  # fmt: skip
    conditions, failed, numbers, settings = page.tables
    assert ["iterations", "3"] in settings and ["solver", "pgd"] in settings and ["sigma", "automatic"] in settings
    assert {row[-1] for row in conditions[1:]} <= {"yes", "no"} and len(conditions) > 2
    assert [Path(row[0]).name for row in failed[1:]] == ["broken.png"] and "cannot identify" in failed[1][1]
    assert [row[0] for row in numbers[1:]] == ["<script>&.png", "a.png", "b.png", "mean"]
    column = numbers[0].index("PSNR")
    for row in numbers[1:-1]:
        assert row[column] == f"{results[row[0]].psnr:.2f}"
        assert row[column - 2] == f"{results[row[0]].psnr_before:.2f}"
    mean = sum(results[row[0]].psnr for row in numbers[1:-1]) / 3
    assert numbers[-1][column] == f"{mean:.2f}" and page.facts["Quality"].startswith(f"{mean:.2f} dB, mean PSNR; ")
    assert (
        page.facts["Images"].startswith("3 done, 1 failed, 3 did not")
        and page.facts["Solver"] == "pgd, at most 3 iterations"
    )
    assert page.facts["Noise"].startswith("0.03 given, ") and page.facts["Noise"].endswith("from the measurements")
    names = [name for name, _ in page.pictures]
    assert names == ["blur kernel, 15 x 15 pixels"] + ["before", "after", "truth"] * 3
    pictures = [decoded(source) for _, source in page.pictures]
    assert [p.mode for p in pictures] == ["L"] * 7 + ["RGB"] * 3
    assert pictures[0].size == (15, 15) and np.asarray(pictures[0]).max() == 255
    assert pictures[4].size == (SIDE, SIDE)
    for picture, path in zip(pictures[4:7], ("out/degraded/a.png", "out/a.png", "images/a.png"), strict=True):
        assert (np.asarray(picture) == np.asarray(Pillow.open(place / path))).all()
    assert any("a.png, 24 x 24" in caption and "dB" in caption for caption in page.captions)
    assert all((place / "page" / file).exists() for file in page.files) and len(page.files) == 2 + 3 * 3


def test_the_page_says_how_it_was_made(place):
    _, page = run(place, "denoise", "--sigma", "0.1")
    text = (place / "page/report.html").read_text()
    assert page.headings[0] == "3 images denoised" and f"UTC, lpn_fast {lf.__version__}" in text
    assert page.facts["Command"].startswith("lpn-fast denoise ") and "--sigma 0.1" in page.facts["Command"]
    assert page.facts["Model"] == str(place / "model.safetensors")
    assert page.facts["Noise"].startswith("0.1 given, ") and page.facts["Solver"] == "one evaluation of the network"
    assert "src=http" not in text.replace('"', "") and all(not file.startswith("http") for file in page.files)


def test_a_denoised_job_shows_the_measurements_and_no_quality(place):
    _, page = run(place, "denoise", "--sigma", "0.1")
    assert "Conditions of the convergence theorem" not in page.headings and "Quality" not in page.facts
    numbers = page.tables[1]
    assert not any("PSNR" in heading for heading in numbers[0]) and "noise estimate" in numbers[0]
    assert [name for name, _ in page.pictures] == ["before", "after"] * 3
    before = decoded(page.pictures[2][1])
    assert (np.asarray(before) == np.asarray(Pillow.open(place / "images/a.png"))).all()


def test_large_pictures_are_reduced_and_their_middle_is_kept(place):
    (place / "images/a.png").unlink()
    rows = np.arange(400, dtype=np.uint32)[:, None] * np.arange(360, dtype=np.uint32)
    Pillow.fromarray((rows // 600).astype(np.uint8)).save(place / "images/big.png")
    _, page = run(place, "denoise", "--sigma", "0.1")
    before = decoded(page.pictures[-2][1])
    assert before.size == (288, 320)  # of 360 x 400
    (detail,) = {image["data-detail"] for image in page.images if image["alt"] == "before" and "data-detail" in image}
    stored = np.asarray(Pillow.open(place / "images/big.png"))
    assert (np.asarray(decoded(detail)) == stored[40:360, 20:340]).all()


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
    assert any(note in caption for caption in page.captions) and "misfit" in page.tables[2][0]


def test_a_scored_job_shows_images_and_values(place):
    assert cli.main(["prior", str(place / "images"), "-o", str(place / "s.csv"), "--sigma", "0.1", "--max-iter", "2",
                     "--model", str(place / "model.safetensors"), "--report", str(place / "s.html")]) == 1  # fmt: skip
    page = Page((place / "s.html").read_text())
    assert page.headings[0] == "3 images scored by the learned prior"
    assert [name for name, _ in page.pictures] == ["image"] * 3 and "prior" in page.tables[1][0]
    assert page.facts["Prior"] == "at noise level 0.1"


def test_sinograms_are_shown_beside_results(place):
    for path in (place / "images").glob("[!a]*"):
        path.unlink()
    (place / "scan.toml").write_text("size = [24, 24]\nangles = 9\n")
    scan = ["--physics", "ct", "--geometry", str(place / "scan.toml"), "--iterations", "2"]
    _, page = run(place, "reconstruct", "--simulate", "--noise", "0.1", *scan)
    names = [name for name, _ in page.pictures]
    assert names == ["the 9 directions of view, as lines of frequencies", "measured", "result", "truth"]
    sinogram = np.load(place / "out/degraded/a.png.npy")
    shown = np.asarray(decoded(page.pictures[1][1]))
    assert shown.shape == sinogram.shape[-2:] and shown.min() == 0 and shown.max() == 255
    assert page.headings[0] == "1 image reconstructed from sinograms (CT)"
    assert all((place / "page" / file).exists() for file in page.files)


def many(count, out):
    """A job of so many images, all in the manifest and one that is there to be shown."""
    torch.manual_seed(0)
    psnr = 25 + torch.randn(count).double()
    settings = {"task": "denoise", "sigma": 0.1, "simulate": True}
    results = tuple(
        ItemResult(f"<i>{i:04d}.png", "done", "a.png", "", settings, "", height=256, width=256, psnr=float(psnr[i]),
                   noise_estimate=0.1, sigma=0.1, objective_last=1.0 * i, residual=0.0, iterations=1, seconds=0.1,
                   misfit=1.0, converged=True)
        for i in range(count)
    )  # fmt: skip
    return Summary(out, results, (), (), results, sources=tuple(find_sources(out)[0])), psnr


def test_a_page_about_a_thousand_images_stays_small_and_quick(tmp_path, request):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for folder in (tmp_path, tmp_path / "degraded"):
        folder.mkdir(exist_ok=True)
        for i in range(1000):
            path = folder / f"<i>{i:04d}.png"
            if i:
                path.hardlink_to(folder / "<i>0000.png")
            else:
                Pillow.fromarray(noise).save(path)
    summary, psnr = many(1000, tmp_path)
    path = report.write_report(tmp_path / "page.html", summary, lf.pipeline.Denoise(0.1))
    text = path.read_text()
    page = Page(text)
    assert len(text) < MOST_BYTES
    assert len(page.pictures) == 3 * report.MOST_PICTURES
    assert f"{report.MOST_PICTURES} of 1,000, from the lowest PSNR to the highest" in page.headings
    shown = [caption for caption in page.captions if " x " in caption]
    order = psnr.argsort()
    assert shown[0].startswith(f"<i>{int(order[0]):04d}.png") and shown[-1].startswith(f"<i>{int(order[-1]):04d}.png")
    assert len(page.tables[0]) == 1 + 1000 + 1 and "<i>" not in text
    assert page.plots == ["PSNR in dB", "objective"]  # what is the same for all is no distribution
    browser = request.getfixturevalue("browser")
    started = time.monotonic()
    browser.open(path, 1280)
    assert time.monotonic() - started < MOST_SECONDS
    assert browser.evaluate("document.querySelectorAll('tbody tr').length") > 1000
    assert browser.evaluate("document.images.length") == 2 + 3 * report.MOST_PICTURES


def test_the_table_ends_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_ROWS", 5)
    Pillow.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    summary, _ = many(9, tmp_path)
    text = report.write_report(tmp_path / "page.html", summary, lf.pipeline.Denoise(0.1)).read_text()
    assert "The first 5 of 9; all are in the manifest." in text and len(Page(text).tables[0]) == 1 + 5 + 1


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_too_wide_and_the_slider_compares(place, browser, width):
    Pillow.fromarray(np.zeros((40, 40), np.uint8)).save(place / "images" / f"{'long' * 50}.png")
    run(place, "reconstruct", "--simulate", "--iterations", "3")
    browser.open(place / "page/report.html", width)
    assert browser.overflowing() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert not browser.evaluate("document.querySelector('.compare').hidden")
    ends = "[...document.querySelectorAll('.compare .ends span')].map(e => e.textContent)"
    assert browser.evaluate(ends) == ["before", "after"]
    browser.evaluate("document.querySelector('.compare button').click()")
    assert browser.evaluate(ends) == ["after", "truth"]
    browser.evaluate("const all = document.querySelectorAll('.card button'); all[all.length - 1].click()")
    assert browser.evaluate("document.querySelector('.compare figcaption span').textContent").startswith("longlong")
    over, under = browser.evaluate("[...document.querySelectorAll('.compare img')].map(e => e.src)")[::-1]
    shown = browser.evaluate(
        "[...[...document.querySelectorAll('.card')].at(-1).querySelectorAll('img')].map(e => e.src)"
    )
    assert [over, under] == shown[1:]
    clip = "getComputedStyle(document.querySelector('.compare .over')).clipPath"
    assert "50%" in browser.evaluate(clip)
    browser.evaluate(
        "const bar = document.querySelector('.compare input'); bar.value = 20;"
        "bar.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert "80%" in browser.evaluate(clip)


def test_a_click_on_a_heading_sorts(place, browser):
    run(place, "denoise", "--sigma", "0.1")
    browser.open(place / "page/report.html")
    column = "[...document.querySelectorAll('.sortable tbody td:first-child')].map(e => e.textContent)"
    names = ["<script>&.png", "a.png", "b.png"]
    for expected in (names, names[::-1]):
        browser.evaluate("document.querySelector('.sortable th').click()")
        assert browser.evaluate(column) == expected


def test_a_browser_shows_the_pictures(place, browser):
    """A picture of one colour, which the page's style does not use, covers as many pixels as it has."""
    colour = np.array([230, 20, 140], np.uint8)
    for path in (place / "images").iterdir():
        path.unlink()
    Pillow.fromarray(np.broadcast_to(colour, (64, 64, 3)).copy()).save(place / "images/a.png")
    run(place, "denoise", "--sigma", "0.1")
    browser.open(place / "page/report.html", 900)
    width, height = browser.evaluate(
        "(({width, height}) => [width, height])(document.querySelector('.card img').getBoundingClientRect())"
    )
    browser.screenshot(place / "shot.png", full_page=False)
    seen = np.asarray(Pillow.open(place / "shot.png").convert("RGB")).astype(int)
    assert (np.abs(seen - colour).max(2) <= 1).sum() >= 0.95 * width * height > 64 * 64


def test_a_result_that_is_gone_leaves_a_note_in_its_place(place):
    run(place, "denoise", "--sigma", "0.1")
    (place / "out/b.png").unlink()
    results, (sources, *_) = tuple(read_results(place / "out").values()), find_sources(place / "images")
    summary = Summary(place / "out", results, (), (), results, sources=tuple(sources))
    text = report.write_report(place / "later.html", summary, lf.pipeline.Denoise(0.1), command="a < b").read_text()
    assert text.count("after: cannot be shown") == 1 and "<span>a</span> <span>&lt;</span> <span>b</span>" in text


def test_a_page_is_about_a_finished_job(tmp_path):
    with pytest.raises(ValueError, match="finished"):
        report.write_report(tmp_path / "a.html", Summary(tmp_path, (), (), ()), lf.pipeline.Denoise(0.1))


def test_histograms_count_and_leave_out_what_is_no_distribution():
    values = [0.0] * 6 + [1.0] * 3 + [None, float("inf")]
    plot = pages.histogram("x", values, mark=2.0, marked="y")
    assert (plot.low, plot.middle, plot.high, plot.mark) == ("0", "0", "2", 1.0)
    assert [height for height in plot.bars if height] == [1.0, 0.5] and plot.bars[pages.BARS // 2] == 0.5
    assert pages.histogram("x", [1.0] * 9) is None and pages.histogram("x", [1.0, 2.0]) is None


def test_links_are_relative_and_quoted(tmp_path):
    page = tmp_path / "a/page.html"
    assert pages.link(tmp_path / "b/<x> %?.png", page) == "../b/%3Cx%3E%20%25%3F.png"
    assert pages.link(tmp_path / "a/javascript:x.png", page) == "javascript%3Ax.png"
