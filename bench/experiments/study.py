"""What makes the gradient of an input-convex network a good denoiser? PSNR at equal time, for one change at a time.

Every variant trains for the same processor time on crops of the training photographs at noise 25/255, its rate
rising for 20 steps, then falling on a cosine, and is measured on centre crops of the 32 validation photographs as time
goes by, early on more often, and after some numbers of steps. All variants are exact proxes for whatever weights they
end with, and so is the mean over the eight symmetries of the square, `psnr_symmetric` of the first group:

    psi_8(x) = 1/8 sum_T psi(T x),      f_8(x) = 1/8 sum_T T^-1 f(T x)

The variants are in VARIANTS, in groups: the published way and families ("ways"), and what is changed of ConvLPN
("start", "training", "heads", "activation", "shape", "alpha"). WCRR is not trained, its weights are in the data, and f
is not one pass there but a minimisation (bench/reconstruction/baselines.py).

`results.csv` keeps the variants and seeds that were measured before and are not named now, so the variants can be
measured one after the other and for different times. `sooner.csv` has the time after which others first reached what
the published ways reached on their way.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import lpn_fast as lf
from bench.reconstruction import data
from lpn_fast import metrics
from lpn_fast.data import Augment, ImageCrops
from lpn_fast.networks.initialise import initialise_as_
from lpn_fast.training import Phase, Trainer

from .denoising import Variational, baseline
from .figures import axes_row
from .provenance import ROOT, read_csv, where, write_among, write_csv

SIGMA = 25 / 255
SECONDS = 60.0
LOOKS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # validations, as shares of the time
STEP_LOOKS = (100, 200, 400)  # and after so many steps
WARMUP = 20  # steps
SEEDS = 10
VALIDATION_SIDE = 160
MARGIN = 8  # around crops, for filters of side 7: what the zeros around a crop reach


@dataclass(frozen=True)
class Variant:
    """How a network is built and trained."""

    group: str
    build: Callable[[], lf.LPN]
    rate: float
    loss: str = "l2"
    crop: int = 64
    batch: int = 8
    margin: int = 0
    falling: bool = True  # the rate, after a warm-up; else it is constant


def conv(group: str, start: str = "default", noise: float | None = SIGMA, rate: float = 4e-3, **changes) -> Variant:
    """ConvLPN as `lpn-fast train` builds and starts it, but for what is changed in it, its start and its training."""
    training = {key: changes.pop(key) for key in ("loss", "crop", "batch", "margin", "falling") if key in changes}
    size = {"hidden": 48} | changes
    return Variant(group, lambda: initialise_as_(lf.ConvLPN(1, **size), start, noise), rate, **training)


def ridge(**size) -> Variant:
    """RidgeLPN, the one-layer network: R is a sum of convex functions of filters."""
    return Variant("ways", lambda: initialise_as_(lf.RidgeLPN(1, **size), "default", SIGMA).project_(), 1e-2)


class ClampedMixture(lf.MixtureLPN):
    """Adam on W and w themselves, stopped at zero, as the other families train them."""

    def project_gradients_(self) -> lf.LPN:
        """Those of W and w as they are."""
        own = [p.grad.clone() for p in (self.stages[1].core, self.stages[1].head)]
        super().project_gradients_()
        for p, grad in zip((self.stages[1].core, self.stages[1].head), own, strict=True):
            p.grad.copy_(grad)
        return self

    step_ = lf.LPN.step_

    def step_scales(self) -> dict[str, float]:
        """Their sizes at the start, and the step of a logarithm for the experts' weights."""
        sizes = {f"stages.1.{name}": getattr(self.stages[1], name) for name in ("core", "head")}
        sizes = {name: p.detach().square().mean().sqrt().item() for name, p in sizes.items()}
        return super().step_scales() | sizes | {"stages.1.bias": 5.0, "stages.1.noise": 5.0}


framed = partial(Variant, "ways", rate=1e-3, margin=MARGIN)

