"""All works of some models over batches and sizes: warmed up, checked against float64, timed in turns.

Ways are this package's backends that can run a work, eager torch and torch.compile of the same network. Whoever cannot
run, or is wrong, is left out with the reason; nothing falls back.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from ..ops import plain_torch, registry
from ..ops.explicit import kernels, plain
from . import ceilings, memory, power, works
from .ceilings import Ceilings
from .results import Result, Row
from .surroundings import surroundings
from .timing import interleaved, spread, wait_for
from .works import OPS, Provider, Setup

ALLOWED = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}  # relative errors; beyond it a time means nothing
NAMES = {"hvp": "Hessian product", "step": "training step", "invert": "inversion", "reconstruct": "reconstruction"}
KEPT = 1  # samples whose results are checked: the truth is slow
BACKENDS = ("cpu", "cuda", "triton", "torch")


@dataclass(frozen=True)
class Options:
    """What is measured of every model: works, batches, sizes of images, ways, seconds per line of the table."""

    ops: tuple[str, ...] = OPS
    batches: tuple[int, ...] = (4,)
    sizes: tuple[tuple[int, ...], ...] = ((128,),)  # of images and volumes; one number is a side of all axes
    precision: str = "fp32"
    compiled: bool = True
    seconds: float = 1.0
    rounds: int = 25


def run(models: dict[str, torch.nn.Module], options: Options, show: Callable[[Row], None]) -> Result:
    """Measure every work of every model; `show` receives each row as it is found."""
    device = next(next(iter(models.values())).parameters()).device
    limits = ceilings.measure(min(4.0, 4 * options.seconds), device, special=True)
    rows: list[Row] = []
    skipped: list[str] = []
    for name, model in models.items():
        for shape in _shapes(model, options):
            for op in options.ops:
                reason = _inapplicable(model, op)
                if reason:
                    skipped.append(f"{name} {NAMES.get(op, op)}: {reason}")
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # made-up inputs are in nobody's units
                    for row in _measure(
                        name, Setup(model, op, shape, options.precision, KEPT), options, limits, skipped
                    ):
                        rows.append(row)
                        show(row)
    return Result(surroundings(torch.get_num_threads(), device), asdict(limits), rows, list(dict.fromkeys(skipped)))


def _shapes(model, options: Options) -> Iterator[tuple[int, ...]]:
    spec = model.spec
    for batch in options.batches:
        if spec.is_dense:
            yield batch, spec.channels
        else:
            sizes = (spec.image_size,) if spec.image_size else options.sizes
            for size in sizes:
                size = size * spec.ndim if len(size) == 1 else size
                if len(size) != spec.ndim:
                    raise ValueError(
                        f"--size must be {'x'.join(spec.axes)} for this model, got {'x'.join(map(str, size))}"
                    )
                yield batch, spec.channels, *size


def _inapplicable(model, op: str) -> str | None:
    spec = model.spec
    explicit = spec.kind == "explicit"
    if op == "gradient of R" and not explicit:
        return "R of this network is an inversion"
    if explicit and op in ("step", "invert"):
        return "its inverse is one gradient of R" if op == "invert" else "not measured of explicit priors"
    if op == "reconstruct" and (spec.is_dense or spec.image_size or spec.ndim == 3):
        return "for images of any size only"
    return None


def _measure(name: str, setup: Setup, options: Options, limits: Ceilings, skipped: list[str]) -> Iterator[Row]:
    what = f"{name} {NAMES.get(setup.op, setup.op)}"
    truth, found, errors = setup.truth(), {}, {}
    for way, make in _ways(setup, options, skipped).items():
        try:
            provider = make()
            error = works.relative_error(provider.result(provider.call()), truth)
        except Exception as failure:  # of a compiler, a launch, memory; or a solver that sees it cannot go on
            skipped.append(f"{what}, {way}: {type(failure).__name__}: {str(failure).splitlines()[0][:160]}")
            continue
        if not error <= ALLOWED[options.precision if way in BACKENDS else "fp32"]:
            skipped.append(f"{what}, {way}: its result is off by {error:.0e}, so its time means nothing")
            continue
        found[way], errors[way] = provider, error
    if not found:
        return
    work = setup.work()
    seconds = options.seconds * len(found)
    times = interleaved({way: p.call for way, p in found.items()}, options.rounds, seconds, setup.device)
    watts = power.reader(setup.device)
    for way, provider in found.items():
        own = setup.op != "invert" or way in BACKENDS  # a baseline's inversion does other evaluations
        yield _row(name, setup, way, provider, times[way], errors[way], work if own else None, limits, watts)


def _ways(setup: Setup, options: Options, skipped: list[str]) -> dict[str, Callable[[], Provider]]:
    """What is to be tried, by name."""
    ways: dict[str, Callable[[], Provider]] = {}
    for backend, reason in _backends(setup).items():
        if reason is None:
            ways[backend] = lambda backend=backend: works.ours(backend, backend, setup)
        else:
            skipped.append(f"{backend}: {reason}")
    if not setup.has_plain:
        skipped.append("eager, compile: there is no plain module of explicit priors, volumes and quadratic terms")
        return ways
    ways["eager"] = lambda: works.plain("eager", setup)
    reason = plain_torch.why_no_compiler() if options.compiled else "compilation is off"
    if reason is None:
        ways["compile"] = lambda: works.plain("compile", setup, compiled=True)
    else:
        skipped.append(f"compile: {reason}")
    return ways


def _backends(setup: Setup) -> dict[str, str | None]:
    """Backend -> why it cannot run this, or None."""
    if not setup.explicit:
        return registry.reasons(setup.model.spec, setup.x, setup.precision)
    level = setup.model.kernel_levels()[0]
    return {kernel.name: kernel.refusal(level, setup.x) for kernel in kernels.KERNELS} | {plain.name: None}


def _row(name, setup: Setup, way: str, provider: Provider, times, error, work, limits: Ceilings, watts) -> Row:
    time = spread(times)
    precision = setup.precision if way in BACKENDS else "fp32"
    drawn = None
    if watts is not None:
        calls = max(1, math.ceil(0.2 / time.p50))

        def busy() -> None:
            for _ in range(calls):
                provider.call()
            wait_for(setup.device)

        drawn = power.mean_watts(watts, busy)
    return Row(
        model=name, work=setup.op, shape="x".join(map(str, setup.shape)), precision=precision, way=way,
        runs=provider.backend, ms=1e3 * time.p50, ms_20=1e3 * time.p20, ms_80=1e3 * time.p80, rounds=len(times),
        samples_per_s=setup.batch / time.p50,
        tflops=None if work is None else work.flop / time.p50 / 1e12,
        gbytes_per_s=None if work is None else work.bytes / time.p50 / 1e9,
        ceiling=None if work is None else limits.best_seconds(work, precision) / time.p50,
        error=error, peak_mb=memory.peak_on(setup.device, provider.call), watts=drawn,
    )  # fmt: skip
