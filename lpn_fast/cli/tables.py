"""Tables of numbers: for the terminal, for CSV."""

import csv
import io
import statistics
from collections.abc import Sequence

from .. import display

Cell = str | float | None
FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets run when a cell begins with it
Rows = Sequence[Sequence[Cell]]


def table(header: Sequence[str], rows: Rows, mean_of: tuple[int, int] | None = None) -> str:
    """Aligned columns, text to the left and numbers to the right; None is what is not known.

    The means of columns mean_of[0] .. mean_of[1] - 1 over what is known make a last row.
    """
    if mean_of is not None and len(rows) > 1:
        first, last = mean_of
        known = [[row[i] for row in rows if row[i] is not None] for i in range(first, last)]
        means = [statistics.fmean(values) if values else "" for values in known]
        rows = [*rows, ["mean", *[""] * (first - 1), *means, *[""] * (len(header) - last)]]
    lines = [list(header), *([_cell(name, v) for name, v in zip(header, row, strict=True)] for row in rows)]
    numeric = [any(isinstance(row[i], float) for row in rows) for i in range(len(header))]
    return display.aligned(lines, numeric)


def csv_text(header: Sequence[str], rows: Rows) -> str:
    """The same as CSV, with unknown values empty and numbers in full.

    Text is quoted, and one that a spreadsheet would take for a formula begins with `./`, which leaves a path the same.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"./{c}" if isinstance(c, str) and c.startswith(FORMULA_MARKS) else c for c in row])
    return buffer.getvalue()


def _cell(column: str, value: Cell) -> str:
    """PSNR in hundredths of a decibel, SSIM in thousandths, as papers print them."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if column.startswith("SSIM") else f"{value:.2f}"