VARIANTS = {
    # 128-pixel network, its start, l1, constant rate (arXiv 2310.14344; batches of 64 there)
    "published": Variant("ways", lambda: lf.paper_network("mayoct"), 1e-3, "l1", crop=128, falling=False),
    # ConvLPN in place of that network, all else as there but the crops
    "published-start": conv("ways", "published", rate=1e-3, loss="l1", falling=False),
    "multiscale": conv("ways"),
    "ridge": ridge(),
    "ridge-9": ridge(pairs=81, kernel=9),
    "frame": framed(lambda: lf.FrameLPN(1)),
    "mixture": framed(lambda: lf.MixtureLPN(1, experts=128), rate=3e-3),
    "frame-fast": framed(lambda: lf.FrameLPN(1), rate=3e-3),
    "mixture-fast": framed(lambda: lf.MixtureLPN(1, experts=128), rate=1e-2),
    "mixture-256": framed(lambda: lf.MixtureLPN(1, experts=256), rate=1e-2),
    "mixture-clamped": framed(lambda: ClampedMixture(1, experts=128), rate=3e-3),
    "mixture-clamped-fast": framed(lambda: ClampedMixture(1, experts=128), rate=1e-2),
    "frame-no-margin": framed(lambda: lf.FrameLPN(1), margin=0),
    "frame-narrow": framed(lambda: lf.FrameLPN(1, gates=((1, 1, 48),))),
    "frame-wide": framed(lambda: lf.FrameLPN(1, gates=((1, 1, 192),))),
    "frame-3x3": framed(lambda: lf.FrameLPN(1, gates=((3, 1, 96),))),
    "frame-two-stages": framed(lambda: lf.FrameLPN(1, gates=((1, 1, 96), (3, 1, 32)))),
    "frame-5": framed(lambda: lf.FrameLPN(1, kernel=5)),
    "frame-9": framed(lambda: lf.FrameLPN(1, kernel=9)),
    "as-it-comes": conv("start"),
    "start-published": conv("start", "published"),
    "start-principled": conv("start", "principled"),
    "start-no-thresholds": conv("start", noise=None),
    "start-half-thresholds": conv("start", noise=SIGMA / 2),
    "start-double-thresholds": conv("start", noise=2 * SIGMA),
    "rate-1e-3": conv("training", rate=1e-3),
    "rate-2e-3": conv("training", rate=2e-3),
    "rate-8e-3": conv("training", rate=8e-3),
    "rate-constant": conv("training", falling=False),
    "loss-l1": conv("training", loss="l1"),
    "loss-log": conv("training", loss="log"),
    "batch-4": conv("training", batch=4),
    "batch-16": conv("training", batch=16),
    "crop-96": conv("training", batch=4, crop=96),
    "margin-4": conv("training", margin=4),
    "heads-last": conv("heads", heads="last"),
    "no-squared-head": conv("heads", squared_head=False),
    "last-no-squared": conv("heads", heads="last", squared_head=False),
    "beta-5": conv("activation", beta=5.0),
    "beta-10": conv("activation", beta=10.0),
    "beta-20": conv("activation", beta=20.0),
    "beta-50": conv("activation", beta=50.0),
    "beta-200": conv("activation", beta=200.0),
    "width-8": conv("shape", hidden=8),
    "width-16": conv("shape", hidden=16),
    "width-32": conv("shape", hidden=32),
    "width-96": conv("shape", hidden=96),
    "one-stage": conv("shape", strides=(1,), hidden=50),
    "one-stage-180": conv("shape", strides=(1,), hidden=180),
    "three-stages": conv("shape", strides=(1, 2, 1)),
    "seven-stages": conv("shape", strides=(1, 2, 1, 2, 1, 2, 1)),
    "one-scale": conv("shape", strides=(1, 1, 1, 1, 1)),
    "kernel-1": conv("shape", kernel=1),
    "kernel-5": conv("shape", kernel=5),
    "skip-3": conv("shape", skip_kernel=3),
    "skip-7": conv("shape", skip_kernel=7),
    "alpha-1e-6": conv("alpha", alpha=1e-6),
    "alpha-1e-2": conv("alpha", alpha=1e-2),
    "alpha-0.1": conv("alpha", alpha=0.1),
    "alpha-0.3": conv("alpha", alpha=0.3),
    "alpha-0.5": conv("alpha", alpha=0.5),
    "alpha-0.8": conv("alpha", alpha=0.8),
}
PUBLISHED = ("published", "published-start")
REFERENCE = "as-it-comes"  # what the groups after the first change something of, trained as long as they are
WCRR = "wcrr"
GROUPS = tuple(dict.fromkeys(variant.group for variant in VARIANTS.values()))


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "study",
        help="PSNR at equal time of architectures, one change at a time",
        description=__doc__.splitlines()[0],
        epilog="examples:\n"
        "  python -m bench.experiments study --data shared/data --threads 1 --variants ridge frame wcrr\n"
        "  python -m bench.experiments study --data shared/data --threads 1 --variants shape alpha --seconds 30\n"
        "  python -m bench.experiments study --data shared/data --threads 1 --variants published --seconds 1500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: LPN_FAST_DATA)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=[*GROUPS, *VARIANTS, WCRR],
        metavar="NAME",
        default=list(GROUPS),
        help=f"variants, or groups of them: {', '.join(GROUPS)} (default: all groups); {WCRR}",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor time of each (default: %(default)s)")
    parser.add_argument("--images", type=int, default=32, help="validation photographs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", metavar="DIR", help="for CSV and figure (default: bench/results/study)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")


