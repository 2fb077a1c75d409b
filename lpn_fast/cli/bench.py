"""How fast models run here.

Time every work of a model here (prox, value, Hessian product, training step, inversion, a reconstruction): with each
backend that can run it, beside eager torch and torch.compile of the same network. Everything is warmed up, checked
against float64 and timed in turns; a way that is wrong has no time. Shares are of what this device reached in this
run: matrix products, a copy, special functions. Close other programs first. With --out the rows are kept as CSV and
JSON, with a roofline picture (matplotlib); --compare shows two such results beside each other.

examples:
  lpn-fast bench
  lpn-fast bench --model frame-color celeba --batch 1 16 --size 128 512 --work prox training-step
  lpn-fast bench --device cuda --sweep --out results/my-gpu
  lpn-fast bench --compare results/before results/after
"""

import argparse
import re
from pathlib import Path

import torch

from ..benchmark import results, roofline, suite
from ..contract import check_device
from ..networks import paper_network
from ..ops.precision import PRECISIONS
from . import options
from .tables import table

PAPER = ("celeba", "laplacian", "mayoct")
SWEEP = ("frame-gray", "fast-gray", "fast-color", "natural-gray", *PAPER[:2])
SWEEPS = {"cpu": ((1, 8), ((64,), (256,))), "cuda": ((1, 8, 64), ((64,), (256,), (512,)))}  # batches, sizes
WORK_NAMES = {name.replace(" ", "-"): op for op in suite.OPS for name in [suite.NAMES.get(op, op)]}
TITLES = (
    *("model", "work", "x", "way", "ms", "20 to 80 %", "samples/s"),
    *("TFLOP/s", "GB/s", "ceiling", "error", "MB", "W"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_machine(parser)
    add = parser.add_argument
    names = f"shipped models, files of lpn_fast.save, published networks: {', '.join(PAPER)} (default: fast-gray)"
    add("--model", nargs="+", metavar="NAME_OR_PATH", default=[options.DEFAULT_MODEL], help=names)
    add("--work", nargs="+", choices=list(WORK_NAMES), help="(default: all)")
    add("--batch", type=options.COUNT, nargs="+", metavar="N", default=[4], help="(default: 4)")
    add("--size", type=_size, nargs="+", metavar="N or HxW", help="of volumes DxHxW (default: 128, of volumes 32)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of ours; plain torch runs in fp32 (default: fp32)")
    add("--seconds", type=options.POSITIVE, default=1.0, metavar="S", help="of measuring per line (default: 1)")
    add("--sweep", action="store_true", help="shipped and published models over batches and sizes; takes a while")
    add("--no-compile", action="store_true", help="leave out torch.compile")
    add("--out", type=Path, metavar="DIR", help="keep bench.csv, bench.json and roofline.png there")
    add("--compare", type=Path, nargs=2, metavar=("A", "B"), help="of two results: how many times faster B is")


def run(args: argparse.Namespace) -> int:
    if args.compare:
        return _compare(*map(results.read, args.compare))
    options.set_threads(args.threads)
    check_device(args.device)
    names, batches, sizes = args.model, args.batch, args.size
    if args.sweep:
        names = [*SWEEP, *(name for name in names if name not in SWEEP and name != options.DEFAULT_MODEL)]
        batches, sizes = SWEEPS[torch.device(args.device).type]
    models = {
        name: paper_network(name).eval().to(args.device) if name in PAPER else options.load_model(name, args.device)
        for name in names
    }
    ops = tuple(WORK_NAMES[name] for name in args.work) if args.work else suite.OPS
    if args.sweep and not args.work:
        ops = tuple(op for op in ops if op not in ("invert", "reconstruct"))  # minutes each on large images
    if sizes is None:
        sizes = [(32 if any(model.spec.ndim == 3 for model in models.values()) else 128,)]
    chosen = suite.Options(ops, tuple(batches), tuple(sizes), args.precision, not args.no_compile, args.seconds)
    result = suite.run(models, chosen, _progress)
    print(_head(result))
    print(table(TITLES, [_cells(row) for row in result.rows]))
    for line in result.skipped:
        print(line)
    if args.out is not None:
        written, picture = results.write(result, args.out), args.out / "roofline.png"
        try:
            roofline.draw(result, picture)
            written.append(picture)
        except ImportError as error:
            print(f"no picture: {error}")
        print(*(f"written: {path}" for path in written), sep="\n")
    return 0


def _size(text: str) -> tuple[int, ...]:
    """Numbers of pixels along the axes: 128, or 128x96."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"must be positive numbers like 128 or 128x96, got {text!r}")
    return tuple(map(int, text.split("x")))


def _compare(first: results.Result, second: results.Result) -> int:
    rows = results.compare(first, second)
    if not rows:
        raise ValueError("--compare must name results with rows in common (model, work, shape, precision, way)")
    for letter, result in zip("AB", (first, second), strict=True):
        print(f"{letter}: {_head(result)}")
    print(table(("model", "work", "x", "precision", "way", "A ms", "B ms", "times faster", ""), rows))
    return 0


def _head(result: results.Result) -> str:
    where, limits = result.where, result.ceilings
    special = f", {limits['special_g']:.1f}e9 exp2/s" if limits["special_g"] else ""
    products = "".join(f", {kind} {rate / 1e3:.1f}" for kind, rate in limits["products"].items() if kind != "fp32")
    return (
        f"{where['device']}, {where['threads']} threads, torch {where['torch']}, lpn-fast {where['lpn_fast']}"
        f" ({where['commit']}), {where['timestamp']}\nmeasured ceilings: products fp32 "
        f"{limits['gemm_gflops'] / 1e3:.3g} TFLOP/s{products}, copy {limits['copy_gbytes']:.1f} GB/s{special}"
    )


def _cells(row: results.Row) -> tuple:
    return (
        row.model, suite.NAMES.get(row.work, row.work), row.shape, row.way, row.ms, f"{row.ms_20:.2f}..{row.ms_80:.2f}",
        row.samples_per_s, None if row.tflops is None else f"{row.tflops:.3g}", row.gbytes_per_s, row.ceiling,
        f"{row.error:.0e}", row.peak_mb, row.watts,
    )  # fmt: skip


def _progress(row: results.Row) -> None:
    print(f"{row.model}, {suite.NAMES.get(row.work, row.work)}, {row.shape}, {row.way}: {row.ms:.2f} ms", flush=True)
