"""Tasks that people come with, solved by `lf.reconstruct` with nothing tuned, beside what they would take instead.

    start        what the operator makes of y by itself: filtered back-projection, bicubic, a fill, the picture as it is
    automatic    lf.reconstruct(y, physics, noise=s): the same call for every task
    best         the best of `lf.reconstruct`'s own pilots and descents by the truth, over the weight of the prior:
                 what tuning could reach, not a method
    TV           converged (relative change 1e-5), its weight chosen on training images
    DPIR 8, 30   the flexible DnCNN, noise levels falling in 8 or 30 steps, its weight chosen on training images
    biharmonic   scikit-image, for inpainting;   SIRT, CGLS   for CT, CGLS stopped at the misfit of the noise
    circular     lf.reconstruct with the wrong model of a photograph: periodic borders

`world` blurs crops from larger photographs, whose borders no circular model made; `fan` is a fan beam of the ASTRA
toolbox, where it is installed, through `lf.physics.from_matrix`.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import lpn_fast as lf
from lpn_fast.per_sample import broadcast, dot
from lpn_fast.physics import (
    MRI,
    Blur,
    CompressedSensing,
    Downsampling,
    Inpainting,
    Matrix,
    ParallelBeamCT,
    from_matrix,
    start,
)

from . import baselines, data
from .ours import automatic
from .outcome import Outcome
from .quality import Scored, _line, _measured, _row
from .tasks import EXTENT, Instance, Task

WEIGHTS = (0.1, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # weights of the prior over that of MAP
TV_WEIGHTS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # in images in [0, 1], of a data term of curvature one
FEWEST = 20  # iterations: the first may leave a start as it is that fits the measurements
TRAIN_SIDE = 128  # at most, of the images that weights are chosen on: all weights are over the noise in the image
WORLD_RIM = 32  # pixels of the scene around the crop of a photograph


@dataclass(frozen=True)
class Everyday(Task):
    """A task; `kind` with its numbers in the name."""

    side: int = 128
    count: int = 4

    def instance(self, root: Path, part: str, count: int, side: int) -> Instance:
        """As of `Task`; the truth of a world blur is what lies in the frame."""
        kind = self.name.split("-")[0]
        seen = side + 2 * WORLD_RIM if kind == "world" else side
        x = getattr(data, self.images)(root, part, count, seen)
        x = x[..., : side - side % 3, : side - side % 3].contiguous() if self.name.startswith("downsample-3") else x
        operator, noise = self._operator(root, len(x), x.shape[-1])
        clean = operator.A(x)
        drawn = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(part == "train")))
        y = torch.where(lf.physics.seen(operator, clean), clean + noise * drawn, clean)
        return Instance(x, operator, y, noise, start(operator, y))

    def _operator(self, root: Path, samples: int, side: int):
        kind, *numbers = self.name.split("-")
        if kind == "inpaint":
            return Inpainting.random(side, seen=float(numbers[0]) / 100), 0.01
        if kind == "downsample":
            return Downsampling.gaussian(int(numbers[0])), 0.01
        if kind == "mri":
            return MRI.lines(side, acceleration=int(numbers[0])), 0.005
        if kind == "world":
            return Blur.gaussian(float(numbers[0]), boundary="valid"), 0.01
        if kind == "ct":
            share = side / data.CT_SIDE
            return ParallelBeamCT(side, round(200 * share), round(400 * share), extent=EXTENT, pixel=256 / side), 2.0
        if kind == "faces":
            return Blur.gaussian(float(numbers[0]), boundary="full", size="published"), float(numbers[1])
        if kind == "fan":
            return fan_beam(side), 0.5
        return CompressedSensing(side, ratio=1 / int(numbers[0])), 0.001


TASKS = (
    Everyday("ct-128", "slices", "FBP", None, 128, 4),
    Everyday("ct-512", "slices", "FBP", None, 512, 2),
    Everyday("fan-128", "slices", "start", None, 128, 4),
    Everyday("cs-4-128", "slices", "start", None, 128, 4),
    Everyday("cs-4-512", "slices", "start", None, 512, 1),
    Everyday("cs-16-512", "slices", "start", None, 512, 1),
    Everyday("inpaint-20", "photographs", "fill", None, 128, 4),
    Everyday("inpaint-50", "photographs", "fill", None, 128, 4),
    Everyday("inpaint-80", "photographs", "fill", None, 128, 4),
    Everyday("inpaint-50-color", "color_photographs", "fill", None, 128, 4),
    Everyday("downsample-2", "photographs", "bicubic", None, 128, 4),
    Everyday("downsample-2-color", "color_photographs", "bicubic", None, 128, 4),
    Everyday("downsample-3", "photographs", "bicubic", None, 128, 4),
    Everyday("mri-4", "slices", "zero-filled", None, 128, 4),
    Everyday("world-1.6", "photographs", "degraded", None, 128, 10),
    Everyday("world-3", "photographs", "degraded", None, 128, 10),
    *(
        Everyday(f"faces-{blur}-{noise}", "faces", "degraded", None, 128, 8)
        for blur in (1, 2)
        for noise in (0.02, 0.04)
    ),
)


def fan_beam(side: int):
    """A fan beam of ASTRA around the field of view: 180 angles over the circle, a flat detector of 1.5 side bins."""
    import astra

    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    bins = round(1.5 * side)
    volume = astra.create_vol_geom(side, side)
    geometry = astra.create_proj_geom("fanflat", 2.0, bins, angles, 2.0 * side, 2.0 * side)
    operator = astra.OpTomo(astra.create_projector("line_fanflat", geometry, volume))
    return from_matrix(operator, (1, side, side), (1, len(angles), bins))


def run(root: Path, tasks: str, methods: str, show=print) -> Iterator[Scored]:
    """Score every method on every task whose names match; `show` receives the table line by line."""
    for task in TASKS:
        if not re.search(tasks, task.name):
            continue
        if task.name.startswith("fan") and importlib.util.find_spec("astra") is None:
            show(f"{task.name:<15}skipped: the ASTRA toolbox is not installed")
            continue
        instance = task.instance(root, "validation", task.count, task.side)
        train = task.instance(root, "train", 1, min(task.side, TRAIN_SIDE))
        for name, prepare in _methods(task, root, train).items():
            if not re.search(methods, name):
                continue
            method = prepare()
            with torch.no_grad():
                outcome, *costs = _measured(method, instance)
            crop = getattr(instance.physics, "crop", lambda x: x)
            truth, found = crop(instance.x), outcome.x
            found = crop(found) if found.shape == instance.x.shape else found
            scored = Scored(task, name, "", replace(instance, x=truth), replace(outcome, x=found), {})
            row = _row(scored, *costs, task)
            psnr = lf.metrics.psnr(found.clamp(0, 1), truth)
            gain = psnr - lf.metrics.psnr(crop(instance.simple).clamp(0, 1), truth)
            row["least_gain"] = round(float(gain.min()), 3)  # over the start, of the image that has least
            show(_line(row))
            yield replace(scored, row=row)


def in_order(row: dict) -> tuple:
    """Tasks and methods as listed."""
    return [task.name for task in TASKS].index(row["task"]), METHODS.index(row["method"])


METHODS = ("start", "automatic", "best", "circular", "TV", "DPIR 8", "DPIR 30", "biharmonic", "SIRT", "CGLS")
Method = Callable[[Instance], Outcome]


def _methods(task: Task, root: Path, train: Instance) -> dict[str, Callable[[], Method]]:
    """Name -> what tunes a method on training images and gives it."""
    kind = task.name.split("-")[0]
    found: dict[str, Callable[[], Method]] = {
        "start": lambda: lambda i: Outcome(i.simple, 0),
        "automatic": lambda: automatic,
        "best": lambda: best,
        "TV": lambda: _tuned(converged_tv, TV_WEIGHTS, train),
    }
    if kind == "world":
        found["circular"] = lambda: circular
    if (root / "weights").is_dir():
        denoiser = baselines.FlexibleDnCNN(root, "color" if train.x.shape[1] == 3 else "gray")
        for steps in (8, 30):
            found[f"DPIR {steps}"] = lambda steps=steps: _tuned(
                lambda i, c: baselines.falling(denoiser, i, c, steps, i.noise / i.physics.norm()),
                baselines.TRUST_GRID,
                train,
            )
    if kind == "inpaint":
        found["biharmonic"] = lambda: biharmonic
    if kind in ("ct", "fan"):
        found["SIRT"], found["CGLS"] = lambda: sirt, lambda: cgls
    return found


def _tuned(method: Callable[[Instance, float], Outcome], grid: tuple[float, ...], train: Instance) -> Method:
    value = baselines.tuned(method, grid, train)
    return lambda instance: method(instance, value)


def best(instance: Instance) -> Outcome:
    """For every image the best pilot or descent over WEIGHTS, by the truth."""
    crop = getattr(instance.physics, "crop", lambda x: x)
    truth, found = crop(instance.x), []
    for weight in WEIGHTS:
        result = lf.reconstruct(instance.y, instance.physics, noise=instance.noise, weight=weight)
        found += [(weight, s.name, crop(s.x)) for s in result.stages if s.name != "start"]
    scores = torch.stack([lf.metrics.psnr(x.clamp(0, 1), truth) for *_, x in found])  # (pictures, N)
    chosen = scores.argmax(0).tolist()
    x = torch.stack([found[k][-1][n] for n, k in enumerate(chosen)])
    return Outcome(x, 0, config={"chosen": [found[k][:2] for k in chosen]})


def circular(instance: Instance) -> Outcome:
    """`lf.reconstruct` with periodic borders on the same picture."""
    physics = Blur(instance.physics.kernel, "circular")
    result = lf.reconstruct(instance.y, physics, noise=instance.noise)
    return Outcome(result.x, result.iterations, misfit=result.misfit.mean().item())


def converged_tv(instance: Instance, weight: float, tol: float = 1e-5, max_iter: int = 3000) -> Outcome:
    """min 1/2 |A x - y|^2 / ||A||^2 + weight TV(x) until the relative change is below `tol`.

    By Chambolle's and Pock's splitting (J. Math. Imaging Vis. 40, 2011) with the data prox, whose steps may be as long
    as the weight is small; for operators whose prox is an iteration itself, by gradients of the data term.
    """
    physics, y = instance.physics, instance.y
    if isinstance(physics, ParallelBeamCT | Matrix | Blur):
        scale = physics.norm() ** 2 / instance.noise**2  # weights of `total_variation` are over the noise's
        return baselines.total_variation(instance, weight * scale, max_iter, tol)
    tau = 0.05 / weight
    sigma, gamma = 0.99 / (8 * tau), tau / physics.norm() ** 2
    x = instance.simple
    u = torch.zeros(2, *x.shape)
    for done in range(1, max_iter + 1):
        new = physics.prox_l2(x - tau * baselines.differences_adjoint(u), y, gamma)
        u = u + sigma * baselines.differences(2 * new - x)
        u = u / (u.norm(dim=0) / weight).clamp_min(1)
        change, x = (new - x).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1), new
        if done >= FEWEST and bool((change <= tol).all()):
            break
    return Outcome(x, done, config={"weight": weight, "tol": tol})


def biharmonic(instance: Instance) -> Outcome:
    """scikit-image's inpainting."""
    from skimage.restoration import inpaint_biharmonic

    missing = (instance.physics.mask == 0).numpy()
    filled = [inpaint_biharmonic(y[0].numpy(), missing) for y in instance.y]
    return Outcome(torch.from_numpy(np.stack(filled)).float()[:, None], 0)


