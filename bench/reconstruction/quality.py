"""One row per task and method.

PSNR of images clipped to [0, 1], range 1; SSIM as scikit-image's default (uniform window) and with the Gaussian
window. Seconds are of the wall clock, and of all cores together (which other jobs disturb less); tuning is not counted.
The peak is memory above what was resident before.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import lpn_fast as lf
from lpn_fast.benchmark.memory import status

from ..experiments.provenance import where
from . import baselines, ours
from .outcome import Outcome
from .tasks import TASKS, Instance, Task


@dataclass(frozen=True)
class Effort:
    """How much of everything; `sides` of photographs and slices."""

    photographs: int
    photograph_side: int
    slices: int
    slice_side: int
    train: int
    iterations: int
    tv_iterations: int
    ridge_iterations: int
    thinned: int = 1  # every so many of the values that a method may be tuned to
    methods: str = ""  # a regular expression

    def grid(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values that are tried."""
        return values[:: self.thinned]


FULL = Effort(16, 160, 14, 512, 2, 100, 300, 200)
MAIN_METHODS = "degraded|FBP|squares|TV|DnCNN|WCRR|BM3D|auto|fista|tuned|falling|admm|publ|cont"
MAIN = Effort(8, 96, 2, 128, 2, 60, 200, 80, methods=MAIN_METHODS)
QUICK = Effort(2, 64, 1, 128, 1, 15, 30, 15, thinned=2)
QUICK_TASKS = ("deblur-1-0.04", "ct")


@dataclass(frozen=True)
class Scored:
    """A task, a method, its images and its row."""

    task: Task
    method: str
    model: str  # its name, "" for the methods of others
    instance: Instance
    outcome: Outcome
    row: dict


def run(
    root: Path, models: dict[str, object], tasks: str, methods: str, effort: Effort, show=print
) -> Iterator[Scored]:
    """Score every method on every task whose names match, ours with every model by its name.

    `show` receives the table line by line.
    """
    heads = f"{'task':<15}{'method':<16}{'model':<22}{'PSNR':>16}{'SSIM':>16}"
    show(f"{heads}{'iterations':>12}{'s/image':>9}{'MB':>7}  outside  misfit")
    for task in TASKS:
        if not re.search(tasks, task.name):
            continue
        photographs = task.images == "photographs"
        count, side = (
            (effort.photographs, effort.photograph_side) if photographs else (effort.slices, effort.slice_side)
        )
        instance = task.instance(root, "validation", count, side)
        train = task.instance(root, "train", effort.train, side)
        candidates = [("", *method) for method in _others(task, root, train, effort)]
        for name, model in models.items():
            candidates += [(name, *method) for method in _ours(task, model, train, effort)]
        for name, method, solve, reason in candidates:
            if not re.search(methods or effort.methods, method):
                continue
            if reason:
                show(f"{task.name:<15}{method:<16}skipped: {reason}")
                continue
            call = solve()
            with torch.no_grad():
                outcome, *costs = _measured(call, instance)
            scored = Scored(task, method, name, instance, outcome, {})
            row = _row(scored, *costs, effort)
            show(_line(row))
            yield replace(scored, row=row)


def in_order(row: dict) -> tuple:
    """Tasks as listed, the methods of others before ours, then models."""
    return [task.name for task in TASKS].index(row["task"]), row["model"]


# (name, what tunes it and gives the method, why it cannot run)
Candidate = tuple[str, Callable[[], Callable[[Instance], Outcome]], str | None]


def _others(task: Task, root: Path, train: Instance, effort: Effort) -> Iterator[Candidate]:
    """What a user would take instead."""
    yield task.simple, lambda: lambda i: Outcome(i.simple, 0), None

    def tv():
        def method(instance, c):
            return baselines.total_variation(instance, c, effort.tv_iterations)

        c = baselines.tuned(method, effort.grid(baselines.TV_GRID), train)
        return lambda i: method(i, c)

    def dncnn(steps):
        denoiser = baselines.FlexibleDnCNN(root)

        def method(instance, c):
            return baselines.falling(denoiser, instance, c, steps)

        c = baselines.tuned(method, effort.grid(baselines.TRUST_GRID), train)
        return lambda i: method(i, c)

    def wcrr():
        regulariser = baselines.RidgeRegulariser(root)

        def method(instance, c):
            return baselines.ridges(regulariser, instance, c, effort.ridge_iterations)

        c = baselines.tuned(method, effort.grid(baselines.WCRR_GRID), train)
        return lambda i: method(i, c)

    def bm3d():
        c = baselines.tuned(baselines.bm3d, (0.02, 0.05, 0.1), train)
        return lambda i: baselines.bm3d(i, c)

    def pnp_bm3d():
        def method(instance, c):
            return baselines.falling(baselines.block_matching, instance, c)

        c = baselines.tuned(method, effort.grid(baselines.TRUST_GRID), train)
        return lambda i: method(i, c)

    missing = None if (root / "weights").is_dir() else "no folder weights in the data"
    yield "TV", tv, None
    yield "PnP-DnCNN", partial(dncnn, 8), missing
    yield "PnP-DnCNN-30", partial(dncnn, 30), missing
    yield "WCRR", wcrr, missing
    yield "BM3D", bm3d, baselines.why_no_bm3d()
    yield "PnP-BM3D", pnp_bm3d, baselines.why_no_bm3d()
    yield "lpn-automatic", lambda: ours.automatic, None


