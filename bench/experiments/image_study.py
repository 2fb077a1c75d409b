"""What a learned prior of images knows, by the loss it was trained with: the common part of `faces`, `ct` and `cs`.

For each loss (proximal matching, l1, l2) a network is trained, or read where its run is finished, and measured on
images it has not seen:

    hits.csv             how often f(x + noise) hits x within gamma: nearness to the MAP denoiser (hits.py)
    prior.csv            R under noise, blur, mixing, and on the way to the degraded image (perturbations.py)
    reconstruction.csv   PSNR and SSIM of the inverse problems, with the published settings and inside a theorem

p is not known for images, so that R = -sigma^2 log p cannot be checked number by number; `gray-levels` does that on
one-dimensional marginals of the same images. What matching can do more than l2 depends on its last gamma: at the
published 0.08 sqrt(n) the errors are well inside gamma and the loss is almost the square (`reach` in hits.csv), so the
short setting trains once more with a gamma that is narrower than the errors.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import lpn_fast as lf
from bench.reconstruction import data, ours
from bench.reconstruction.tasks import Instance, Task
from lpn_fast.training.denoiser import denoising_figures
from lpn_fast.training.schedule import GAMMA_MIN

from . import hits, perturbations, three_losses
from .domains import Domain
from .figures import axes_row
from .provenance import ROOT, where, write_csv
from .tiles import Tiled

TOLERATED = 0.02  # relative excess of hits that counts as more


@dataclass(frozen=True)
class Setting:
    """How much of everything."""

    steps: int
    batch: int
    crop: int  # side of training crops
    side: int  # the images', also of those that inverse problems are posed with
    hidden: int | None  # channels of a fully convolutional network; None: the published one
    levels: tuple[float, ...]  # noise: one network for each
    gamma_min: tuple[float, ...]  # last gamma of matching over sqrt(n): a network for each
    count: int  # images that are reconstructed
    prior_count: int  # images whose R is evaluated
    prior_side: int
    hit_count: int  # crops that hits are counted on
    iterations: int  # inside the theorem


QUICK = Setting(12, 2, 16, 32, 4, (0.1,), (0.015,), 1, 2, 16, 4, 3)
SHORT = Setting(1500, 16, 32, 128, 24, (0.1,), (0.015, GAMMA_MIN), 4, 8, 64, 512, 40)
PUBLISHED = Setting(40_000, 64, 128, 128, None, (0.1,), (GAMMA_MIN,), 20, 100, 128, 512, 100)


@dataclass(frozen=True)
class Study:
    """One experiment: a domain, the tasks posed on it, and how the full setting differs from PUBLISHED."""

    name: str
    domain: Domain
    tasks: tuple[Task, ...]
    published: Setting


def add_study_parser(subparsers, study: Study, text: str) -> None:
    """The command of a study."""
    parser = subparsers.add_parser(
        study.name,
        help=text,
        description=f"{text}. Trains a network with each of three losses (interrupted runs resume, finished ones are "
        "read), then evaluates. The default is a small network and a short training, about 20 minutes on two cores.",
        epilog=f"examples:\n  python -m bench.experiments {study.name} --data ../shared/data\n"
        f"  python -m bench.experiments {study.name} --published --device cuda\n"
        f"  python -m bench.experiments {study.name} --quick --out look",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", help="data folder (default: $LPN_FAST_DATA, or shared/data beside the project)")
    add("--out", metavar="DIR", help="for tables and figures (default: bench/results/NAME, or NAME_published)")
    add("--runs", metavar="DIR", default="runs", help="training runs and pictures (default: %(default)s)")
    add("--model", metavar="CHECKPOINT", help="evaluate this network, train none")
    add("--loss", nargs="+", choices=three_losses.LOSSES, default=three_losses.LOSSES, help="default: all three")
    add("--train-only", action="store_true", help="train and stop; the same command without it goes on")
    add("--gamma-min", nargs="+", type=float, metavar="G", help="last gamma of matching over sqrt(n), one or several")
    add("--steps", type=int, help="of training, for each loss")
    add("--count", type=int, help="images to reconstruct")
    add("--device", default="cpu", help="default: %(default)s")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--published", action="store_true", help="the full published setting: days on a CPU")
    size.add_argument("--quick", action="store_true", help="seconds, to see it work; proves nothing")
    parser.set_defaults(study=study)


def run(args) -> int:
    """The experiment of a parser made by `add_study_parser`."""
    study: Study = args.study
    torch.set_num_threads(args.threads)
    if args.quick and not args.out:
        raise ValueError("--quick requires --out DIR: its results are not for bench/results")
    setting = study.published if args.published else QUICK if args.quick else SHORT
    changes = {"steps": args.steps, "count": args.count, "gamma_min": args.gamma_min and tuple(args.gamma_min)}
    setting = replace(setting, **{name: value for name, value in changes.items() if value is not None})
    folder = study.name + "_published" * args.published
    out = Path(args.out or ROOT / "bench" / "results" / folder)
    root, runs = data.find(args.data), Path(args.runs)
    networks = {}
    for loss, sigma, model in _networks(args, study, setting, root, runs):
        networks[loss, sigma] = model
    if args.train_only:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    config = {"setting": setting.__dict__}
    closer = count_hits(study, setting, networks, root, out, config)
    rising = evaluate_prior(study, setting, networks, root, out, config)
    reconstruct(study, setting, networks, root, out, runs / folder, config)
    print(f"wrote tables and figures to {out}")
    print(f"after proximal matching R rises with noise: {'yes' if rising else 'NO'}")
    print(f"proximal matching hits more often than l1 and l2 within its last gamma: {'yes' if closer else 'NO'}")
    return 0 if (rising and closer) or args.quick else 1


def _networks(args, study: Study, setting: Setting, root: Path, runs: Path) -> Iterator[tuple[str, float, lf.LPN]]:
    """(loss, noise level, network), trained, resumed or read."""
    if args.model:
        model = lf.load(args.model).to(args.device).requires_grad_(False)
        yield model.card.get("loss", "given"), model.card["sigma"], model
        return
    domain, crops = study.domain, None
    crop = 128 if setting.hidden is None else setting.crop
    entries = domain.channels * crop**2
    schedule = three_losses.short_phases if setting.hidden else three_losses.full_phases
    for sigma in setting.levels:
        for loss, gamma_min in _variants(args.loss, setting):
            crops = crops or domain.crops(root, setting.side, crop, args.device)
            size = f"h{setting.hidden}" if setting.hidden else "published"
            gamma = f"-g{gamma_min:g}" if loss == "matching" else ""
            folder = runs / f"{domain.name}-{size}-{setting.side}-{setting.steps}" / f"{loss}-{sigma:g}{gamma}"
            print(f"{loss} at noise {sigma:g}: {folder}", flush=True)
            card = {"data": domain.name, "loss": loss, "steps": setting.steps}
            model = three_losses.train(
                lambda: _build(domain, setting),
                crops,
                schedule(loss, setting.steps, entries, gamma_min),
                sigma=sigma,
                batch=setting.batch,
                folder=folder,
                card=card | ({"gamma_min": gamma_min} if loss == "matching" else {}),
                device=args.device,
            )
            yield _label(loss, gamma_min, setting), sigma, model


def _variants(losses, setting: Setting) -> Iterator[tuple[str, float]]:
    """(loss, last gamma over sqrt(n)); the gamma of l1 and l2 means nothing."""
    for loss in losses:
        for gamma_min in setting.gamma_min if loss == "matching" else setting.gamma_min[:1]:
            yield loss, gamma_min


def _label(loss: str, gamma_min: float, setting: Setting) -> str:
    """What tables call a network: "matching" is that of the first gamma."""
    return loss if gamma_min == setting.gamma_min[0] else f"{loss} {gamma_min:g}"


def _build(domain: Domain, setting: Setting) -> lf.LPN:
    if setting.hidden is None:
        return lf.paper_network(domain.network)
    return lf.ConvLPN(domain.channels, hidden=setting.hidden)


# ---- hits


def count_hits(study: Study, setting: Setting, networks, root: Path, out: Path, config) -> bool:
    """Write hits.csv and hits.png; whether matching hits most often within its (first) last gamma, at every level."""
    gamma_min = setting.gamma_min[0]
    crop = 128 if setting.hidden is None else setting.crop
    clean = _validation_crops(study.domain, root, setting, crop)
    table, closer = [], True
    for (loss, sigma), model in networks.items():
        for row in hits.rows(hits.distances(model, clean, sigma), clean[0].numel()):
            table.append({"loss": loss, "sigma": sigma, "steps": setting.steps, **row, **where(config)})
    write_csv(out / "hits.csv", table)
    for sigma in setting.levels:
        level = [row for row in table if row["sigma"] == sigma]
        hits.draw(level, out / f"hits{f'_{sigma:g}' if len(setting.levels) > 1 else ''}.png", gamma_min)
        at = min(hits.WIDTHS, key=lambda width: abs(math.log(width / gamma_min)))
        found = {row["loss"]: row for row in level if row["gamma_per_root_n"] == at}
        for loss, row in found.items():
            print(f"noise {sigma:g}, {loss}: hits within {at:g} sqrt(n): {row['hits']:.4f}, reach {row['reach']:.2f}")
        if "matching" in found:
            others = [row["hits"] for loss, row in found.items() if loss in ("l1", "l2")]
            closer &= all(found["matching"]["hits"] > (1 + TOLERATED) * hit for hit in others)
    return closer


def _validation_crops(domain: Domain, root: Path, setting: Setting, crop: int) -> Tensor:
    """Crops on a grid of images that were not trained on, (at most hit_count, C, crop, crop)."""
    per_image = (setting.side // crop) ** 2
    images = domain.images(root, "validation", -(-setting.hit_count // per_image), setting.side)
    cut = images.unfold(2, crop, crop).unfold(3, crop, crop)  # [N, C, rows, columns, crop, crop]
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, domain.channels, crop, crop)[: setting.hit_count]


# ---- R


def evaluate_prior(study: Study, setting: Setting, networks, root: Path, out: Path, config) -> bool:
    """Write prior.csv and prior.png; whether R of proximal matching rises as it should."""
    side = 128 if setting.hidden is None else setting.prior_side
    degraded = study.tasks[0].instance(root, "validation", setting.prior_count, setting.side)
    clean, measured = (_centre(t, side) for t in (degraded.x, degraded.simple))
    rows = []
    for (loss, sigma), model in networks.items():
        if sigma != setting.levels[-1]:
            continue
        quality = denoising_figures(model, clean, [sigma])
        print(f"{loss}: denoises to {quality[f'psnr@{sigma:g}']:.2f} dB at noise {sigma:g}")
        for row in perturbations.evaluate(model, clean, degraded=measured):
            rows.append(
                {"loss": loss, "sigma": sigma, "steps": setting.steps, **row, **_plain(quality), **where(config)}
            )
            print(perturbations.line(row), flush=True)
        write_csv(out / "prior.csv", rows)
    perturbations.draw(rows, out / "prior.png")
    return perturbations.report(rows, claimed=("noise",))


def _plain(quality: dict) -> dict:
    """Figures without the level in their names."""
    return {f"denoising_{name.partition('@')[0]}": value for name, value in quality.items()}


def _centre(images: Tensor, side: int) -> Tensor:
    top, left = ((n - side) // 2 for n in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


# ---- inverse problems


def reconstruct(study: Study, setting: Setting, networks, root: Path, out: Path, pictures: Path, config) -> None:
    """Write reconstruction.csv and reconstruction.png, and pictures of the first image to another folder."""
    rows = []
    for task in study.tasks:
        instance = task.instance(root, "validation", setting.count, setting.side)
        shown = [("truth", instance.x[0]), (task.simple, instance.simple[0])]
        rows.append(_score(task.name, task.simple, "", instance, instance.simple, setting, config))
        for loss in dict.fromkeys(loss for loss, _ in networks):
            # at the level that is published for the task, else the nearest there is
            sigma = min((s for name, s in networks if name == loss), key=lambda s: abs(s - task.published.sigma))
            for kind, outcome in _solved(task, networks[loss, sigma], instance, setting):
                rows.append(_score(task.name, loss, kind, instance, outcome.x.cpu(), setting, config, outcome))
                shown.append((f"{loss}, {kind}", outcome.x[0].cpu()))
        write_csv(out / "reconstruction.csv", rows)
        pictures.mkdir(parents=True, exist_ok=True)
        draw_pictures(shown, pictures / f"{task.name}.png")
    draw_scores(rows, out / "reconstruction.png")


def _solved(task: Task, model: lf.LPN, instance: Instance, setting: Setting):
    """(settings, outcome): the published ones, and PGD inside its theorem where the network takes the image whole.

    Both with the fixed prox of the published method, strength 1: the step is then the weight of the data.
    """
    fixed = model.spec.image_size
    fits = fixed is None or fixed == tuple(instance.x.shape[-2:])
    yield "published", ours.published(task, model if fits else Tiled(model, fixed[0] // 2), instance)
    if fits:
        yield "theorem", ours.theorem("lpn-pgd", model, instance, setting.iterations, strength=1.0)


def _score(
    task: str, loss: str, kind: str, instance: Instance, x: Tensor, setting: Setting, config, outcome=None
) -> dict:
    x = x.clamp(0, 1)
    psnr, ssim = lf.metrics.psnr(x, instance.x), lf.metrics.ssim(x, instance.x)
    row = {
        "task": task,
        "loss": loss,
        "settings": kind,
        "images": len(x),
        "side": x.shape[-1],
        "psnr_mean": round(psnr.mean().item(), 3),
        "psnr_std": round(psnr.std(correction=0).item(), 3),
        "ssim_mean": round(ssim.mean().item(), 4),
        "iterations": "" if outcome is None else float(torch.as_tensor(outcome.iterations, dtype=torch.float64).mean()),
        "outside_factor": "" if outcome is None else outcome.outside,
        "steps": setting.steps,
        **where(config),
    }
    print(f"{task:16s} {loss:14s} {kind:10s} {row['psnr_mean']:.2f} +- {row['psnr_std']:.2f} dB", flush=True)
    return row


def draw_scores(rows: list[dict], path: Path) -> None:
    """Bars of the mean PSNR, a panel per task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with axes_row(path, len(tasks), width=3.2) as panels:
        for axes, task in zip(panels, tasks, strict=True):
            mine = [row for row in rows if row["task"] == task]
            names = [f"{row['loss']} {row['settings']}".strip() for row in mine]
            axes.barh(names[::-1], [row["psnr_mean"] for row in mine][::-1])
            axes.set_xlim(left=min(row["psnr_mean"] for row in mine) - 1)
            axes.set_title(task)
            axes.set_xlabel("PSNR, dB")
            axes.tick_params(axis="y", labelsize=7)


def draw_pictures(shown: list[tuple[str, Tensor]], path: Path) -> None:
    """Images (C, H, W) side by side."""
    with axes_row(path, len(shown), width=1.9, height=2.3) as panels:
        for axes, (title, image) in zip(panels, shown, strict=True):
            image = image.clamp(0, 1)
            axes.imshow((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=8)
            axes.axis("off")
