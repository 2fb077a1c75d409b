"""A page about a finished job: settings, conditions of the theorem, thumbnails before and after, numbers per image.

One HTML file that refers to nothing outside itself, so it can be sent and archived: report.html, filled in by Jinja2.
Thumbnails are PNG pictures in `data:` addresses; of a large job only the first MOST_PICTURES images get them, the table
has all.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jinja2
import numpy as np
import PIL.Image
from torch import Tensor

from .. import atomic
from ..io import Range, UnreadableImage
from ..io.sources import Source
from ..solvers import Conditions
from .manifest import ItemResult
from .run import DEGRADED_FOLDER

MARK, MARK_WITHIN = '<meta name="generator" content="lpn-fast">', 200  # bytes
THUMBNAIL_SIDE = 192  # pixels, of the longer side
MOST_PICTURES = 200  # some 8 MB

COLUMNS = (  # heading, field of ItemResult, digits
    ("PSNR before", "psnr_before", 2),
    ("SSIM before", "ssim_before", 4),
    ("PSNR", "psnr", 2),
    ("SSIM", "ssim", 4),
    ("noise estimate", "noise_estimate", 4),
    ("sigma", "sigma", 4),
    ("misfit", "misfit", 2),
    ("objective", "objective_last", 3),
    ("residual", "residual", 7),
    ("iterations", "iterations", 0),
    ("seconds", "seconds", 3),
)


def write_report(
    path: str | Path,
    results: Sequence[ItemResult],
    sources: Iterable[Source],
    out: str | Path,
    title: str,
    conditions: Conditions | None = None,
    intensities: Range | None = None,
) -> Path:
    """Write the page.

    Parameters
    ----------
    path : path
        Of the page; replaced as a whole if it is there.
    results : sequence of ItemResult
        All images of the job, see `Summary.everything`.
    sources : iterable of Source
        Where they were read from, for the pictures before.
    out : path
        The job's output folder, for the pictures after.
    title : str
        What was done, in a line.
    conditions : Conditions, optional
        Of the solver's theorem.
    intensities : (low, high), optional
        Those of the job.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        The page cannot be written.
    """
    by_item = {source.item: source for source in sources}
    done = [result for result in results if result.status == "done"]
    shown = done[:MOST_PICTURES]
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent))
    page = environment.get_template("report.html").render(
        title=title,
        counts=_counts(results),
        settings=results[0].settings if results else {},
        conditions=conditions,
        condition_rows=[(c.name, c.required, c.actual, "yes" if c.holds else "no") for c in conditions or ()],
        failed=[(result.source, result.error) for result in results if result.status != "done"],
        done=done,
        rest=f", the first {len(shown)} of {len(done)}" if len(shown) < len(done) else "",
        figures=_figures(shown, by_item, Path(out), intensities),
        **_numbers(done),
    )
    return atomic.write(Path(path), page.encode(errors="backslashreplace"))  # names need not be UTF-8


def check_target(path: Path) -> None:
    """Raise a ValueError unless the page is new, or takes the place of an earlier one."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the report must be a .html file, got {path}")
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:MARK_WITHIN]):
        raise ValueError(f"{path} is no report of an earlier job; it is not overwritten")


def _counts(results: Sequence[ItemResult]) -> str:
    done = [result for result in results if result.status == "done"]
    late = sum(result.converged is False for result in done)
    parts = [f"{len(done)} images done", f"{len(results) - len(done)} failed"]
    return ", ".join(parts + [f"{late} did not converge within the iterations allowed"] * (late > 0))


def _figures(
    results: Sequence[ItemResult], sources: dict[str, Source], out: Path, intensities: Range | None
) -> Iterator[dict]:
    for result in results:
        source = sources.get(result.item)
        if source is None:
            continue
        simulated = result.psnr_before is not None
        before = _file(source.result(out / DEGRADED_FOLDER)) if simulated else source
        gain = f", {result.psnr_before:.2f} to {result.psnr:.2f} dB" if simulated and result.psnr else ""
        caption = f"{result.item}, {result.width} x {result.height}{gain}"
        pictures = {"before": _picture(before, intensities), "after": _picture(_kept(source, out), intensities)}
        yield {"pictures": pictures, "caption": "; ".join((caption, *result.notes))}


def _kept(source: Source, out: Path) -> Source:
    """Where the result lies now: as a file, or in the container it was put into."""
    packed = source.target(out)
    if source.member is not None and packed.exists():
        return Source(packed, source.place, source.member, source.position)
    return _file(source.result(out))


def _file(path: Path) -> Source:
    return Source(path, Path(path.name))


def _picture(source: Source, intensities: Range | None) -> str | None:
    try:
        return _thumbnail(source.read(intensities)[0].pixels)
    except UnreadableImage:  # removed since, or a measurement that is no image
        return None


def _thumbnail(
    pixels: Tensor,  # (C, H, W)
) -> str:
    """A small PNG in base64, values clipped to [0, 1]."""
    planes = np.rint(255 * pixels.double().clamp(0, 1).numpy()).astype(np.uint8)
    picture = PIL.Image.fromarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _numbers(results: Sequence[ItemResult]) -> dict:
    """Heading and rows, the last one of means, of the columns in which anything is known."""
    columns = [column for column in COLUMNS if any(getattr(r, column[1]) is not None for r in results)]
    rows = [[r.item, *(getattr(r, name) for _, name, _ in columns)] for r in results]
    if len(results) > 1:
        rows.append(["mean", *(_mean(values) for values in list(zip(*rows, strict=True))[1:])])
    digits = [digits for *_, digits in columns]
    numbers = [[item, *map(_number, values, digits)] for item, *values in rows]
    return {"header": ["image", *(heading for heading, _, _ in columns)], "numbers": numbers}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
