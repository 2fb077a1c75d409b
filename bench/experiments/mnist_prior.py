"""R of perturbed digits: what the learned prior finds likely, for networks trained with three losses.

Noise, blur and mixing of two digits, as perturbations.py has them. Images: the first rows of 50000..54999 of the
training set, as published (arXiv 2310.14344).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

import lpn_fast as lf

from . import mnist
from .perturbations import TOL, draw, evaluate, line, report
from .provenance import ROOT, where, write_csv
from .three_losses import LOSSES

QUICK = {"steps": 60, "count": 4}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "mnist-prior",
        help="R of digits under noise, blur and mixing, after training with three losses",
        description="Trains the published MNIST network, or an explicit prior, with proximal matching, l1 and l2 (a "
        "quarter of an hour on one core; interrupted runs resume), evaluates R under perturbations, says whether it "
        "rises.",
        epilog="example: python -m bench.experiments mnist-prior --data mnist.npz --quick --out look",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mnist.add_data_option(parser)
    parser.add_argument(
        "--family", choices=tuple(mnist.FAMILIES), default="published", help="what is trained (default: %(default)s)"
    )
    parser.add_argument(
        "--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="those it is trained with (default: all)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="for CSV and figure (default: bench/results/mnist_prior, or mnist_prior_explicit)"
    )
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
        raise ValueError("--quick requires --out DIR: its results are not for bench/results")
    folder = "mnist_prior" if args.family == "published" else f"mnist_prior_{args.family}"
    out = Path(args.out or ROOT / "bench" / "results" / folder)
    out.mkdir(parents=True, exist_ok=True)

    clean = mnist.as_images(digits[mnist.TEST][:count])
    rows = []
    for name, model in _networks(args, digits, steps):
        quality = mnist.denoising_psnr(model, mnist.as_images(digits[mnist.VALIDATION][:count]))
        print(f"{name}: denoises to {quality:.2f} dB at noise {mnist.SIGMA:g}")
        config = {"steps": None if args.model else steps, "batch": mnist.BATCH, "tol": TOL, "count": count}
        for row in evaluate(model, clean, sigma=mnist.sigma_of(model)):
            row = {"loss": name, **row, "denoising_psnr": round(quality, 3), **where(config)}
            rows.append(row)
            print(line(row), flush=True)
        write_csv(out / "results.csv", rows)
    draw(rows, out / "prior.png")
    print(f"wrote {out / 'results.csv'} and {out / 'prior.png'}")
    return 0 if report(rows) or args.quick else 1  # so few steps prove nothing


def _networks(args, digits, steps: int) -> Iterator[tuple[str, lf.LPN]]:
    if args.model:
        model = lf.load(args.model).requires_grad_(False)
        yield model.card.get("loss", "given"), model
        return
    for loss in args.losses:
        run = f"{loss}-{steps}" if args.family == "published" else f"{args.family}-{loss}-{steps}"
        yield loss, mnist.train(loss, digits, steps, Path(args.runs) / run, family=args.family)
