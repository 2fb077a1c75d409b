"""`python -m bench.reconstruction.front`: the picture at the head of the README, and its figures as a table.

One photograph that no method has seen (scikit-image's cat), blurred by a Gaussian of 1.6 pixels, with noise of 0.02:
measured, total variation, PnP-DnCNN and `lf.reconstruct`. The weights of the first two are chosen on a training
photograph, ours has nothing to choose. Seconds are those of one core, for all methods alike.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage import color
from skimage import data as pictures

import lpn_fast as lf

from ..experiments.provenance import where, write_csv
from . import baselines, data
from .ours import automatic
from .outcome import Outcome
from .quality import _measured
from .tasks import Instance

SIDE, BLUR, NOISE = 192, 1.6, 0.02
TRUSTS = (0.03, 0.06, *baselines.TRUST_GRID)  # the least of the usual ones would be chosen here
OUT = Path("bench/results/front")


def instance(truth: torch.Tensor, seed: int) -> Instance:
    """The photographs (N, 1, H, W), blurred and with noise."""
    physics = lf.physics.Blur.gaussian(BLUR)
    y = physics.A(truth) + NOISE * torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    return Instance(truth, physics, y, NOISE, y)


def cat() -> torch.Tensor:
    """The middle of the photograph in gray, (1, 1, SIDE, SIDE) in [0, 1]."""
    gray = torch.from_numpy(color.rgb2gray(pictures.chelsea())).float()
    top, left = ((size - SIDE) // 2 for size in gray.shape)
    return gray[None, None, top : top + SIDE, left : left + SIDE]


def draw(panels: list[tuple[str, torch.Tensor]], path: Path) -> None:
    """The images beside each other, each with its lines of text."""
    figure = Figure(figsize=(2.2 * len(panels), 2.75), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image[0, 0].clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, write the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="the data folder (default: $LPN_FAST_DATA, or shared/data beside the project)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = data.find(args.data)
    given, train = instance(cat(), 0), instance(data.photographs(root, "train", 1, SIDE), 1)
    denoiser = baselines.FlexibleDnCNN(root, "gray")

    def dncnn(problem: Instance, trust: float) -> Outcome:
        return baselines.falling(denoiser, problem, trust)

    weight = baselines.tuned(baselines.total_variation, baselines.TV_GRID, train)
    trust = baselines.tuned(dncnn, TRUSTS, train)
    methods = {
        "measured": lambda i: Outcome(i.y, 0),
        "total variation": lambda i: baselines.total_variation(i, weight),
        "PnP-DnCNN": lambda i: dncnn(i, trust),
        "lf.reconstruct": automatic,
    }
    rows, panels = [], []
    for name, method in methods.items():
        _measured(method, given)  # a first call reads models and plans transforms
        outcome, _, seconds, _ = _measured(method, given)
        psnr = float(lf.metrics.psnr(outcome.x.clamp(0, 1), given.x))
        chosen = {"TV weight": weight, "DnCNN trust": trust}
        row = {
            "method": name,
            "psnr": round(psnr, 2),
            "core_seconds": round(seconds, 2),
            "iterations": int(outcome.iterations),
        }
        rows.append(row | where({"blur": BLUR, "noise": NOISE, "side": SIDE} | chosen))
        time = "" if name == "measured" else f", {seconds:.2f} s"
        panels.append((f"{name}\n{psnr:.2f} dB{time}", outcome.x))
        print(rows[-1])
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "front.csv", rows)
    draw([*panels, ("truth\n", given.x)], args.out / "front.png")


if __name__ == "__main__":
    main()
