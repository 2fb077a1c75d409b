"""Peak memory of one evaluation on a large image or volume, at once and in tiles (`lf.InTiles`), one thread.

    peak above input and network: see lpn_fast/benchmark/memory.py; warmed up on a small image, each in its own process
    largest difference: of f in tiles to f at once, on the part of the image where both are known

frame-gray runs at once whatever the side; the stages of the default ConvLPN keep what they compute, so that at once
its image is 1024 pixels a side. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.benchmark.memory import MMAP_THRESHOLD, peak_megabytes

from .provenance import ROOT, where, write_csv

SIGMA = 0.1
NETWORKS = {  # with the side of its image, and the largest side that is evaluated at once; None is any
    "frame-gray": (lambda: lf.pretrained("frame-gray"), 4096, None),
    "ConvLPN": (lambda: lf.ConvLPN(1), 4096, 1024),
    "ConvLPN-volume": (lambda: lf.ConvLPN(1, ndim=3), 128, None),
}
SMALL_SIDE = {2: 600, 3: 48}  # to warm up on: of images and of volumes
WAYS = ("whole", "tiles")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "large-images",
        help="peak memory of large images and volumes, at once and in tiles",
        description=__doc__.splitlines()[0],
        epilog="example: python -m bench.experiments large-images --networks ConvLPN --side 1024 --out look",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--side", type=int, help="of the images in pixels (default: 4096, of volumes 128)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    parser.add_argument("--out", metavar="DIR", help="for the CSV (default: bench/results/large_images)")


def run(args) -> int:
    if args.side is not None and args.side < 64:
        raise ValueError(f"--side must be at least 64, got {args.side}")
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError("the peak is read from /proc/self, which this system lacks: it must be Linux")
    torch.set_num_threads(1)
    out = Path(args.out or ROOT / "bench" / "results" / "large_images")
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.networks:
        for way in WAYS:
            ndim = 3 if name.endswith("volume") else 2
            row = measured(name, way, args.side or NETWORKS[name][1])
            rows.append(row | where({"sigma": SIGMA, "tile": lf.networks.tiles.SIDE[ndim]}))
            print(
                f"{name:14s} {way:5s} {row['side']:5d}^{ndim}: {row['peak_megabytes']:8.0f} MB, "
                f"{row['bytes_per_pixel']:6.0f} bytes a pixel"
                + (f", differs by {row['max_difference']:.1e}" if way == "tiles" else ""),
                flush=True,
            )
            write_csv(out / "results.csv", rows)
    print(f"wrote {out / 'results.csv'}")
    return 0


def measured(name: str, way: str, side: int) -> dict:
    """The row of a network and way, measured in a fresh process."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.experiments.large_images", name, way, str(side)]
    child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if child.returncode:
        raise ValueError(f"{name}, {way}, of side {side} failed ({child.returncode}): {child.stderr.strip()[-500:]}")
    return json.loads(child.stdout)


@torch.no_grad()
def _child(name: str, way: str, side: int) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, _, limit = NETWORKS[name]
    model = build()
    ndim = model.spec.ndim
    sigma = SIGMA if model.is_noise_conditional else None
    whole_side = min(side, limit or side)
    x = torch.rand(1, 1, *(side,) * ndim)
    part = _corner(x, whole_side).contiguous()
    small = _corner(x, SMALL_SIDE[ndim]).contiguous()
    tiles, results = lf.InTiles(model), []
    evaluate, image = (model, part) if way == "whole" else (tiles, x)
    peak = peak_megabytes(lambda: results.append(evaluate(image, sigma)), warm=lambda: model(small, sigma))
    row = {"network": name, "way": way, "side": image.shape[-1], "peak_megabytes": round(peak, 1)}
    row |= {"bytes_per_pixel": round(peak * 2**20 / image.numel(), 1), "max_difference": ""}
    if way == "tiles":
        known = side if whole_side == side else whole_side - tiles.halo  # the end of the part is not the image's
        difference = _corner(results[0], known) - _corner(model(part, sigma), known)
        row["max_difference"] = difference.abs().max().item()
    return row


def _corner(x: torch.Tensor, side: int) -> torch.Tensor:
    """The first pixels of x (N, C, ...) along each axis of space."""
    return x[(..., *(slice(side),) * (x.dim() - 2))]


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