def _ours(task: Task, model, train: Instance, effort: Effort) -> Iterator[Candidate]:
    """The package's solvers with a model."""

    def tuned():
        def method(instance, c):
            return ours.theorem("lpn-fista", model, instance, effort.iterations, assumed=c)

        c = baselines.tuned(method, effort.grid(ours.ASSUMED_GRID), train)
        return lambda i: method(i, c)

    def falling():
        def method(instance, c):
            return baselines.falling(lambda x, level: model(x, sigma=level), instance, c)

        c = baselines.tuned(method, effort.grid(baselines.TRUST_GRID), train)
        return lambda i: method(i, c)

    yield "lpn-tuned", tuned, None
    yield "lpn-falling", falling, None if model.is_noise_conditional else "the model knows one noise level"
    if task.images == "slices":
        yield "lpn-continued", lambda: lambda i: ours.continued(model, i, effort.iterations), None
    for name in ours.METHODS:
        yield name, lambda name=name: lambda i: ours.theorem(name, model, i, effort.iterations), None
    no_settings = None if task.published else "nothing of the kind was published"
    yield "lpn-published", lambda: lambda i: ours.published(task, model, i), no_settings


def _measured(call: Callable[[Instance], Outcome], instance: Instance) -> tuple[Outcome, float, float, float | str]:
    """(result, seconds, seconds of all cores, peak MB above what was resident, "" where the system does not tell)."""
    reset = Path("/proc/self/clear_refs")
    before = None
    if reset.exists():
        reset.write_text("5")  # resets the high-water mark
        before = status("VmRSS")
    started, cores = time.perf_counter(), time.process_time()
    outcome = call(instance)
    seconds, cores = time.perf_counter() - started, time.process_time() - cores
    return outcome, seconds, cores, "" if before is None else round(max(0, status("VmHWM") - before) / 1024, 1)


def _row(scored: Scored, seconds: float, cores: float, megabytes: float | str, effort: Effort) -> dict:
    x, truth, outcome = scored.outcome.x.clamp(0, 1), scored.instance.x, scored.outcome
    values = {
        "psnr": lf.metrics.psnr(x, truth),
        "ssim": lf.metrics.ssim(x, truth),
        "ssim_gaussian": lf.metrics.ssim(x, truth, window="gaussian"),
    }
    iterations = torch.as_tensor(outcome.iterations, dtype=torch.float64)
    row = {
        "task": scored.task.name,
        "method": scored.method,
        "model": scored.model,
        "images": len(x),
        "side": x.shape[-1],
    }
    for name, value in values.items():
        row |= {f"{name}_mean": round(value.mean().item(), 4), f"{name}_std": round(_deviation(value), 4)}
    return row | {
        "iterations": round(iterations.mean().item(), 1),
        "converged": outcome.converged,
        "seconds_per_image": round(seconds / len(x), 4),
        "core_seconds_per_image": round(cores / len(x), 4),
        "peak_mb": megabytes,
        "outside_factor": outcome.outside,
        "misfit": outcome.misfit,
        **where(outcome.config | {"effort": effort.__dict__}),
    }


def _deviation(values: Tensor) -> float:
    return values.std().item() if len(values) > 1 else 0.0


def _line(row: dict) -> str:
    psnr, ssim = (f"{row[k + '_mean']:.{d}f} +- {row[k + '_std']:.{d}f}" for k, d in (("psnr", 2), ("ssim", 3)))
    outside, misfit = (f"{row[k]:.3g}" if isinstance(row[k], float) else "" for k in ("outside_factor", "misfit"))
    megabytes = f"{row['peak_mb']:.0f}" if row["peak_mb"] != "" else ""
    return (
        f"{row['task']:<15}{row['method']:<16}{row['model']:<22}{psnr:>16}{ssim:>16}{row['iterations']:>12}"
        f"{row['seconds_per_image']:>9.2f}{megabytes:>7}  {outside:>7}{misfit:>8}"
    )
