"""What makes the gradient of an input-convex network a good denoiser? PSNR at equal time, for one change at a time.

Every variant trains for the same processor time on crops of the training photographs at noise 25/255, its rate
falling on a cosine, and is measured on centre crops of the 32 validation photographs as time goes by. The table has
steps and parameters beside the PSNR, and the time after which each PSNR was first reached, so that "how much sooner"
can be read off. All variants are exact proxes for whatever weights they end with.

    published        128-pixel network, its start, l1, batch of 8 crops of 128 pixels (arXiv 2310.14344; there 64)
    multiscale       ConvLPN as it comes
    ridge            RidgeLPN as it comes
    frame-*          FrameLPN as it comes, with fewer and more gates, with gates that see 3 x 3 neighbours, with gates
                     for gates, with smaller and larger filters
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import lpn_fast as lf
from bench.reconstruction import data
from lpn_fast import metrics
from lpn_fast.data import Augment, ImageCrops
from lpn_fast.networks.initialise import initialise_as_

from .figures import axes_row
from .provenance import ROOT, where, write_csv

SIGMA = 25 / 255
SECONDS = 60.0
LOOKS = 8  # validations of a run
VALIDATION_SIDE = 160


@dataclass(frozen=True)
class Variant:
    """How a network is built, and its best known rate."""

    build: Callable[[], lf.LPN]
    rate: float
    loss: str = "l2"
    crop: int = 64


def _published() -> lf.LPN:
    return initialise_as_(lf.paper_network("mayoct"), "published")


VARIANTS = {
    "published": Variant(_published, 1e-3, "l1", crop=128),
    "multiscale": Variant(lambda: lf.ConvLPN(1, hidden=48), 2e-3),
    "ridge": Variant(lambda: lf.RidgeLPN(1), 1e-3),
    "frame": Variant(lambda: lf.FrameLPN(1), 1e-2),
    "frame-narrow": Variant(lambda: lf.FrameLPN(1, gates=((1, 1, 48),)), 1e-2),
    "frame-wide": Variant(lambda: lf.FrameLPN(1, gates=((1, 1, 192),)), 1e-2),
    "frame-3x3": Variant(lambda: lf.FrameLPN(1, gates=((3, 1, 96),)), 1e-2),
    "frame-two-stages": Variant(lambda: lf.FrameLPN(1, gates=((1, 1, 96), (3, 1, 32))), 1e-2),
    "frame-5": Variant(lambda: lf.FrameLPN(1, kernel=5), 1e-2),
    "frame-9": Variant(lambda: lf.FrameLPN(1, kernel=9), 1e-2),
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "study",
        help="PSNR at equal time of architectures, one change at a time",
        description=__doc__.splitlines()[0],
        epilog="example: python -m bench.experiments study --data shared/data --variants ridge frame",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: LPN_FAST_DATA)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor time of each (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=32, help="validation photographs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", metavar="DIR", help="for CSV and figure (default: bench/results/study)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")


def run(args) -> int:
    if not args.seconds > 0 or args.batch_size < 1 or not 1 <= args.images <= 32:
        raise ValueError(
            f"--seconds and --batch-size must be positive and --images 1 to 32, got {args.seconds:g}, "
            f"{args.batch_size} and {args.images}"
        )
    torch.set_num_threads(args.threads)
    root = data.find(args.data)
    folder = root / "natural" / "bsds500"
    held_out = [Path(name).stem for name in (folder / "cbsd68.txt").read_text().split()]
    x = data.photographs(root, "validation", args.images, VALIDATION_SIDE)
    y = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(2024))
    rows, curves = [], {}
    for name in args.variants:
        variant = VARIANTS[name]
        augment = Augment(contrast=1.0)
        crops = ImageCrops([str(folder / "train"), str(folder / "test")], variant.crop, 1, held_out, augment=augment)
        torch.manual_seed(args.seed)
        model = variant.build()
        curve = train(model, variant, crops, args, lambda m, crop=variant.crop: validated(m, x, y, crop))
        curves[name] = curve
        for seconds, steps, psnr in curve:
            row = {
                "variant": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "seconds": round(seconds, 2),
                "steps": steps,
                "psnr": round(psnr, 3),
            }
            config = {"batch": args.batch_size, "loss": variant.loss, "rate": variant.rate, "seed": args.seed}
            rows.append(row | where(config))
        print(f"{name:18s} {rows[-1]['parameters']:9,d} parameters, {steps:5d} steps: {psnr:.2f} dB", flush=True)
    out = Path(args.out or ROOT / "bench" / "results" / "study")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    draw(curves, out / "study.png")
    _say_how_much_sooner(curves)
    print(f"wrote {out / 'results.csv'} and {out / 'study.png'}")
    return 0


def train(model, variant: Variant, crops, args, validate) -> list[tuple[float, int, float]]:
    """(processor seconds, steps, validation PSNR), the start included; validation is not on the clock."""
    generator = torch.Generator().manual_seed(args.seed)
    scales = model.step_scales()
    groups = [{"params": [p], "scale": scales.get(name, 1.0)} for name, p in model.named_parameters()]
    optimizer = torch.optim.Adam(groups, lr=variant.rate)
    sigma = torch.full((args.batch_size,), SIGMA) if model.is_noise_conditional else None
    curve, spent, steps = [(0.0, 0, validate(model))], 0.0, 0
    while spent < args.seconds:
        began = time.process_time()
        x = crops(args.batch_size, generator)
        y = x + SIGMA * torch.randn(x.shape, generator=generator)
        error = model(y, sigma) - x
        loss = error.abs().mean() if variant.loss == "l1" else error.square().mean() / SIGMA**2
        optimizer.zero_grad()
        loss.backward()
        model.project_gradients_()
        for group in optimizer.param_groups:
            rate = 0.5 * (1 + math.cos(math.pi * min(1.0, spent / args.seconds)))
            group["lr"] = variant.rate * max(rate, 0.02) * min(1.0, (steps + 1) / 20) * group["scale"]
        optimizer.step()
        model.project_()
        steps += 1
        spent += (time.process_time() - began) / torch.get_num_threads()
        if spent >= args.seconds * len(curve) / LOOKS:
            curve.append((spent, steps, validate(model)))
    return curve


@torch.no_grad()
def validated(model, x, y, crop: int) -> float:
    """Mean PSNR; networks of one image size see the centre of the crops."""
    if model.spec.image_size is not None:
        inset = (x.shape[-1] - crop) // 2
        x, y = (t[..., inset : inset + crop, inset : inset + crop] for t in (x, y))
    parts = [model(part, SIGMA if model.is_noise_conditional else None) for part in y.split(4)]
    return metrics.psnr(torch.cat(parts), x).mean().item()


def _say_how_much_sooner(curves: dict) -> None:
    if not {"published", "frame"} <= set(curves):
        return
    goal = max(psnr for _, _, psnr in curves["published"])
    ours = next(seconds for seconds, _, psnr in curves["frame"] if psnr >= goal)
    theirs = next(seconds for seconds, _, psnr in curves["published"] if psnr >= goal)
    print(f"{goal:.2f} dB, the best of the published way: after {theirs:.0f} s there, after {ours:.1f} s here")


def draw(curves: dict, path: Path) -> None:
    with axes_row(path, 1, width=6, height=4) as (axes,):
        for name, curve in curves.items():
            axes.plot([s for s, _, _ in curve], [p for _, _, p in curve], marker="o", markersize=3, label=name)
        axes.set_xlabel("processor time per thread, s")
        axes.set_ylabel("validation PSNR at 25/255, dB")
        axes.set_ylim(bottom=22)
        axes.legend(fontsize=7)
