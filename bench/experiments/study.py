"""What makes the gradient of an input-convex network a good denoiser? PSNR at equal time, for one change at a time.

Every variant trains for the same processor time on crops of the training photographs at noise 25/255, its rate
rising for 20 steps, then falling on a cosine, and is measured on centre crops of the 32 validation photographs as time
goes by, early on more often. The table has steps and parameters beside the PSNR. `sooner.csv` has the time after which
each variant first reached what the published ways reach at their end. All variants are exact proxes for whatever
weights they end with. FrameLPN and MixtureLPN come with starts that denoise, made by hand from the cosine basis.

    published        128-pixel network, its start, l1, constant rate, batch of 8 crops of 128 pixels
                     (arXiv 2310.14344; there 64)
    published-start  ConvLPN in place of that network, all else as there but the crops
    multiscale       ConvLPN as it comes
    ridge            RidgeLPN as it comes
    frame-*          FrameLPN as it comes, with fewer and more gates, with gates that see 3 x 3 neighbours, with gates
                     for gates, with smaller and larger filters
    mixture          MixtureLPN of as many experts as natural-gray-mixture
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
LOOKS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # validations, as shares of the time
WARMUP = 20  # steps
VALIDATION_SIDE = 160


@dataclass(frozen=True)
class Variant:
    """How a network is built and trained; the rates of frames and mixture are those of the shipped models."""

    build: Callable[[], lf.LPN]
    rate: float
    loss: str = "l2"
    crop: int = 64
    falling: bool = True  # the rate, after a warm-up; else it is constant


PUBLISHED = ("published", "published-start")

VARIANTS = {
    "published": Variant(
        lambda: initialise_as_(lf.paper_network("mayoct"), "published"), 1e-3, "l1", crop=128, falling=False
    ),
    "published-start": Variant(
        lambda: initialise_as_(lf.ConvLPN(1, hidden=48), "published"), 1e-3, "l1", falling=False
    ),
    "multiscale": Variant(lambda: lf.ConvLPN(1, hidden=48), 2e-3),
    "ridge": Variant(lambda: lf.RidgeLPN(1), 1e-3),
    "frame": Variant(lambda: lf.FrameLPN(1), 3e-3),
    "frame-narrow": Variant(lambda: lf.FrameLPN(1, gates=((1, 1, 48),)), 3e-3),
    "frame-wide": Variant(lambda: lf.FrameLPN(1, gates=((1, 1, 192),)), 3e-3),
    "frame-3x3": Variant(lambda: lf.FrameLPN(1, gates=((3, 1, 96),)), 3e-3),
    "frame-two-stages": Variant(lambda: lf.FrameLPN(1, gates=((1, 1, 96), (3, 1, 32))), 3e-3),
    "frame-5": Variant(lambda: lf.FrameLPN(1, kernel=5), 3e-3),
    "frame-9": Variant(lambda: lf.FrameLPN(1, kernel=9), 3e-3),
    "mixture": Variant(lambda: lf.MixtureLPN(1, experts=128), 1e-2),
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
    sooner = how_much_sooner(curves)
    for row in sooner:
        print(
            f"{row['goal_psnr']:.2f} dB, the end of {row['goal_of']} ({row['its_steps']} steps): after "
            f"{row['its_seconds']:.1f} s there, by {row['seconds']:.1f} s with {row['variant']}, ratio {row['ratio']}"
        )
    if sooner:
        write_csv(out / "sooner.csv", [row | where({"batch": args.batch_size, "seed": args.seed}) for row in sooner])
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
    looks = 0
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
            group["lr"] = variant.rate * group["scale"]
            if variant.falling:
                rate = 0.5 * (1 + math.cos(math.pi * min(1.0, spent / args.seconds)))
                group["lr"] *= max(rate, 0.02) * min(1.0, (steps + 1) / WARMUP)
        optimizer.step()
        model.project_()
        steps += 1
        spent += (time.process_time() - began) / torch.get_num_threads()
        if spent >= args.seconds * LOOKS[looks]:
            curve.append((spent, steps, validate(model)))
            looks = sum(spent >= args.seconds * share for share in LOOKS)
    return curve


@torch.no_grad()
def validated(model, x, y, crop: int) -> float:
    """Mean PSNR; networks of one image size see the centre of the crops."""
    if model.spec.image_size is not None:
        inset = (x.shape[-1] - crop) // 2
        x, y = (t[..., inset : inset + crop, inset : inset + crop] for t in (x, y))
    parts = [model(part, SIGMA if model.is_noise_conditional else None) for part in y.split(4)]
    return metrics.psnr(torch.cat(parts), x).mean().item()


def how_much_sooner(curves: dict) -> list[dict]:
    """When variants were first seen at the PSNR that the published ways end with; the ratio is a lower bound.

    `seconds` is the time of a validation, so the PSNR was reached by then, maybe before; 0 is the untrained start.
    """
    rows = []
    for reference in (name for name in PUBLISHED if name in curves):
        _, steps, goal = curves[reference][-1]
        theirs = next(s for s, _, psnr in curves[reference] if psnr >= goal)
        for name, curve in curves.items():
            reached = next((s for s, _, psnr in curve if psnr >= goal), None)
            if name == reference or reached is None:
                continue
            row = {"goal_of": reference, "goal_psnr": round(goal, 3), "its_steps": steps}
            row |= {"its_seconds": round(theirs, 2), "variant": name, "seconds": round(reached, 2)}
            rows.append(row | {"ratio": round(theirs / reached, 1) if reached else "at the start"})
    return rows


def draw(curves: dict, path: Path) -> None:
    with axes_row(path, 1, width=6, height=4) as (axes,):
        for name, curve in curves.items():
            axes.plot([s for s, _, _ in curve], [p for _, _, p in curve], marker="o", markersize=3, label=name)
        axes.set_xlabel("processor time per thread, s")
        axes.set_ylabel("validation PSNR at 25/255, dB")
        axes.set_ylim(bottom=6)
        axes.legend(fontsize=7)
