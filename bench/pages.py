"""`python -m bench.pages`: what readers see, as screenshots at two widths, in bench/results/pages.

Builds the site of the documentation with the environment that `make docs` makes, opens it in headless Chromium
(`pip install PyQt6-WebEngine`) and writes the first 2,400 pixels of some pages, and of other HTML files that are named:

    python -m bench.pages demo_output/index.html

Exit code 1 if a table, code, a formula or a picture is too wide for a page. A minute on two cores.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "bench" / "results" / "pages"
MKDOCS = ROOT / "build" / "docs-env" / "bin" / "mkdocs"
PAGES = ("index", "task-mri", "compare", "api", "concepts")
WIDTHS = {"desk": 1280, "telephone": 390}
TALLEST = 2400  # pixels; further down it goes on in the same way
COLOURS = 128  # of a palette: text and grays stay what they are, files a third of the size

sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser  # noqa: E402


def shoot(browser: Browser, page: Path, name: str) -> list[str]:
    """Write a page's screenshots; what is too wide on it."""
    too_wide = []
    for device, width in WIDTHS.items():
        browser.open(page, width)
        too_wide += [f"{name}, {width} pixels: {selector}" for selector in browser.overflowing()]
        path = OUT / f"{name}-{device}.png"
        browser.screenshot(path)
        with Image.open(path) as picture:
            shown = picture.convert("RGB").crop((0, 0, picture.width, min(picture.height, TALLEST)))
        shown.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"wrote {path.relative_to(ROOT)}, {path.stat().st_size // 1000} kB")
    return too_wide


def main(arguments: list[str] | None = None) -> int:
    """Build, look, write; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, metavar="HTML", help="other pages, of reports and demos")
    other = parser.parse_args(arguments).pages
    if not MKDOCS.exists():
        parser.error("mkdocs-material is not installed; make docs does it")
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site, Browser() as browser:
        subprocess.run([MKDOCS, "build", "-q", "-f", ROOT / "lpn_fast" / "mkdocs.yml", "-d", site], check=True)
        pages = {f"docs-{name}": Path(site) / f"{name}.html" for name in PAGES}
        pages |= {page.resolve().parent.name if page.stem == "index" else page.stem: page for page in other}
        too_wide = [line for name, page in pages.items() for line in shoot(browser, page, name)]
    print("\n".join(too_wide or ["nothing is too wide"]))
    return bool(too_wide)


if __name__ == "__main__":
    raise SystemExit(main())
