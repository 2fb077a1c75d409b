"""Real images, one dimension, everything known: does the learned R follow -sigma^2 log p of gray levels?

    x = v / 255 + s n,          v a pixel, drawn at random,  n ~ N(0, 1)        (a dithered gray level)
    p = sum_k share of level k  N(k / 255, s^2),             y = x + sigma n',  sigma = 0.1

p is a mixture of at most 256 Gaussians, known from the histogram of the images without any estimate; so are its MAP
and MMSE denoisers and both priors (bench/densities.py). sigma is the noise of the image experiments. The
dither s is the smallest one, from LEAST on, for which -sigma^2 log p is non-convex of modulus at most CURVATURE: as
rough as a prox allows with some room. The same network is trained with l2, l1 and proximal matching, and R evaluated
by certified inversion, as in gaussian_mixture.py and in its units (sigma = 0.8). Claim, for every set of images: the
RMS error of R to -sigma^2 log p is at most half that of l2 training.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from bench.densities import GaussianMixture
from bench.reconstruction import data
from lpn_fast.training.laplacian import train_scalar

from . import domains, mnist
from .figures import axes_row
from .gaussian_mixture import GAMMA_MIN, LOSSES, SIGMA, STEPS, draw_priors, evaluate, region, stratified
from .laplacian import add_scalar_options, prepare
from .provenance import where, write_csv

CURVATURE = 0.8
LEAST = 0.02  # dither, five gray levels
QUANTILES = 4001  # in the table that samples are drawn from
UNIT = 0.1 / SIGMA  # one trained unit, in image units
IMAGES = ("mnist", "faces", "mayo")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "gray-levels",
        help="the learned R against -sigma^2 log p of the gray levels of digits, faces and CT slices",
        description="Trains a 1-D network with each of three losses on dithered pixels, compares its R with the closed "
        "form; two minutes for each set of images.",
        epilog="example: python -m bench.experiments gray-levels --data ../shared/data --images mayo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="data folder (default: $LPN_FAST_DATA, or shared/data beside)")
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=IMAGES, help="default: all")
    add_scalar_options(parser, "gray_levels", STEPS)


def run(args) -> int:
    out, steps = prepare(args, "gray_levels")
    root = data.find(args.data)
    rows, panels = [], []
    for images in args.images:
        mixture, dither = dithered(histogram(images, root))
        x, sampler = region(mixture), stratified(mixture, QUANTILES)
        priors = {}
        for loss in LOSSES:
            started = time.perf_counter()
            model = train_scalar(sampler, SIGMA, loss, steps, args.seed, False, GAMMA_MIN)
            priors[loss], figures = evaluate(model, x, mixture)
            figures = {k: v for k, v in figures.items() if not k.startswith("bump")}
            about = {"images": images, "loss": loss, "steps": steps, "dither": round(dither, 4)}
            seconds = round(time.perf_counter() - started, 1)
            rows.append(about | figures | {"seconds": seconds} | where({"sigma": SIGMA, "curvature": CURVATURE}))
            print(
                f"{images:6s} {loss:9s} rms of R: to -sigma^2 log p {figures['rms_to_map_prior']:.4f}, "
                f"to the MMSE prior {figures['rms_to_mmse_prior']:.4f}",
                flush=True,
            )
        panels.append((f"{images}, dither {dither:.2f}", mixture, x, priors))
        write_csv(out / "results.csv", rows)
    with axes_row(out / "gray_levels.png", len(panels), width=4.2) as row:
        for axes, (title, *panel) in zip(row, panels, strict=True):
            draw_priors(axes, *panel)
            axes.set_title(title)
        row[0].legend(fontsize=8)
    print(f"wrote {out / 'results.csv'} and {out / 'gray_levels.png'}")
    holds = True
    for images in args.images:
        rms = {row["loss"]: row["rms_to_map_prior"] for row in rows if row["images"] == images}
        yes = 2 * rms["matching"] <= rms["l2"]
        print(f"{images}: proximal matching recovers -sigma^2 log p, l2 training does not: {'yes' if yes else 'NO'}")
        holds &= yes
    return 0 if holds or args.quick else 1


def histogram(images: str, root: Path) -> np.ndarray:
    """How often each gray level occurs in (some hundred of) the training images, [256]."""
    if images == "mnist":
        digits = mnist.read_digits(root / "mnist" / "mnist.npz")[mnist.TRAIN]
        return np.bincount(digits.reshape(-1), minlength=256)
    if images == "faces":
        return domains.gray_levels(data.faces(root, "train", 300, domains.FACES_CENTRE))
    return domains.gray_levels(data.slices(root, "train", 200, data.CT_SIDE))


def dithered(counts: np.ndarray) -> tuple[GaussianMixture, float]:
    """The density of dithered gray levels in UNITs, less their mean, and the dither in image units, by bisection."""
    low, high = LEAST, 1.0
    if roughness(mixture_of(counts, low)) <= CURVATURE:
        return mixture_of(counts, low), low
    for _ in range(16):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if roughness(mixture_of(counts, middle)) > CURVATURE else (low, middle)
    return mixture_of(counts, high), high


def mixture_of(counts: np.ndarray, dither: float) -> GaussianMixture:
    """The mixture of the levels that occur."""
    share, levels = counts / counts.sum(), np.arange(256) / 255
    levels, kept = (levels - (share * levels).sum()) / UNIT, counts > 0
    return GaussianMixture(tuple(share[kept]), tuple(levels[kept]), (dither / UNIT,) * int(kept.sum()))


def roughness(mixture: GaussianMixture) -> float:
    """The largest second derivative of sigma^2 log p over the support of the levels."""
    x = torch.linspace(min(mixture.means), max(mixture.means), 300, dtype=torch.float64)
    step = 1e-3
    return (SIGMA**2 * (mixture.score(x + step) - mixture.score(x - step)) / (2 * step)).max().item()
