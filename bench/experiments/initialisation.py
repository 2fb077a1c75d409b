"""Where should training start? The loss at equal steps from every start of networks/initialise.py.

    multiscale   ConvLPN, l2 on crops at noise 0.1        default, published, principled
    mnist        the published network, l1 on crops       the same

Trained on synthetic dead leaves, so nothing is downloaded, or on --data. All starts see the same batches in the same
order. The table has the mean loss of the last tenth of the steps, averaged over the seeds, and its spread.
"""

import argparse
import statistics
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.data import ImageCrops, synthetic_crops
from lpn_fast.networks.initialise import STARTS, initialise_as_
from lpn_fast.training import Phase, Trainer

from .figures import axes_row
from .provenance import ROOT, where, write_csv

SIGMA = 0.1
NETWORKS = ("multiscale", "mnist")
STEPS, QUICK_STEPS = 400, 10
RATES = {"multiscale": 2e-3, "mnist": 1e-3}
CROPS = {"multiscale": 32, "mnist": 28}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "initialisation",
        help="the loss at equal steps from every start",
        description="Trains two networks from each start on the same batches; minutes on one core.",
        epilog="example: python -m bench.experiments initialisation",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", metavar="PATH", help="images (default: synthetic dead leaves)")
    parser.add_argument("--out", metavar="DIR", help="for CSV and figure (default: bench/results/initialisation)")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed, to see it work")


def run(args) -> int:
    torch.set_num_threads(args.threads)
    if args.quick and not args.out:
        raise ValueError("--quick requires --out DIR: its results are not for bench/results")
    steps, seeds = (QUICK_STEPS, 1) if args.quick else (args.steps, args.seeds)
    if steps < 10 or seeds < 1:
        raise ValueError(f"--steps must be at least 10 and --seeds at least 1, got {steps} and {seeds}")
    out = Path(args.out or ROOT / "bench" / "results" / "initialisation")
    out.mkdir(parents=True, exist_ok=True)
    rows, curves = [], {}
    for network in NETWORKS:
        crop = CROPS[network]
        crops = ImageCrops(args.data, crop) if args.data else synthetic_crops("dead-leaves", crop, pool=16, side=128)
        for start in STARTS:
            runs = [losses(network, start, crops, steps, seed) for seed in range(seeds)]
            curves[network, start] = [statistics.fmean(values) for values in zip(*runs, strict=True)]
            last = [statistics.fmean(run[-max(1, steps // 10) :]) for run in runs]
            row = {
                "network": network,
                "start": start,
                "steps": steps,
                "loss": statistics.fmean(last),
                "spread": max(last) - min(last),
                "first_loss": statistics.fmean(run[0] for run in runs),
                "data": "given" if args.data else "dead leaves",
            }
            rows.append(row | where({"sigma": SIGMA, "seeds": seeds}))
            print(f"{network:10s} {start:10s} loss {row['first_loss']:.4g} -> {row['loss']:.4g} +- {row['spread']:.1g}")
    write_csv(out / "results.csv", rows)
    draw(curves, out / "initialisation.png")
    print(f"wrote {out / 'results.csv'} and {out / 'initialisation.png'}")
    for network in NETWORKS:
        best = min((row for row in rows if row["network"] == network), key=lambda row: row["loss"])
        print(f"{network}: lowest loss from {best['start']!r}")
    return 0


def losses(network: str, start: str, crops: ImageCrops, steps: int, seed: int) -> list[float]:
    """The loss of every step of one run."""
    torch.manual_seed(seed)
    model = lf.paper_network("mnist") if network == "mnist" else lf.ConvLPN(1, hidden=24)
    initialise_as_(model, start, SIGMA)
    loss = "l1" if network == "mnist" else "l2"
    trainer = Trainer(
        model, crops, [Phase(loss, steps, RATES[network])], sigma=SIGMA, batch_size=8, seed=seed, progress=False
    )
    model.train()
    return [trainer.advance().item() for _ in range(steps)]


def draw(curves: dict[tuple[str, str], list[float]], path: Path) -> None:
    with axes_row(path, len(NETWORKS)) as row:
        for axes, network in zip(row, NETWORKS, strict=True):
            for start in STARTS:
                axes.semilogy(smoothed(curves[network, start]), label=start)
            axes.set_title(network)
            axes.set_xlabel("step")
        row[0].set_ylabel("loss")
        row[0].legend()


def smoothed(values: list[float], width: int = 20) -> list[float]:
    """Means over the last `width` values."""
    return [statistics.fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
