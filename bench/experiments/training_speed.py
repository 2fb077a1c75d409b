"""Training steps per second on the published MNIST network, batch 200, data loading included: ours and theirs.

    ours         lpn_fast.training.Trainer: one analytic backward pass, projected Adam; digits gathered from memory
    published    a DataLoader over a Dataset of single digits, f by autograd with create_graph, loss.backward(),
                 torch.optim.Adam, then a clamp of the constrained weights (arXiv 2310.14344)

Both take l1 steps from the same start at the same noise, taking turns in blocks of BLOCK steps; a block of ours is a
whole `Trainer.run`. The published way runs in both memory layouts, the faster one counts. Printed is the median of
the ratios of neighbouring blocks. Run it on an idle machine.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import lpn_fast as lf
from lpn_fast.ops.plain_torch import PlainPotential
from lpn_fast.training import Phase, Trainer

from . import mnist
from .provenance import ROOT, where, write_csv

BATCH = 200
BLOCK = 5  # steps per turn
RATE = 1e-3
GOAL = 1.8


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "training-speed",
        help="training steps per second against the published way, data loading included",
        description="Measures both in turns on the MNIST network; some minutes on two cores.",
        epilog="example: python -m bench.experiments training-speed --data mnist.npz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mnist.add_data_option(parser)
    parser.add_argument("--made-up", action="store_true", help="random digits instead of --data: speed is the same")
    parser.add_argument("--out", metavar="DIR", help="for the CSV (default: bench/results/training_speed)")
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")


def run(args) -> int:
    if args.rounds < 1 or args.batch < 1:
        raise ValueError(f"--rounds and --batch must be at least 1, got {args.rounds} and {args.batch}")
    torch.set_num_threads(args.threads)
    if args.made_up:
        digits = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28), dtype=np.uint8)
    else:
        digits = mnist.read_digits(mnist.find_digits(args.data))
    torch.manual_seed(0)
    model = lf.paper_network("mnist")
    blocks = {
        "published": published_blocks(model, digits, args.batch, torch.contiguous_format),
        "published, channels last": published_blocks(model, digits, args.batch, torch.channels_last),
        "ours": our_blocks(model, digits, args.batch),
    }
    for block in blocks.values():  # warm-up
        next(block)
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(args.rounds):
        for name, block in blocks.items():
            started = time.perf_counter()
            loss = next(block)
            seconds[name].append((time.perf_counter() - started) / BLOCK)
            if not loss < 1:
                raise ValueError(f"{name}: the loss is {loss}; this is no training")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    baseline = min((name for name in blocks if name != "ours"), key=median.get)
    ratios = [a / b for a, b in zip(seconds[baseline], seconds["ours"], strict=True)]
    ratio = statistics.median(ratios)
    rows = [
        {
            "way": name,
            "batch": args.batch,
            "steps_per_second": round(1 / median[name], 3),
            "ours_against_the_faster": round(ratio, 3) if name == "ours" else "",
            "ratio_low": round(min(ratios), 3) if name == "ours" else "",
            "ratio_high": round(max(ratios), 3) if name == "ours" else "",
            **where({"rounds": args.rounds, "block": BLOCK}),
        }
        for name in blocks
    ]
    for row in rows:
        print(f"{row['way']:25s} {row['steps_per_second']:7.2f} steps/s")
    print(f"ratio {ratio:.2f} (blocks {min(ratios):.2f} to {max(ratios):.2f}), goal {GOAL:g}")
    out = Path(args.out or ROOT / "bench" / "results" / "training_speed")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    print(f"wrote {out / 'results.csv'}")
    return 0


def our_blocks(start: lf.LPN, digits: np.ndarray, batch: int) -> Iterator[float]:
    """BLOCK training steps per item: the mean loss."""
    model = lf.LPN(start.spec)
    model.load_state_dict(start.state_dict())
    sampler, phases, count = mnist.sampler(digits), [Phase("l1", BLOCK, RATE)], itertools.count()
    while True:
        trainer = Trainer(model, sampler, phases, sigma=mnist.SIGMA, batch_size=batch, seed=next(count), progress=False)
        yield trainer.run()["loss"]


def published_blocks(start: lf.LPN, digits: np.ndarray, batch: int, layout: torch.memory_format) -> Iterator[float]:
    """The same by the published way, in one memory layout."""
    potential = PlainPotential(start).to(memory_format=layout)
    optimizer = torch.optim.Adam(potential.parameters(), lr=RATE)
    loader = DataLoader(Digits(digits[mnist.TRAIN]), batch, shuffle=True, drop_last=True)
    losses = []
    while True:
        for x in loader:
            x = x.contiguous(memory_format=layout)
            y = (x + mnist.SIGMA * torch.randn_like(x)).requires_grad_()
            f = torch.autograd.grad(potential(y).sum(), y, create_graph=True)[0]
            loss = (f - x).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            potential.clamp_()
            losses.append(loss.item())
            if len(losses) == BLOCK:
                yield statistics.fmean(losses)
                losses.clear()


class Digits(Dataset):
    """Single digits in [0, 1], as a Dataset hands them out."""

    def __init__(self, digits: np.ndarray):
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.digits[index]).float()[None] / 255