def run(args) -> int:
    if not args.seconds > 0 or not 1 <= args.images <= 32 or not 0 <= args.seed < SEEDS:
        raise ValueError(
            f"--seconds must be positive, --images 1 to 32 and --seed below {SEEDS}, got {args.seconds:g}, "
            f"{args.images} and {args.seed}"
        )
    torch.set_num_threads(args.threads)
    root = data.find(args.data)
    out = Path(args.out or ROOT / "bench" / "results" / "study")
    out.mkdir(parents=True, exist_ok=True)
    x = data.photographs(root, "validation", args.images, VALIDATION_SIDE)
    y = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(2024))
    names = [name for name in (*VARIANTS, WCRR) if named(name, args.variants)]
    for name in names:
        own = measured(name, root, x, y, args)
        write_among(out / "results.csv", own, ("variant", "seed"), in_order)
        last = own[-1]
        print(
            f"{name:24s} {last['parameters']:9,d} parameters, {last['steps']:5d} steps: {last['psnr']} dB, "
            f"over eight symmetries {last['psnr_symmetric'] or '-'}",
            flush=True,
        )
    rows = read_csv(out / "results.csv")
    curves = {seed: curve for seed in range(SEEDS) if (curve := read_curves(rows, seed))}
    draw(next(iter(curves.values())), out / "study.png")
    sooner = [{"seed": seed} | row for seed, some in curves.items() for row in how_much_sooner(some)]
    if sooner:
        write_csv(out / "sooner.csv", [row | where({}) for row in sooner])
    for row in sooner:
        if row["variant"] in ("multiscale", "frame", "mixture"):
            print(
                f"seed {row['seed']}: {row['goal_psnr']:.2f} dB, of {row['goal_of']} after {row['its_seconds']:.1f} s, "
                f"{row['its_steps']} steps: by {row['seconds']:.1f} s with {row['variant']}, ratio {row['ratio']}"
            )
    print(f"wrote {out / 'results.csv'} and {out / 'study.png'}")
    return 0


def named(name: str, asked: list[str]) -> bool:
    """Whether the variant or its group was asked for."""
    return name in asked or (name in VARIANTS and VARIANTS[name].group in asked)


def in_order(row: dict) -> tuple:
    """Variants as listed, then seeds."""
    return [*VARIANTS, WCRR].index(row["variant"]), int(row["seed"])


def read_curves(rows: list[dict], seed: int) -> dict[str, list[tuple[float, int, float]]]:
    """(seconds, steps, PSNR) of every variant that was trained with that seed."""
    curves = {}
    for row in rows:
        if row["variant"] != WCRR and int(row["seed"]) == seed:
            point = float(row["seconds"]), int(row["steps"]), float(row["psnr"])
            curves.setdefault(row["variant"], []).append(point)
    return curves


def measured(name: str, root: Path, x: Tensor, y: Tensor, args) -> list[dict]:
    """The rows of a variant, one for each look; the last may have the mean over symmetries, too."""
    if name == WCRR:
        return [minimised(root, x, y)]
    variant = VARIANTS[name]
    folder = root / "natural" / "bsds500"
    held_out = [Path(line).stem for line in (folder / "cbsd68.txt").read_text().split()]
    augment = Augment(contrast=1.0)
    crops = ImageCrops([str(folder / "train"), str(folder / "test")], variant.crop, 1, held_out, augment=augment)
    torch.manual_seed(args.seed)
    model = variant.build()
    if model.spec.image_size is not None:  # networks of one image size see the centre of the crops
        inset = (x.shape[-1] - variant.crop) // 2
        x, y = (t[..., inset : inset + variant.crop, inset : inset + variant.crop] for t in (x, y))
    level = SIGMA if model.is_noise_conditional else None

    @torch.no_grad()
    def psnr() -> float:
        return metrics.psnr(torch.cat([model(part, level) for part in y.split(4)]), x).mean().item()

    curve = train(model, variant, crops, args.seconds, args.seed, psnr)
    config = {key: getattr(variant, key) for key in ("rate", "loss", "crop", "batch", "margin", "falling")}
    config |= {"alpha": model.alpha, "beta": model.spec.beta, "images": args.images}
    rows = [
        {
            "variant": name,
            "group": variant.group,
            "seed": args.seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(seconds, 2),
            "steps": steps,
            "psnr": round(value, 3),
            "psnr_symmetric": "",
            **where(config),
        }
        for seconds, steps, value in curve
    ]
    if variant.group == GROUPS[0]:
        rows[-1]["psnr_symmetric"] = round(symmetric_psnr(model, x, y, level), 3)
    return rows