def sirt(instance: Instance, iterations: int = 100) -> Outcome:
    """Simultaneous iterative reconstruction: gradients over row and column sums."""
    physics, y = instance.physics, instance.y
    rows = physics.A(torch.ones_like(instance.x[:1])).clamp_min(1e-3)
    columns = physics.A_adjoint(torch.ones_like(y[:1])).clamp_min(1e-3)
    x = torch.zeros_like(instance.x)
    for _ in range(iterations):
        x = x + physics.A_adjoint((y - physics.A(x)) / rows) / columns
    return Outcome(x, iterations)


def cgls(instance: Instance, iterations: int = 100) -> Outcome:
    """Conjugate gradients on the normal equations, every image stopped at the misfit of the noise."""
    physics, y = instance.physics, instance.y
    x = torch.zeros_like(instance.x)
    residual = y.clone()
    s = physics.A_adjoint(residual)
    p, gamma = s, dot(s, s)
    limit = instance.noise * y[0].numel() ** 0.5
    for _ in range(iterations):
        active = residual.flatten(1).norm(dim=1) > limit
        if not bool(active.any()):
            break
        q = physics.A(p)
        step = torch.where(active, gamma / dot(q, q), 0.0)
        x, residual = x + broadcast(step, x) * p, residual - broadcast(step, q) * q
        s = physics.A_adjoint(residual)
        new = dot(s, s)
        p, gamma = s + broadcast(new / gamma, s) * p, new
    return Outcome(x, iterations)
