"""Figures without a display: one row of axes, saved as PNG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def axes_row(path: Path, count: int, width: float = 3.6, height: float = 3.2) -> Iterator[list]:
    """`count` axes side by side; the figure is written to `path` when the block ends."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("the figure needs matplotlib: pip install lpn-fast[plot]") from error
    figure = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield list(figure.subplots(1, count, squeeze=False)[0])
    figure.savefig(path, dpi=110)
