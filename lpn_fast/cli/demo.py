"""`lpn-fast demo`: see it work, in minutes, without data or arguments.

Photographs from scikit-image's wheel are blurred, made noisy and reconstructed by PGD with the shipped
model; then three one-dimensional networks are trained live and compared with the prox they should become.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import pipeline
from ..physics import Blur
from ..pipeline import problems
from ..training.laplacian import soft_threshold, sup_error, train_laplacian
from . import options
from .demo_photographs import PHOTOGRAPHS, Deblurred, deblur
from .tables import csv_text, markdown, table

BLUR_SIGMA, NOISE = 1.6, 0.03  # pixels; images in [0, 1]

LAPLACIAN_LIMIT = 4.0  # the interval on which networks and soft thresholding are compared
LOSSES = ("matching", "l1", "l2")

DESCRIPTION = """\
Deblur photographs with the shipped model and train three small networks live. Takes under three minutes on
two CPU cores. Writes pictures, figures, a table as Markdown and CSV."""

EXAMPLES = """\
  lpn-fast demo
  lpn-fast demo -o pictures --quick          half a minute: fewer, smaller pictures, shorter training"""

HEADER = ("image", "size", "PSNR before", "SSIM before", "PSNR", "SSIM", "seconds")


@dataclass(frozen=True)
class Extent:
    """How much is done: pictures, side of the squares in pixels, iterations, training steps per loss."""

    photographs: int
    side: int
    iterations: int
    laplacian_steps: int


# Budget on two cores: 100 s for the pictures, 20 s for each of the three trainings.
FULL = Extent(photographs=6, side=192, iterations=60, laplacian_steps=2500)
QUICK = Extent(photographs=3, side=128, iterations=40, laplacian_steps=400)


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "demo", "see it work", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("demo_output"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller pictures, shorter training")
    parser.add_argument(
        "--model", default=options.DEBLURRING_MODEL, metavar="NAME_OR_PATH", help="(default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.set_defaults(when_interrupted="the pictures written so far are complete")


def run(args) -> int:
    """Run the demo; the exit code."""
    figures = _figures()
    options.set_threads(args.threads)
    extent = QUICK if args.quick else FULL
    blur = problems.blur(Blur.gaussian(BLUR_SIGMA))
    task = pipeline.Reconstruct(blur, NOISE, solver="pgd", iterations=extent.iterations)
    model = options.load_image_model(args.model)
    conditions = task.conditions(model)
    args.out.mkdir(parents=True, exist_ok=True)

    print(f"{extent.photographs} photographs, Gaussian blur of {BLUR_SIGMA} pixels, noise {NOISE};")
    print(f"{extent.iterations} PGD iterations with {args.model}\n\n{conditions}\n", flush=True)
    results = []
    for photograph in tqdm(PHOTOGRAPHS[: extent.photographs], desc="deblur", unit="img", disable=None):
        results.append(deblur(photograph, extent.side, task, model))
        figures.side_by_side(results[-1], args.out / f"{photograph.name}.png")
    figures.objectives(results, args.out / "objective.png")
    _write_tables(results, args.out)

    print("Training three networks on y = x + n, x ~ Laplace(0, 1), n ~ N(0, 1). The MAP denoiser is soft")
    print("thresholding; proximal matching finds it, l1 and l2 find median and mean.\n", flush=True)
    curves, laplacian_rows = _laplacian(extent.laplacian_steps)
    figures.laplacian(curves, args.out / "laplacian.png")

    print(table(HEADER, _rows(results), mean_of=(2, 7)))
    print(f"\nLargest rise of an objective, relative to its whole fall: {_largest_rise(results):.1e}")
    print("(float32 rounds it to 1e-4)\n")
    print(table(("loss", "sup |f - soft threshold| on [-4, 4]", "seconds"), laplacian_rows))
    print(f"\nPictures, objective.png, laplacian.png, table.md and table.csv are in {args.out}")
    return 0


def _figures():
    try:
        import skimage.data  # noqa: F401

        from . import demo_figures
    except ImportError as error:
        raise ValueError(f'demo needs scikit-image and matplotlib ({error}): pip install "lpn-fast[demo]"') from error
    return demo_figures


def _rows(results: list[Deblurred]) -> list[tuple]:
    return [
        (r.photograph.name, f"{r.truth.shape[2]} x {r.truth.shape[1]}", *r.before, *r.after, r.seconds) for r in results
    ]


def _largest_rise(results: list[Deblurred]) -> float:
    """0 if every objective fell in every iteration.

    In float64 they do. In float32 R is a difference of terms of the size of 1/2 |x|^2, whose rounding leaves 1e-4.
    """
    rises = [r.objective.diff().max() / (r.objective[0] - r.objective.min()) for r in results]
    return max(0.0, *map(float, rises))


def _write_tables(results: list[Deblurred], out: Path) -> None:
    (out / "table.md").write_text(markdown(HEADER, _rows(results), mean_of=(2, 7)))
    (out / "table.csv").write_text(csv_text(HEADER, _rows(results)))


def _laplacian(steps: int) -> tuple[dict[str, Tensor], list[tuple]]:
    """Curves on a grid, by name, and a row (loss, sup error, seconds) per network."""
    grid = torch.linspace(-LAPLACIAN_LIMIT, LAPLACIAN_LIMIT, 801)[:, None]  # (801, 1)
    curves = {"y": grid[:, 0], "soft threshold": soft_threshold(grid)[:, 0]}
    rows = []
    for loss in LOSSES:
        started = time.monotonic()
        model = train_laplacian(loss, steps, progress=sys.stderr.isatty())
        with torch.no_grad():
            curves[loss] = model(grid)[:, 0]
        rows.append((loss, sup_error(model, LAPLACIAN_LIMIT), time.monotonic() - started))
    return curves, rows
