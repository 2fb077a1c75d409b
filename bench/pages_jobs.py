"""`python -m bench.pages_jobs`: the report of a job and the page of the demo as a browser shows them, wide and narrow.

The job blurs and deblurs 40 crops of scikit-image's photographs; of its report, which is long, the beginning and what
comes after the pictures. The demo's numbers are demo.csv. Needs PyQt6-WebEngine, scikit-image and pydicom.
"""

import contextlib
import tempfile
from pathlib import Path

from PIL import Image

from lpn_fast import cli
from lpn_fast.cli import demo

from .experiments.provenance import where, write_csv
from .pages import COLOURS, OUT, TALLEST, WIDTHS, Browser

CROP, PHOTOGRAPHS, EACH = 96, ("astronaut", "camera", "chelsea", "coffee", "coins"), 8
MOST_BYTES = 300_000  # of a screenshot; larger ones are made smaller
TRIES = 40


def photographs(folder: Path) -> None:
    """Crops, spread over every photograph."""
    from skimage import data

    for name in PHOTOGRAPHS:
        stored = getattr(data, name)()
        for k in range(EACH):
            row, column = divmod(k, EACH // 2)
            top, left = (
                (stored.shape[0] - CROP) * (2 * row + 1) // 4,
                (stored.shape[1] - CROP) * (2 * column + 1) // EACH,
            )
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


def show(browser: Browser, page: Path) -> None:
    """Screenshots of a page, once they are drawn: a window that has just grown is white below its earlier end."""
    for device, width in WIDTHS.items():
        browser.open(page, width)
        if too_wide := browser.overflowing():
            raise RuntimeError(f"too wide at {width} pixels: {', '.join(too_wide)}")
        path = OUT / f"{page.stem}-{device}.png"
        for _ in range(TRIES):
            browser.screenshot(path)
            if is_drawn(path):
                break
        else:
            raise RuntimeError(f"{page} is not drawn")
        limit(path)


def show_end(browser: Browser, page: Path) -> None:
    """What a window shows after the pictures."""
    for device, width in WIDTHS.items():
        browser.open(page, width)
        browser.evaluate("document.querySelector('.plots').previousElementSibling.scrollIntoView()")
        browser.screenshot(path := OUT / f"{page.stem}-end-{device}.png", full_page=False)
        limit(path)


def is_drawn(path: Path) -> bool:
    """Whether there is something at the end of what is kept."""
    with Image.open(path) as picture:
        end = min(picture.height, TALLEST)
        low, high = picture.convert("L").crop((0, end - 400, picture.width, end)).getextrema()
    return low < high


def limit(path: Path) -> None:
    """The beginning, in few colours, and smaller until the file is small."""
    with Image.open(path) as stored:
        whole = stored.convert("RGB").crop((0, 0, stored.width, min(stored.height, TALLEST)))
    for percent in (100, 85, 70, 60):
        size = whole.width * percent // 100, whole.height * percent // 100
        picture = whole.resize(size, Image.Resampling.LANCZOS) if percent < 100 else whole
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    print(f"wrote {path.name}, {path.stat().st_size // 1000} kB")


def main() -> None:
    """Make the pages, look at them, write the demo's numbers."""
    OUT.mkdir(parents=True, exist_ok=True)
    if missing := demo.cases(demo.SIDE)[1]:
        raise RuntimeError("; ".join(missing))
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        rows = demo.make(Path(folder) / "demo.html", demo.SIDE)
        show(browser, Path(folder) / "demo.html")
        page = report(Path(folder))
        show(browser, page)
        show_end(browser, page)
    rows = [
        {"image": image, "method": method, "psnr": round(psnr, 2), "cpu_seconds": float(f"{seconds:.2g}")}
        for image, method, psnr, seconds in rows
    ]
    write_csv(OUT / "demo.csv", [row | where({"side": demo.SIDE}) for row in rows])


if __name__ == "__main__":
    main()