def train(model, variant: Variant, crops, seconds: float, seed: int, validate) -> list[tuple[float, int, float]]:
    """(processor seconds, steps, validation PSNR), the start included; validation is not on the clock."""
    phase = Phase(variant.loss, 10**9, variant.rate, warmup=WARMUP if variant.falling else 0)
    trainer = Trainer(
        model,
        crops,
        [phase],
        sigma=SIGMA,
        batch_size=variant.batch,
        seed=seed,
        margin=variant.margin,
        progress=False,
    )
    curve, spent = [(0.0, 0, validate())], 0.0
    looks = [seconds * share for share in LOOKS]
    while looks:
        began = time.process_time()
        if variant.falling:  # with the time, which a schedule of steps does not know
            trainer.rate_factor = max(0.5 * (1 + math.cos(math.pi * min(1.0, spent / seconds))), 0.02)
        trainer.advance()
        spent += (time.process_time() - began) / torch.get_num_threads()
        if spent >= looks[0] or trainer.step in STEP_LOOKS:
            curve.append((spent, trainer.step, validate()))
            looks = [look for look in looks if look > spent]
    return curve


@torch.no_grad()
def symmetric_psnr(model, x: Tensor, y: Tensor, level: float | None) -> float:
    """Mean PSNR of f_8."""
    total = torch.zeros_like(y)
    for turns in range(4):
        for mirrored in (False, True):
            turned = torch.rot90(y, turns, (-2, -1))
            turned = turned.flip(-1) if mirrored else turned
            part = torch.cat([model(piece.contiguous(), level) for piece in turned.split(4)])
            total += torch.rot90(part.flip(-1) if mirrored else part, -turns, (-2, -1))
    return metrics.psnr(total / 8, x).mean().item()


def minimised(root: Path, x: Tensor, y: Tensor) -> dict:
    """The row of WCRR; its seconds are those of no training."""
    method: Variational = baseline(WCRR, root)
    method.prepare(root, SIGMA, "photographs")
    found = [metrics.psnr(method(part, SIGMA), clean) for part, clean in zip(y.split(4), x.split(4), strict=True)]
    psnr = round(torch.cat(found).mean().item(), 3)
    row = {"variant": WCRR, "group": "ways", "seed": 0, "parameters": method.parameters, "seconds": 0.0, "steps": 0}
    return row | {"psnr": psnr, "psnr_symmetric": "", **where({"weight": method.weight, "images": len(x)})}


def how_much_sooner(curves: dict) -> list[dict]:
    """When variants were first seen at a PSNR that a published way was first seen at.

    The goals are the looks at which the published way was better than at all before. All times are those of looks: by
    then the PSNR was reached, maybe before.
    """
    rows = []
    for reference in (name for name in PUBLISHED if name in curves):
        best = curves[reference][0][2]
        for theirs, steps, goal in curves[reference][1:]:
            if goal <= best:
                continue
            best = goal
            for name, curve in curves.items():
                reached = next((s for s, _, psnr in curve if psnr >= goal), None)
                if name == reference or reached is None:
                    continue
                row = {"goal_of": reference, "goal_psnr": round(goal, 3), "its_steps": steps}
                row |= {"its_seconds": round(theirs, 2), "variant": name, "seconds": round(reached, 2)}
                rows.append(row | {"ratio": round(theirs / reached, 1) if reached else "at the start"})
    return rows


def draw(curves: dict, path: Path) -> None:
    """Curves of the families; for each other group what its changes end with, beside the reference."""
    groups = [group for group in GROUPS if any(VARIANTS[name].group == group for name in curves)]
    with axes_row(path, len(groups), width=4.2, height=4.2) as panels:
        for axes, group in zip(panels, groups, strict=True):
            members = [name for name in curves if VARIANTS[name].group == group]
            axes.set_title(group)
            if group == GROUPS[0]:
                for name in members:
                    axes.plot(*zip(*((s, p) for s, _, p in curves[name][1:]), strict=True), marker=".", label=name)
                axes.set_xscale("log")
                axes.set_xlabel("processor time per thread, s")
                axes.set_ylabel("validation PSNR at 25/255, dB")
                axes.legend(fontsize=6)
                continue
            names = list(dict.fromkeys([*([REFERENCE] if REFERENCE in curves else []), *members]))[::-1]
            ends = [curves[name][-1][2] for name in names]
            axes.barh(names, ends, color=["C1" if name == REFERENCE else "C0" for name in names])
            axes.set_xlim(max(min(ends), max(ends) - 2) - 0.1, max(ends) + 0.05)
            axes.set_xlabel("PSNR at the end, dB")
            axes.tick_params(axis="y", labelsize=7)
