"""Pages about results: one HTML file each, with pictures, style and script inside, so that it can be sent and archived.

    page.html     what all pages share: style, script
    parts.html    a table, a row of pictures, the slider, a histogram
    report.html   a job of the command line (pipeline/report.py)
    demo.html     `lpn-fast demo` (cli/demo.py)

Whatever a template prints is escaped by Jinja2: names of files may be markup.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import torch
from torch import Tensor

from .. import __version__, atomic, display

MARK, MARK_WITHIN = '<meta name="generator" content="lpn-fast">', 200  # bytes
SIDE, SMALLER_SIDE = 320, 160  # pixels, of the longer side of a picture, and of one of many: some 30 and 8 kB
SMALL = 128  # pixels: pictures up to there are enlarged by whole squares
BARS = 24  # of a histogram
FEWEST = 5  # values that are worth one


@dataclass(frozen=True)
class Picture:
    """A picture with its name; `detail` is its middle, where it was reduced; `paired` if the slider takes it."""

    name: str
    address: str
    paired: bool
    small: bool
    detail: str | None
    shape: tuple[int, int]  # width and height of what the slider shows


def picture(name: str, x: Tensor, paired: bool = False, one_of_many: bool = False) -> Picture:
    """The picture of an image (C, H, W) in [0, 1].

    Parameters
    ----------
    name : str
    x : Tensor, shape (C, H, W)
    paired : bool
        Lay it over another one with the slider.
    one_of_many : bool
        Make it smaller, and do not keep the middle of what has to be reduced.
    """
    address = display.address(x, SMALLER_SIDE if one_of_many else SIDE)
    detail, small = None, max(x.shape[-2:]) <= SMALL
    if max(x.shape[-2:]) > SIDE and paired and not one_of_many:
        x = _middle(x)
        detail = display.address(x, SIDE)
    return Picture(name, address, paired, small, detail, (x.shape[-1], x.shape[-2]))


def stretched(x: Tensor) -> Tensor:
    """From its least to its largest value: a measurement as a picture."""
    low, high = float(x.min()), float(x.max())
    return (x - low) / max(high - low, torch.finfo(torch.float32).tiny)


def _middle(x: Tensor) -> Tensor:
    height, width = (min(side, SIDE) for side in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class Histogram:
    """Counts of a quantity between its least and its largest value.

    Attributes
    ----------
    heading : str
    low, middle, high : str
        Ends of the axis, and the median in between.
    bars : list of float
        Heights, the largest is 1.
    mark : float or None
        Where a value lies that something was said of, from 0 (least) to 1.
    marked : str
        What that is.
    """

    heading: str
    low: str
    middle: str
    high: str
    bars: list[float]
    mark: float | None = None
    marked: str = ""


def histogram(
    heading: str, values: Sequence[float | None], mark: float | None = None, marked: str = ""
) -> Histogram | None:
    """The histogram of what is known of the values; None of a few, or of equal ones.

    Parameters
    ----------
    heading : str
    values : sequence of float or None
    mark : float, optional
        A value to compare with; the axis is extended to it.
    marked : str
        What it is, in a word.

    Examples
    --------
    >>> histogram("seconds", [1.0, 2.0, 2.0, 3.0, None, 3.0], mark=4.0).high
    '4'
    """
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if len(known) < FEWEST or known.min() == known.max():
        return None
    ends = known if mark is None else np.append(known, mark)
    low, high = float(ends.min()), float(ends.max())
    counts = np.histogram(known, BARS, (low, high))[0]
    shown = (f"{value:.3g}" for value in (low, np.median(known), high))
    at = None if mark is None else (mark - low) / (high - low)
    return Histogram(heading, *shown, (counts / counts.max()).tolist(), at, marked)


def write(path: Path, template: str, **values) -> Path:
    """Fill in a template and write the page, as a whole.

    Raises
    ------
    OSError
        It cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, lpn_fast {__version__}"
    page = environment.get_template(template).render(made=made, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, page.encode(errors="backslashreplace"))  # names need not be UTF-8


def check_target(path: Path) -> None:
    """Raise a ValueError unless the page is new, or takes the place of an earlier one."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the report must be a .html file, got {path}")
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:MARK_WITHIN]):
        raise ValueError(f"{path} is no report of an earlier job; it is not overwritten")


def link(target: Path, page: Path) -> str:
    """Address of a file as seen from a page: relative, so that both can be moved together.

    Examples
    --------
    >>> link(Path("out/a?.png"), Path("pages/report.html"))
    '../out/a%3F.png'
    """
    return quote(os.fsencode(os.path.relpath(target, page.parent)))
