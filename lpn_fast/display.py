"""Tables and pictures for terminals and notebooks; plots by matplotlib, which is the extra [plot]."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

MOST_PIXELS = 256  # side of a picture in a notebook: enough to look at, and a saved notebook stays small
MOST_PNG_BYTES = 2**15  # of a picture: noise does not compress


def table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    """HTML: a title and a row for each tuple of cells."""
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{_text(c)}</td>' for c in row) + "</tr>" for row in rows
    )
    return f"<b>{_text(title)}</b><table>{body}</table>"


def aligned(lines: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Text: lines of cells in columns, which stand to the left, or where said to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [*right, *[False] * (len(widths) - len(right))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, sides, strict=True)).rstrip()
        for line in lines
    )


def pictures(images: Iterable[tuple[str, Tensor]]) -> str:
    """HTML: pictures of images (C, H, W) in [0, 1] beside each other, each with its caption."""
    cells = "".join(
        f'<figure style="display:inline-block;margin:4px"><img src="{address(x)}"><figcaption>{_text(caption)}'
        "</figcaption></figure>"
        for caption, x in images
    )
    return f"<div>{cells}</div>"


def preformatted(text: str) -> str:
    """HTML: lines as they are."""
    return f"<pre>{_text(text)}</pre>"


def is_image(x: Tensor) -> bool:
    """Whether one sample, (C, H, W), can be shown: gray, colour, or a complex image as its size."""
    return x.dim() == 3 and x.shape[0] in (1, 2, 3)


def array(x: Tensor) -> Tensor:
    """(C, H, W) -> (H, W) or (H, W, 3) in [0, 1], on the CPU; of two channels, a complex image, the magnitude."""
    x = x.detach().float().cpu()
    if x.shape[0] == 2:
        x = torch.linalg.vector_norm(x, dim=0, keepdim=True)
    x = x.nan_to_num(0.0).clamp(0, 1)
    return x[0] if x.shape[0] == 1 else x.permute(1, 2, 0)


def figure(columns: int):
    """A matplotlib figure and its axes in one row, made without touching the state of pyplot.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "lpn-fast[plot]"', name="matplotlib") from error
    made = Figure(figsize=(3.2 * columns, 3.2), layout="constrained")
    return made, made.subplots(1, columns, squeeze=False)[0]


def address(x: Tensor, side: int = MOST_PIXELS) -> str:
    """The picture of an image (C, H, W), reduced to that side, as a data address: PNG, or JPEG where that is large."""
    picture = Image.fromarray((255 * array(x)).round().to(torch.uint8).numpy())
    picture.thumbnail((side, side))
    kind, file = "png", io.BytesIO()
    picture.save(file, "PNG")
    if file.tell() > MOST_PNG_BYTES:
        kind, file = "jpeg", io.BytesIO()
        picture.save(file, "JPEG", quality=90, subsampling=0)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def _text(value: str) -> str:
    return html.escape(str(value), quote=False)
