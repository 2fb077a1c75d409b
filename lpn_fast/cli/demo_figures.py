"""The figures of `lpn-fast demo`. Drawn on Figure objects: no window, no global state of matplotlib."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .demo_photographs import Deblurred

DPI = 150
DETAIL_FRACTION = 4  # the enlarged square in the middle has a quarter of the height
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ACCENT = "#D55E00"
LABELS = {"matching": "proximal matching", "l1": "l1 loss (median)", "l2": "l2 loss (mean)"}
STYLE = {"fontsize": 10, "color": "#222222"}


def side_by_side(result: Deblurred, path: Path) -> None:
    """Blurred, reconstructed, truth; below each the same detail, enlarged."""
    panels = (
        ("blurred, noisy", result.measured, result.before),
        ("reconstructed", result.image, result.after),
        ("truth", result.truth, None),
    )
    height, width = result.truth.shape[-2:]
    detail = height // DETAIL_FRACTION
    top, left = (height - detail) // 2, (width - detail) // 2
    figure = Figure(figsize=(9.6, 3.2 * (height / width + 1) + 0.4), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=(height / width, 1))
    for column, (label, image, quality) in enumerate(panels):
        title = label if quality is None else f"{label}\n{quality[0]:.2f} dB, SSIM {quality[1]:.3f}"
        axes[0, column].set_title(title, **STYLE)
        _show(axes[0, column], image)
        axes[0, column].add_patch(Rectangle((left, top), detail, detail, fill=False, edgecolor=ACCENT))
        _show(axes[1, column], image[:, top : top + detail, left : left + detail])
        for spine in axes[1, column].spines.values():
            spine.set(edgecolor=ACCENT, linewidth=1.2, visible=True)
    figure.savefig(path, dpi=DPI)


def objectives(results: list[Deblurred], path: Path) -> None:
    """How far above its last value the objective is, per iteration and picture.

    The last fifth is left out: there the distance to the last value says little of that to the limit.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for result, colour in zip(results, COLOURS, strict=False):
        gap = (result.objective - result.objective[-1]).numpy()
        shown = max(2, int(0.8 * len(gap)))
        axes.semilogy(np.arange(1, shown + 1), gap[:shown], color=colour, label=result.photograph.name)
    axes.set_xlabel("PGD iteration $k$", **STYLE)
    axes.set_ylabel(r"$(F(x_k) - F(x_{\mathrm{last}}))$ per pixel", **STYLE)
    axes.set_title(r"The objective $F = \frac{1}{2}\|Ax-y\|^2 + R(x)/\eta$ of PGD", **STYLE)
    _plain(axes)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def laplacian(curves: dict[str, Tensor], path: Path) -> None:
    """The trained maps and their distance from soft thresholding."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    maps, errors = figure.subplots(1, 2)
    grid, truth = curves["y"].numpy(), curves["soft threshold"].numpy()
    maps.plot(grid, truth, color="black", linewidth=3.0, alpha=0.25, label="soft threshold (MAP)")
    for loss, colour in zip(LABELS, COLOURS, strict=False):
        values = curves[loss].numpy()
        worst = np.abs(values - truth).max()
        maps.plot(grid, values, color=colour, label=f"{LABELS[loss]}, at most {worst:.2f} away")
        errors.plot(grid, values - truth, color=colour)
    maps.set_title("Learned proximal maps $f(y)$, Laplacian prior", **STYLE)
    errors.set_title("$f(y)$ minus soft threshold", **STYLE)
    for axes in (maps, errors):
        axes.set_xlabel("$y$", **STYLE)
        axes.set_xlim(grid[0], grid[-1])
        _plain(axes)
    maps.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def _show(axes, image: Tensor) -> None:  # (C, H, W) in [0, 1]
    picture = image.permute(1, 2, 0).squeeze(2).numpy()  # (H, W) or (H, W, 3)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _plain(axes) -> None:
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors="#444444")
