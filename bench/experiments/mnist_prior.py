"""R of perturbed digits: what the learned prior finds likely, for networks trained with three losses.

    noise    clip(x + s n, 0, 1)          s in 0, .05, .1, .2, .3
    blur     Gaussian of deviation s      s in 0, .5, 1, 2, 4 pixels, zero outside the image
    mix      (1 - s) x + s x'             s in 0, .25, .5, .75, 1; x' is the digit at the mirrored place of the list

Images: the first rows of 50000..54999 of the training set, as published (arXiv 2310.14344). R is evaluated
by certified inversion (lf.prior). A prior that knows digits rises with noise, and rises from both ends
towards the middle of a mix, which no convex R does: digits are no convex set. R is known up to a constant
that differs between networks; the figure subtracts the mean over the unperturbed digits.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import lpn_fast as lf

from . import mnist
from .provenance import ROOT, where, write_csv

LEVELS = {
    "noise": (0.0, 0.05, 0.1, 0.2, 0.3),
    "blur": (0.0, 0.5, 1.0, 2.0, 4.0),
    "mix": (0.0, 0.25, 0.5, 0.75, 1.0),
}
UNITS = {"noise": "deviation of the noise", "blur": "deviation of the blur in pixels", "mix": "weight of second digit"}
TOL = 1e-3  # values are then certain to about a hundredth, see value_bound_max in the CSV; R moves by tens
QUICK = {"steps": 60, "count": 4}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "mnist-prior",
        help="R of digits under noise, blur and mixing, after training with three losses",
        description="Trains the published MNIST network with proximal matching, l1 and l2 (a quarter of an hour on "
        "one core; interrupted runs resume), evaluates R under perturbations, says whether it rises.",
        epilog="example: python -m bench.experiments mnist-prior --data mnist.npz --quick --out look",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mnist.add_data_option(parser)
    parser.add_argument("--out", metavar="DIR", help="for CSV and figure (default: bench/results/mnist_prior)")
    parser.add_argument(
        "--runs", metavar="DIR", default="runs/mnist_prior", help="training runs (default: %(default)s)"
    )
    parser.add_argument("--model", metavar="CHECKPOINT", help="evaluate this network, train none")
    parser.add_argument("--steps", type=int, help=f"of training, for each loss (default: {mnist.STEPS})")
    parser.add_argument("--count", type=int, help="images (default: 100)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="a minute, to see it work: {steps} steps, {count} images".format(**QUICK)
    )


def run(args) -> int:
    torch.set_num_threads(args.threads)
    digits = mnist.read_digits(mnist.find_digits(args.data))
    steps = args.steps or (QUICK["steps"] if args.quick else mnist.STEPS)
    count = args.count or (QUICK["count"] if args.quick else 100)
    if args.quick and not args.out:
        raise ValueError("--quick wants --out DIR: its results are not for bench/results")
    out = Path(args.out or ROOT / "bench" / "results" / "mnist_prior")
    out.mkdir(parents=True, exist_ok=True)

    clean = mnist.as_images(digits[mnist.TEST][:count])
    rows = []
    for name, model in _networks(args, digits, steps):
        quality = mnist.denoising_psnr(model, mnist.as_images(digits[mnist.VALIDATION][:count]))
        print(f"{name}: denoises to {quality:.2f} dB at noise {mnist.SIGMA:g}")
        config = {"steps": None if args.model else steps, "batch": mnist.BATCH, "tol": TOL, "count": count}
        for row in evaluate(model, clean):
            row = {"loss": name, **row, "denoising_psnr": round(quality, 3), **where(config)}
            rows.append(row)
            print(
                f"  {row['perturbation']:5s} {row['level']:<5g} R = {row['mean']:9.3f} +- {row['std']:7.3f}   "
                f"{row['converged']} of {row['images']} converged, error of R <= {row['value_bound_max']:.1e}",
                flush=True,
            )
        write_csv(out / "results.csv", rows)
    draw(rows, out / "prior.png")
    print(f"wrote {out / 'results.csv'} and {out / 'prior.png'}")
    return 0 if report(rows) or args.quick else 1  # so few steps prove nothing


def _networks(args, digits, steps: int) -> Iterator[tuple[str, lf.LPN]]:
    if args.model:
        model = lf.load(args.model).requires_grad_(False)
        yield model.card.get("loss", "given"), model
        return
    for loss in mnist.LOSSES:
        yield loss, mnist.train(loss, digits, steps, Path(args.runs) / f"{loss}-{steps}")


# ---- perturbations


def perturb(x: Tensor, kind: str, level: float) -> Tensor:
    """Images (N, 1, H, W), perturbed; noise is seeded."""
    if level == 0:
        return x
    if kind == "noise":
        return (x + level * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    if kind == "blur":
        return gaussian_blur(x, level)
    return torch.lerp(x, x.flip(0), level)


def gaussian_blur(x: Tensor, deviation: float) -> Tensor:
    """Separable convolution with a sampled Gaussian of unit sum, cut at four deviations; zero outside."""
    radius = int(4 * deviation + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)  # [2 radius + 1]
    taps = (taps / taps.sum()).view(1, 1, -1, 1)
    x = F.conv2d(x, taps, padding=(radius, 0))
    return F.conv2d(x, taps.mT, padding=(0, radius))


# ---- values


def evaluate(model: lf.LPN, clean: Tensor, tol: float = TOL) -> Iterator[dict]:
    """A row per perturbation and level; warm-started from the preimages of the level before."""
    for kind, levels in LEVELS.items():
        start = None
        for level in levels:
            x = perturb(clean, kind, level)
            result = lf.prior(model, x, tol=tol, x0=start)
            start = torch.where(result.preimage.isfinite(), result.preimage, x)
            value = result.value[result.converged]
            yield {
                "perturbation": kind,
                "level": level,
                "images": len(x),
                "converged": int(result.converged.sum()),
                "mean": value.mean().item(),
                "std": value.std().item(),
                "residual_max": result.residual.max().item(),
                "value_bound_max": float("nan") if result.value_bound is None else result.value_bound.max().item(),
                "iterations_mean": result.inversion.iterations.double().mean().item(),
            }


def rises(means: dict[float, float], kind: str) -> bool:
    """Whether mean R rises with every level; for a mix, from both ends to the middle."""
    levels = sorted(means)
    values = [means[level] for level in levels]
    if kind == "mix":
        middle = len(values) // 2
        return _increasing(values[: middle + 1]) and _increasing(values[middle:][::-1])
    return _increasing(values)


def _increasing(values: list[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def report(rows: list[dict]) -> bool:
    """Say for each network and perturbation whether R rises; True if it does under noise and mixing after matching."""
    verdict = True
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    for loss in losses:
        for kind in LEVELS:
            mine = [row for row in rows if row["loss"] == loss and row["perturbation"] == kind]
            yes = rises({row["level"]: row["mean"] for row in mine}, kind)
            words = "towards the middle of a mix" if kind == "mix" else f"with {kind}"
            print(f"{loss}: R {'rises' if yes else 'does NOT rise'} {words}")
            if kind != "blur" and loss in ("matching", losses[0]):
                verdict &= yes
        lost = sum(row["images"] - row["converged"] for row in rows if row["loss"] == loss)
        if lost:
            print(f"{loss}: {lost} inversions did not converge; their values are left out")
    return verdict


# ---- figure


def draw(rows: list[dict], path: Path) -> None:
    """R against perturbation, mean +- std over the images, one line per loss."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("the figure needs matplotlib: pip install lpn-fast[demo]") from error
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, len(LEVELS)), LEVELS, strict=True):
        for loss in dict.fromkeys(row["loss"] for row in rows):
            mine = [row for row in rows if row["loss"] == loss and row["perturbation"] == kind]
            means = [row["mean"] - mine[0]["mean"] for row in mine]
            spread = [row["std"] for row in mine]
            axes.errorbar([row["level"] for row in mine], means, spread, label=loss, capsize=3, marker="o", ms=3)
        axes.set_xlabel(UNITS[kind])
        axes.set_title(kind)
    figure.axes[0].set_ylabel("R - mean R(digits)")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)
