"""The Laplacian in one dimension: which loss finds the prox of -log p, which is soft thresholding at 1?

Trains the same network with l2, l1 and proximal matching (arXiv 2310.14344, the 1-D experiment), and compares f
with soft thresholding on [-4, 4] and the learned R with |x| on the values of f there. Claims: the sup error of
proximal matching is at most LIMIT, and at most half that of the other two.
"""

import argparse
import time
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.training.laplacian import soft_threshold, sup_error, train_laplacian

from .figures import axes_row
from .provenance import ROOT, where, write_csv

LOSSES = ("l2", "l1", "matching")
STEPS = 2500
LIMIT = 0.05
QUICK_STEPS = 200


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "laplacian",
        help="l2, l1 and proximal matching on Laplacian samples, against soft thresholding",
        description="Trains a 1-D network with each of three losses, compares with the closed form; under two minutes.",
        epilog="example: python -m bench.experiments laplacian",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_scalar_options(parser, "laplacian", STEPS)


def add_scalar_options(parser, name: str, steps: int) -> None:
    """Options of the one-dimensional experiments."""
    parser.add_argument("--out", metavar="DIR", help=f"for CSV and figure (default: bench/results/{name})")
    parser.add_argument("--steps", type=int, default=steps, help="of training, for each loss (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="default: 1, the network is too small for more")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, to see it work; proves nothing")


def prepare(args, name: str) -> tuple[Path, int]:
    """(folder for the results, steps), threads set."""
    torch.set_num_threads(args.threads)
    if args.quick and not args.out:
        raise ValueError("--quick requires --out DIR: its results are not for bench/results")
    out = Path(args.out or ROOT / "bench" / "results" / name)
    out.mkdir(parents=True, exist_ok=True)
    return out, QUICK_STEPS if args.quick else args.steps


def run(args) -> int:
    out, steps = prepare(args, "laplacian")
    rows, models = [], {}
    for loss in LOSSES:
        started = time.perf_counter()
        model = train_laplacian(loss, steps, args.seed, progress=False)
        seconds = time.perf_counter() - started
        models[loss] = model
        rows.append(
            {
                "loss": loss,
                "steps": steps,
                "sup_error": round(sup_error(model), 4),
                "prior_rms": round(prior_rms(model), 4),
                "seconds": round(seconds, 1),
                **where({"seed": args.seed}),
            }
        )
        print(
            f"{loss:9s} sup |f - soft threshold| = {rows[-1]['sup_error']:.4f}   "
            f"rms of R - |x| = {rows[-1]['prior_rms']:.4f}   {seconds:.0f} s",
            flush=True,
        )
    write_csv(out / "results.csv", rows)
    draw(models, out / "laplacian.png")
    print(f"wrote {out / 'results.csv'} and {out / 'laplacian.png'}")
    error = {row["loss"]: row["sup_error"] for row in rows}
    others = min(error["l1"], error["l2"])
    holds = error["matching"] <= LIMIT and 2 * error["matching"] <= others
    print(f"proximal matching within {LIMIT:g} and twice as close as the others: {'yes' if holds else 'NO'}")
    return 0 if holds or args.quick else 1


@torch.no_grad()
def prior_rms(model: lf.LPN) -> float:
    """RMS of R(f(y)) - |f(y)| over y in [-4, 4], the best constant subtracted; R comes free with f."""
    y = torch.linspace(-4, 4, 801)[:, None]
    psi, f = model.potential_and_prox(y)
    y, f = y.double(), f.double()
    prior = (y * f - 0.5 * f.square()).sum(1) - psi.double()
    return (prior - f[:, 0].abs()).std(correction=0).item()


@torch.no_grad()
def draw(models: dict[str, lf.LPN], path: Path) -> None:
    y = torch.linspace(-4, 4, 801)[:, None]
    with axes_row(path, 2) as (left, right):
        left.plot(y, soft_threshold(y), "k--", label="soft threshold")
        right.plot(y, y.abs(), "k--", label="|x|")
        for loss, model in models.items():
            psi, f = model.potential_and_prox(y)
            prior = (y * f - 0.5 * f.square()).sum(1) - psi
            left.plot(y, f, label=loss)
            right.plot(f[:, 0], prior - prior.min(), label=loss)
        left.set_xlabel("y")
        left.set_title("f(y)")
        right.set_xlabel("x")
        right.set_title("R(x)")
        left.legend()
