"""`python -m bench.pages_jobs`: the report of a job and the page of the demo as a browser shows them, wide and narrow.

The job blurs and deblurs 40 crops of scikit-image's photographs. Screenshots are in few colours; of the report, which
is long, the beginning and the end. The demo's numbers are demo.csv. Needs PyQt6-WebEngine, scikit-image and pydicom.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from lpn_fast import cli
from lpn_fast.cli import demo
from lpn_fast.cli.demo_cases import cases

from .experiments.provenance import ROOT, where, write_csv

OUT = Path("bench/results/pages")
WIDTHS = (1280, 390)
COLOURS, CROP, PHOTOGRAPHS, EACH = 128, 96, ("astronaut", "camera", "chelsea", "coffee", "coins"), 8
SCALE = 0.75  # of screenshots of the wider window
TALLEST = 1500  # pixels of a screenshot; what is longer is its beginning and its end


def photographs(folder: Path) -> None:
    """Crops, spread over every photograph."""
    from skimage import data

    for name in PHOTOGRAPHS:
        stored = getattr(data, name)()
        for k in range(EACH):
            top, left = ((side - CROP) * (2 * place + 1) // (2 * n) for side, place, n in
                         zip(stored.shape[:2], divmod(k, 4), (2, 4), strict=True))  # fmt: skip
            Image.fromarray(stored[top : top + CROP, left : left + CROP]).save(folder / f"{name}_{k}.png")


def report(folder: Path) -> Path:
    """The page of a job on them."""
    (folder / "photos").mkdir()
    photographs(folder / "photos")
    with contextlib.chdir(folder):  # the command on the page is what a user would type
        code = cli.main("reconstruct photos -o sharp --simulate --noise 0.02 --threads 1 --report report.html".split())
    if code:
        raise RuntimeError(f"the job ended with {code}")
    return folder / "report.html"


def shoot(page: Path, out: Path, tallest: int | None = None) -> None:
    """Screenshots at every width."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Browser

    with Browser() as browser, tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            browser.open(page, width)
            if wide := browser.overflowing():
                raise RuntimeError(f"too wide at {width} pixels: {', '.join(wide)}")
            whole = drawn(browser, Path(folder) / "shot.png")
            height = whole.height
            parts = {"": whole}
            if tallest is not None and height > 2 * tallest:
                parts = {
                    "": whole.crop((0, 0, width, tallest)),
                    "-end": whole.crop((0, height - tallest, width, height)),
                }
            for suffix, part in parts.items():
                if width > 1000:
                    part = part.resize(
                        (round(SCALE * part.width), round(SCALE * part.height)), Image.Resampling.LANCZOS
                    )
                name = out / f"{page.stem}-{width}{suffix}.png"
                part.quantize(COLOURS, dither=Image.Dither.NONE).save(name, optimize=True)
                print(f"{name}: {os.path.getsize(name) / 1024:.0f} kB")


def drawn(browser, path: Path) -> Image.Image:
    """The whole page. A window that has just grown is white where it was not seen before, hence the repetition."""
    last = b""
    while True:
        browser.screenshot(path)
        if path.read_bytes() == last:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        last = path.read_bytes()


def main() -> None:
    """Make the pages, look at them, write the demo's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shoot(report(Path(folder)), args.out, TALLEST)
        shown, missing = cases(demo.SIDE)
        if missing:
            raise RuntimeError("; ".join(missing))
        solved = [(case, *demo.solve(case)) for case in shown]
        page = demo.write(Path(folder) / "demo.html", solved, missing)
        shoot(page, args.out)
    names = ("image", "method", "psnr", "cpu_seconds")
    rows = [dict(zip(names, row, strict=True)) for case, _, answers in solved for row in demo.rows(case, answers)]
    write_csv(args.out / "demo.csv", [row | where({"side": demo.SIDE}) for row in rows])


if __name__ == "__main__":
    main()
