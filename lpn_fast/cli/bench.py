"""`lpn-fast bench`: how fast a model runs here, with every backend that can run it.

Every backend is called once per round, in turns, so that what else the machine does hits them all; times are medians
over the rounds. Errors are against the torch operations in float64, relative to the largest value.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..networks import LPN
from ..ops import registry
from . import options
from .tables import table

DESCRIPTION = """\
Time one prox, one training step's gradient and one Hessian product of a model, with every backend that can run it
here. Close other programs first. The benchmark against other ways to do it is `python -m bench` in the repository."""

EXAMPLES = """\
  lpn-fast bench
  lpn-fast bench --model run/model.safetensors --batch 16 --size 128 128 --threads 2
  lpn-fast bench --device cuda"""

MIN_ROUNDS, MAX_ROUNDS = 3, 200
SIZES = {2: (128, 128), 3: (32, 32, 32)}  # where --size is not given: of images and of volumes


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "bench", "how fast a model runs here", DESCRIPTION, EXAMPLES)
    options.add_model(parser)
    options.add_machine(parser)
    add = parser.add_argument
    add("--batch", type=int, default=4, metavar="N", help="(default: %(default)s)")
    add("--size", type=int, nargs="+", metavar="N", help="H W, of volumes D H W (default: 128 128 or 32 32 32)")
    add("--seconds", type=float, default=3.0, metavar="S", help="of measuring per line (default: %(default)s)")
    parser.set_defaults(when_interrupted="nothing was written")


def run(args) -> int:
    """Print the table; the exit code."""
    if min(args.batch, *(args.size or ())) < 1 or not args.seconds > 0:
        raise ValueError(
            f"--batch, --size and --seconds must be positive, got {args.batch}, {args.size}, {args.seconds:g}"
        )
    options.set_threads(args.threads)
    model = options.load_model(args.model, args.device)
    size = tuple(args.size or SIZES[model.spec.ndim])
    if model.spec.axes and len(size) != model.spec.ndim:
        raise ValueError(f"--size must be {' '.join(model.spec.axes)} for {args.model}, got {size}")
    x = _sample(model, args.batch, size)
    able = {name: reason for name, reason in registry.reasons(model.spec, x, model.precision).items()}
    print(f"{args.model}, x {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}\n", flush=True)  # fmt: skip
    backends = [name for name, reason in able.items() if reason is None]
    rows = []
    for work, function in WORK.items():
        truth = _truth(function, model, x)
        for name, (milliseconds, error) in _timed(function, model, x, backends, args.seconds, truth).items():
            rows.append((work, name, milliseconds, 1e3 * len(x) / milliseconds, f"{error:.0e}"))
    print(table(("work", "backend", "ms", "samples per s", "error"), rows))
    for name, reason in able.items():
        if reason is not None:
            print(f"{name}: {reason}")
    return 0


def _prox(model: LPN, x: Tensor, sigma) -> Tensor:
    with torch.no_grad():
        return model(x, sigma=sigma)


def _gradient(model: LPN, x: Tensor, sigma) -> Tensor:
    """Gradients of <f(x), x> in all parameters, as one vector."""
    gradients = torch.autograd.grad((model(x, sigma=sigma) * x).sum(), list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def _hessian_product(model: LPN, x: Tensor, sigma) -> Tensor:
    with torch.no_grad():
        return model.hvp(x, x, sigma=sigma)


WORK: dict[str, Callable] = {"prox": _prox, "training gradient": _gradient, "Hessian product": _hessian_product}


def _sample(model: LPN, batch: int, size: tuple[int, ...]) -> Tensor:  # (N, dim), (N, C, H, W) or (N, C, D, H, W)
    spec, own = model.spec, next(model.parameters())
    shape = (batch, spec.channels) if spec.is_dense else (batch, spec.channels, *(spec.image_size or size))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(own)


def _sigma(model: LPN) -> float | None:
    levels = model.spec.noise_levels
    return levels[len(levels) // 2] if levels else None


def _truth(function: Callable, model: LPN, x: Tensor) -> Tensor:
    """The value for the first sample, in float64."""
    with registry.use_backend("torch"):
        return function(copy.deepcopy(model).double(), x[:1].double(), _sigma(model))


def _timed(
    function: Callable, model: LPN, x: Tensor, backends: list[str], seconds: float, truth: Tensor
) -> dict[str, tuple[float, float]]:
    """(median ms, error) per backend."""
    sigma, errors = _sigma(model), {}
    times: dict[str, list[float]] = {name: [] for name in backends}
    for name in backends:
        with registry.use_backend(name):
            error = (function(model, x[:1], sigma).double() - truth).abs().max() / truth.abs().max()
            errors[name] = float(error)
            function(model, x, sigma)
    started = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name in backends:
            with registry.use_backend(name):
                times[name].append(_milliseconds(lambda: function(model, x, sigma), x.device))
    return {name: (statistics.median(times[name]), errors[name]) for name in backends}


def _milliseconds(call: Callable, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return 1e3 * (time.perf_counter() - start)
