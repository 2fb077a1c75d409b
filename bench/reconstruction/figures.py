"""Images of all methods side by side, and the objectives of ours."""

from pathlib import Path

from .quality import Scored

WINDOW = 96  # pixels shown of each image


def draw(scored: list[Scored], folder: Path) -> list[Path]:
    """A picture per task: the first image by every method, and below it F - F_min of the package's solvers."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("figures need matplotlib: pip install lpn-fast[plot]") from error
    paths = []
    for name in dict.fromkeys(s.task.name for s in scored):
        mine = [s for s in scored if s.task.name == name]
        panels = [("truth", mine[0].instance.x[0, 0])]
        panels += [(f"{s.method}\n{s.model}\n{s.row['psnr_mean']:.2f} dB", s.outcome.x[0, 0]) for s in mine]
        figure = Figure(figsize=(1.7 * len(panels), 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, len(panels), height_ratios=(1, 1.1))
        for column, (title, image) in enumerate(panels):
            axes = figure.add_subplot(grid[0, column])
            top, left = ((size - min(WINDOW, size)) // 2 for size in image.shape)
            axes.imshow(image[top : top + WINDOW, left : left + WINDOW].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=8)
            axes.axis("off")
        axes = figure.add_subplot(grid[1, :])
        for s in mine:
            # HQS has another objective, and what is outside a theorem need not fall
            if s.outcome.objective is not None and s.method not in ("lpn-hqs", "lpn-published"):
                f = s.outcome.objective[:, 0]
                f = f - f[f.isfinite()].min()
                axes.semilogy(range(1, len(f) + 1), f.clamp_min(1e-8).numpy(), label=f"{s.method} {s.model}")
        axes.set_xlabel("iteration")
        axes.set_ylabel("F - min F, image 1")
        if axes.lines:
            axes.legend(fontsize=8)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=90)
    return paths
