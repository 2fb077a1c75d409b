"""A page about a finished job: settings, conditions of the theorem, thumbnails before and after, numbers per image.

One HTML file that refers to nothing outside itself, so it can be sent and archived. Thumbnails are PNG pictures in
`data:` addresses; of a large job only the first MOST_PICTURES images get them, the table has all.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import atomic
from ..io import UnreadableImage
from ..io.sources import Source
from ..solvers import Conditions
from .manifest import ItemResult
from .run import DEGRADED_FOLDER

MARK, MARK_WITHIN = '<meta name="generator" content="lpn-fast">', 200  # bytes
THUMBNAIL_SIDE = 192  # pixels, of the longer side
MOST_PICTURES = 200  # some 8 MB

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0 1em 1.5em 0; vertical-align: top; }
figure img { image-rendering: pixelated; margin-right: 4px; }
figcaption { font-size: 85%; max-width: 400px; overflow-wrap: anywhere; }
.failed, .no { color: #a00; }
"""

COLUMNS = (  # heading, field of ItemResult, digits
    ("PSNR before", "psnr_before", 2),
    ("SSIM before", "ssim_before", 4),
    ("PSNR", "psnr", 2),
    ("SSIM", "ssim", 4),
    ("noise estimate", "noise_estimate", 4),
    ("sigma", "sigma", 4),
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

    Returns
    -------
    Path

    Raises
    ------
    OSError
        The page cannot be written.
    """
    by_item = {source.item: source for source in sources}
    body = [f"<h1>{_text(title)}</h1>", _counts(results)]
    if results:
        body += ["<h2>Settings</h2>", _settings(results[0].settings)]
    if conditions is not None:
        body += ["<h2>Conditions of the convergence theorem</h2>", _conditions(conditions)]
    done = [result for result in results if result.status == "done"]
    failed = [result for result in results if result.status != "done"]
    if failed:
        body += ["<h2>Failed</h2>", _table(("image", "why"), ((_text(r.source), _text(r.error)) for r in failed))]
    if done:
        shown = done[:MOST_PICTURES]
        rest = f", the first {len(shown)} of {len(done)}" if len(shown) < len(done) else ""
        body += [f"<h2>Before and after{rest}</h2>", *_figures(shown, by_item, Path(out))]
        body += ["<h2>Numbers</h2>", _numbers(done)]
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{MARK}\n<title>{_text(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
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
    if late:
        parts.append(f"{late} did not converge within the iterations allowed")
    return f"<p>{', '.join(parts)}.</p>"


def _settings(settings: dict) -> str:
    return _table(("setting", "value"), ((_text(name), _text(value)) for name, value in settings.items()))


def _conditions(conditions: Conditions) -> str:
    rows = (
        (
            _text(c.name),
            _text(c.required),
            _text(c.actual),
            "yes" if c.holds else '<span class="no">no</span>',
        )
        for c in conditions
    )
    return _table((conditions.theorem, "required", "actual", "holds"), rows)


def _figures(results: Sequence[ItemResult], sources: dict[str, Source], out: Path) -> Iterator[str]:
    for result in results:
        source = sources.get(result.item)
        if source is None:
            continue
        simulated = result.psnr_before is not None
        pictures = [
            _picture("before", source.result(out / DEGRADED_FOLDER) if simulated else source),
            _picture("after", _kept(source, out)),
        ]
        gain = f", {result.psnr_before:.2f} to {result.psnr:.2f} dB" if simulated and result.psnr else ""
        notes = "".join(f"; {note}" for note in result.notes)
        yield (
            f"<figure>{''.join(pictures)}<figcaption>{_text(result.item)}, {result.width} x {result.height}{gain}"
            f"{_text(notes)}</figcaption></figure>"
        )


def _kept(source: Source, out: Path) -> Source:
    """Where the result lies now: as a file, or in the container it was put into."""
    packed = source.target(out)
    if source.member is not None and packed.exists():
        return Source(packed, source.place, source.member, source.position)
    return _file(source.result(out))


def _file(path: Path) -> Source:
    return Source(path, Path(path.name))


def _picture(what: str, where: Source | Path) -> str:
    source = _file(where) if isinstance(where, Path) else where
    try:
        thumbnail = _thumbnail(source.read()[0].pixels)
    except UnreadableImage:  # removed since, or of an intensity range that cannot be shown without it
        return f'<span class="no">{what}: cannot be shown</span>'
    return f'<img alt="{what}" title="{what}" src="data:image/png;base64,{thumbnail}">'


def _thumbnail(
    pixels: Tensor,  # (C, H, W)
) -> str:
    """A small PNG in base64, values clipped to [0, 1]."""
    planes = np.rint(255 * pixels.to(torch.float64).clamp(0, 1).numpy()).astype(np.uint8)
    picture = PIL.Image.fromarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _numbers(results: Sequence[ItemResult]) -> str:
    columns = [column for column in COLUMNS if any(getattr(r, column[1]) is not None for r in results)]
    rows = [[_text(r.item), *(_number(getattr(r, name), digits) for _, name, digits in columns)] for r in results]
    if len(results) > 1:
        means = [_number(_mean(getattr(r, name) for r in results), digits) for _, name, digits in columns]
        rows.append(["<strong>mean</strong>", *means])
    return _table(("image", *(heading for heading, _, _ in columns)), rows, numbers_from=1)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> str:
    """Cells are HTML already; the header is not."""

    def cell(tag: str, index: int, content: str) -> str:
        kind = ' class="number"' if numbers_from is not None and index >= numbers_from else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", i, _text(name)) for i, name in enumerate(header))
    lines = ("<tr>" + "".join(cell("td", i, content) for i, content in enumerate(row)) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
