"""`python -m bench.reconstruction`: inverse problems against what a user would pick, measured here and now.

    python -m bench.reconstruction --data ../shared/data     8 photographs of 96 x 96, 2 slices of 128 x 128
    python -m bench.reconstruction --full                    all methods on larger and more images; hours on two cores
    python -m bench.reconstruction --quick                   two small tasks and the rest in small, two minutes
    python -m bench.reconstruction --tasks deblur --photographs 4
    python -m bench.reconstruction --only everyday           lf.reconstruct on the tasks that people come with
    python -m bench.reconstruction --only throughput         16 problems against the published way; cost of F
    python -m bench.reconstruction --only oscillating        operators outside the o-minimal class

Without --data, the folder in LPN_FAST_DATA or shared/data beside the project is taken. Writes quality.csv,
throughput.csv, oscillating.csv and a picture per task to bench/results/reconstruction (quick: to --out only); tasks,
methods and models of an earlier quality.csv that are not measured now keep their rows.
Exit codes: 0 done, 1 a goal was missed, 2 wrong use.
"""

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path

import torch

import lpn_fast as lf

from ..experiments.provenance import ROOT, write_among, write_csv
from . import data, everyday, figures, oscillating, quality, throughput

PARTS = ("everyday", "quality", "throughput", "oscillating")
RESULTS = ROOT / "bench" / "results" / "reconstruction"


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.reconstruction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="DIR", help="folder with natural, ct_mayo, kernels, weights")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--tasks", metavar="REGEX", default="", help=", ".join(t.name for t in quality.TASKS))
    parser.add_argument("--methods", metavar="REGEX", default="", help="e.g. 'lpn|TV'")
    parser.add_argument("--photographs", type=int, metavar="N", help=f"default: {quality.MAIN.photographs}")
    parser.add_argument("--slices", type=int, metavar="N", help=f"default: {quality.MAIN.slices}")
    parser.add_argument("--slice-side", type=int, choices=(128, 256, 512), help="pixels; default: 128")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["frame-gray"],
        metavar="MODEL",
        help="shipped models or checkpoints; the first for the parts after quality (default: frame-gray)",
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="for each of the two comparisons of throughput (default: 120)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="two minutes, to see it work")
    parser.add_argument("--full", action="store_true", help="16 photographs of 160 x 160, 14 slices of 512 x 512")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/reconstruction")
    try:
        args = parser.parse_args(arguments)
    except SystemExit as leave:
        return int(leave.code or 0)
    try:
        return _run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


def _run(args) -> int:
    torch.set_num_threads(args.threads)
    show = functools.partial(print, flush=True)
    if not args.seconds > 0:
        raise ValueError(f"--seconds must be positive, got {args.seconds:g}")
    if args.quick and args.full:
        raise ValueError("--quick and --full are two sizes; give one of them")
    if args.quick and args.out is None:
        raise ValueError("--out must be given with --quick: small runs do not overwrite the results of large ones")
    out = RESULTS if args.out is None else args.out
    out.mkdir(parents=True, exist_ok=True)
    models = {name: lf.networks.shipped_or_loaded(name) for name in args.model}
    models = {Path(name).stem: model.eval().requires_grad_(False) for name, model in models.items()}
    model = next(iter(models.values()))
    missed = False

    if args.only == "everyday":
        scored = []
        for one in everyday.run(data.find(args.data), args.tasks, args.methods, show):
            scored.append(one)
            write_among(out / "everyday.csv", [one.row], ("task", "method"), everyday.in_order)
        for path in figures.draw(scored, out):
            show(f"written: {path}")
    if args.only in (None, "quality"):
        effort = quality.QUICK if args.quick else quality.FULL if args.full else quality.MAIN
        changes = {"photographs": args.photographs, "slices": args.slices, "slice_side": args.slice_side}
        effort = replace(effort, **{name: value for name, value in changes.items() if value is not None})
        tasks = args.tasks or ("|".join(f"^{name}$" for name in quality.QUICK_TASKS) if args.quick else "")
        scored = []
        for one in quality.run(data.find(args.data), models, tasks, args.methods, effort, show):
            scored.append(one)
            write_among(out / "quality.csv", [one.row], ("task", "method", "model"), quality.in_order)
        if not scored:
            raise ValueError(f"--tasks and --methods must match something, got {args.tasks!r} and {args.methods!r}")
        for path in figures.draw(scored, out):
            show(f"written: {path}")
    if args.only in (None, "throughput"):
        size = {"side": 48, "iterations": 3, "rounds": 3, "seconds": 4.0} if args.quick else {
            "side": 128, "iterations": 10, "rounds": 15, "seconds": args.seconds
        }  # fmt: skip
        rows = throughput.run(model, show=show, **size)
        write_csv(out / "throughput.csv", rows)
        missed |= not args.quick and (
            rows[0]["ratio_p50"] < throughput.GOAL or rows[-1]["ratio_p50"] > 1 + throughput.COST_GOAL
        )
    if args.only in (None, "oscillating"):
        write_csv(
            out / "oscillating.csv", oscillating.run(model, 60 if args.quick else 5000 if args.full else 600, show)
        )
    show(f"written: {out}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
