"""Figures in the README and the documentation are results: each is found, as printed, in a table of bench/results.

A figure is a decimal number, or a whole one with a unit, outside code and links. Where a section links to tables, it
is looked for in these alone. What is no result, such as a setting, is listed here by page.
"""

import csv
import re
from pathlib import Path

import pytest

import lpn_fast as lf

ROOT = Path(lf.__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "lpn_fast" / "docs").glob("*.md"))]
NO_RESULT = {  # versions, settings and definitions
    "README.md": {
        "2310.14344",
        "3.11",
        "3.14",
        "2.11",
        "0.005",
        "0.01",
        "0.02",
        "0.06",
        "0.1",
        "0.2",
        "0.3",
        "1.6",
        "2.0",
    },
}
NO_RESULT_ANYWHERE = {"0.01", "0.05", "0.1", "0.5", "2310.14344", "3.11"}
ARITHMETIC = re.compile(r"^\*\*The following figures are arithmetic.*?(?=^### )", re.M | re.S)
HIDDEN = re.compile(r"^```.*?^```$|`[^`\n]*`|^ {4}[^\n]*$|https?://\S+", re.M | re.S)
FIGURE = re.compile(r"(?<![\w./])(\d[\d,]*\.\d+)(?![\w.]*\d)|(?<![\w./,])(\d[\d,]*)(?= (?:dB|ms|MB|GB|images/s)\b)")

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the installed package has no bench/results")


def numbers(path):
    """Every number of a table."""
    found = set()
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            for cell in row:
                try:
                    found.add(float(cell))
                except ValueError:
                    found.update(float(text) for text in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", cell))
    return found


def tables(section):
    """The tables that a section links to, files or folders; all where it links to none."""
    linked = [ROOT / target for target in re.findall(r"\]\((?:\.\./)*(bench/results/[^)#]+)", section)]
    paths = [path for at in linked for path in ([at] if at.suffix == ".csv" else at.glob("**/*.csv")) if path.is_file()]
    return sorted(paths) or sorted(RESULTS.glob("**/*.csv"))


def printed(text):
    """The figures of a text."""
    return [decimal or whole for decimal, whole in FIGURE.findall(HIDDEN.sub(" ", text))]


def is_rounded_from(figure, values):
    decimals = len(figure.partition(".")[2])
    half = 0.5 * 10**-decimals * (1 + 1e-6)
    return any(abs(value - float(figure.replace(",", ""))) <= half for value in values)


def unfounded(text, allowed=frozenset()):
    """Figures of a page that no table has."""
    missing = []
    for section in re.split(r"^(?=## )", ARITHMETIC.sub(" ", text), flags=re.M):
        wanted = [figure for figure in printed(section) if figure not in allowed]
        values = set().union(*map(numbers, tables(section))) if wanted else set()
        missing += [figure for figure in wanted if not is_rounded_from(figure, values)]
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_figure_is_a_result(page):
    allowed = NO_RESULT_ANYWHERE | NO_RESULT.get(page.name, set())
    assert unfounded(page.read_text(encoding="utf-8"), allowed) == []


def test_what_is_listed_as_no_result_is_printed():
    for page in PAGES:
        assert NO_RESULT.get(page.name, set()) <= set(printed(page.read_text(encoding="utf-8"))), page.name


def test_a_figure_that_no_table_has_is_noticed():
    section = "## Speed\n28.44 dB in `9.99` s, [table](bench/results/denoising/results.csv)"
    assert unfounded(section) == []
    assert unfounded(section.replace("28.44", "28.45")) == ["28.45"]
    assert unfounded("1,234,567.8 and 987654 ms") == ["1,234,567.8", "987654"]


def test_the_picture_at_the_head_is_of_the_figures_in_its_table():
    """The command's parts work, and the table's best and worst are where the picture's caption has them."""
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    front = pytest.importorskip("bench.reconstruction.front", reason="bench is not in the path")
    given = front.instance(front.cat(), 0)
    assert given.x.shape == given.y.shape == (1, 1, front.SIDE, front.SIDE)
    with open(RESULTS / "front" / "front.csv", newline="", encoding="utf-8") as file:
        rows = {row["method"]: float(row["psnr"]) for row in csv.DictReader(file)}
    measured = float(lf.metrics.psnr(given.y.clamp(0, 1), given.x))
    assert abs(measured - rows["measured"]) < 0.01
    assert rows["measured"] < rows["total variation"] < rows["lf.reconstruct"]
