"""Tables of numbers: for the terminal, for CSV."""

import csv
import io
import math
from collections.abc import Sequence

Cell = str | float | None
FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets run when a cell begins with it
Rows = Sequence[Sequence[Cell]]


def table(header: Sequence[str], rows: Rows, mean_of: tuple[int, int] | None = None) -> str:
    """Aligned columns, text to the left and numbers to the right.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequences
        Text, numbers, or None for what is not known.
    mean_of : (first, last), optional
        Columns, last excluded, whose means make a last row.

    Examples
    --------
    >>> print(table(("image", "PSNR"), [("a.png", 20.0), ("b.png", 30.0)], mean_of=(1, 2)))
    image   PSNR
    a.png  20.00
    b.png  30.00
    mean   25.00
    """
    lines = [list(header), *_as_text(header, with_mean(rows, mean_of))]
    numeric = [any(isinstance(row[i], float) for row in rows) for i in range(len(header))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def csv_text(header: Sequence[str], rows: Rows) -> str:
    """The same as CSV, with unknown values empty and numbers in full.

    Text is quoted, and one that a spreadsheet would take for a formula begins with `./`, which leaves a path the same.

    Examples
    --------
    >>> print(csv_text(("image", "value"), [("=1+1.png", 0.5)]), end="")
    "image","value"
    "./=1+1.png",0.5
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"./{c}" if isinstance(c, str) and c.startswith(FORMULA_MARKS) else c for c in row])
    return buffer.getvalue()


def with_mean(rows: Rows, mean_of: tuple[int, int] | None) -> list[Sequence[Cell]]:
    """The rows, followed by the means of the columns mean_of[0] .. mean_of[1] - 1 over what is known."""
    if mean_of is None or len(rows) < 2:
        return list(rows)
    first, last = mean_of
    means: list[Cell] = []
    for column in range(len(rows[0])):
        known = [row[column] for row in rows if row[column] is not None]
        means.append(math.fsum(known) / len(known) if first <= column < last and known else "")
    return [*rows, ["mean", *means[1:]]]


def _as_text(header: Sequence[str], rows: Rows) -> list[list[str]]:
    return [[_cell(name, value) for name, value in zip(header, row, strict=True)] for row in rows]


def _cell(column: str, value: Cell) -> str:
    """PSNR in hundredths of a decibel, SSIM in thousandths, as papers print them."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if column.startswith("SSIM") else f"{value:.2f}"
