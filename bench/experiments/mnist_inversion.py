"""Batched certified inversion against a loop of scipy's conjugate gradients over single images.

    find y with  f(y) = x,   |f(y) - x| <= tol |x|,   by minimising  psi(y) - <x, y>   from y = x

ours       lf.invert on all images, in chunks of bounded memory
baselines  scipy.optimize.fmin_cg, one image at a time, stopped at a gradient norm of tol |x|; on one thread or on
           as many as ours, whichever is faster
    published   float32, value and gradient evaluated apart, the gradient by autograd with a graph: the published
                way (arXiv 2310.14344), on the readable twin of the network in plain torch
    float32     value and gradient from one evaluation by the kernels that ours uses
    float64     the same in double precision: in float32 fmin_cg ends where values no longer tell points apart,
                near a residual of 3e-4; only this one reaches tol

Ours and the baselines take turns, chunk by chunk, so that whatever else runs on the machine meets all of them;
processor time is given beside the time on the clock. The baselines see `--baseline` images of the same list,
spread evenly over it, and their time for all of them is extrapolated; a column says so.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import lpn_fast as lf
from lpn_fast.algebra import reference

from . import mnist
from .provenance import ROOT, where, write_csv

TOL = 1e-5
CHUNK = 100
Objective = Callable[[Tensor], tuple[Callable[[], Tensor], Callable[[], Tensor]]]


@dataclass
class Stopwatch:
    """Sums of the times spent inside `with stopwatch:`."""

    wall: float = 0.0  # seconds
    cpu: float = 0.0

    def __enter__(self):
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.wall += time.perf_counter() - self._started[0]
        self.cpu += time.process_time() - self._started[1]


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "mnist-inversion",
        help="time of batched inversion against a scipy loop, same images, same residual",
        description="Inverts the MNIST network at noisy digits and writes one CSV row per baseline with the ratio.",
        epilog="example: python -m bench.experiments mnist-inversion --data mnist.npz --count 1000 --baseline 40",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mnist.add_data_option(parser)
    parser.add_argument("--count", type=int, default=1000, help="images (default: %(default)s)")
    parser.add_argument("--baseline", type=int, default=20, help="of them for each baseline (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.1, help="added to the digits (default: %(default)s)")
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="default: the shipped network, lf.pretrained('mnist')",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--out", metavar="DIR", help="for the CSV (default: bench/results/mnist_inversion)")


def run(args) -> int:
    torch.set_num_threads(args.threads)
    if not 1 <= args.baseline <= args.count:
        raise ValueError(f"--baseline must lie between 1 and --count {args.count}, got {args.baseline}")
    if args.model and not Path(args.model).exists():
        raise FileNotFoundError(f"no checkpoint {args.model}; train one with mnist-prior, or leave --model out")
    model = (lf.load(args.model) if args.model else lf.pretrained("mnist")).requires_grad_(False)
    digits = mnist.read_digits(mnist.find_digits(args.data))
    x = mnist.as_images(digits[mnist.TEST][: args.count])
    x = (x + args.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

    lf.invert(model, x[:2], max_iter=3, homotopy=False)  # first calls load libraries
    ours, baselines = compare(model, x, args.baseline, args.threads)
    print(
        f"ours: {ours['converged']} of {len(x)} converged, residual <= {ours['residual_max']:.1e}, "
        f"{1e3 * ours['time'].wall / len(x):.1f} ms per image ({1e3 * ours['time'].cpu / len(x):.1f} of processor)"
    )
    rows = []
    for name, theirs in baselines.items():
        residual = np.array(theirs["residual"])
        fraction = len(residual) / len(x)
        row = {
            "op": "invert",
            "family": "mnist",
            "shape": "1x28x28",
            "batch": len(x),
            "backend": lf.explain(model, x).partition(":")[0],
            "tol": TOL,
            "ours_converged": ours["converged"],
            "ours_residual_max": ours["residual_max"],
            "ours_seconds": ours["time"].wall,
            "ours_cpu_seconds": ours["time"].cpu,
            "baseline": f"scipy fmin_cg, one image at a time, {name}",
            "baseline_threads": theirs["threads"],
            "baseline_images": len(residual),
            "baseline_residual_median": float(np.median(residual)),
            "baseline_residual_max": residual.max(),
            "baseline_reached_tol": int((residual <= 1.01 * TOL).sum()),
            "baseline_seconds": theirs["time"].wall,
            "baseline_cpu_seconds": theirs["time"].cpu,
            "baseline_seconds_for_batch": theirs["time"].wall / fraction,
            "extrapolated": len(residual) < len(x),
            "ratio": theirs["time"].wall / fraction / ours["time"].wall,
            "ratio_cpu": theirs["time"].cpu / fraction / ours["time"].cpu,
            "peak_memory_mb": ours["peak_memory_mb"],
            **where({"count": len(x), "chunk": CHUNK, "noise": args.noise, "model": model.card}),
        }
        rows.append(row)
        print(
            f"{name}: {row['baseline_reached_tol']} of {len(residual)} reached {TOL:g}, residual "
            f"{np.median(residual):.1e} median {residual.max():.1e} max, "
            f"{1e3 * theirs['time'].wall / len(residual):.0f} ms per image; "
            f"ours is {row['ratio']:.1f} times faster, {row['ratio_cpu']:.1f} times in processor time"
        )
    out = Path(args.out or ROOT / "bench" / "results" / "mnist_inversion")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    print(f"wrote {out / 'results.csv'}")
    return 0


def compare(model: lf.LPN, x: Tensor, baseline: int, threads: int) -> tuple[dict, dict[str, dict]]:
    """Times and residuals of ours on all images and of the baselines on some, taking turns."""
    doubled = lf.LPN(model.spec).double().requires_grad_(False)
    doubled.load_state_dict(model.state_dict())
    loops = {
        "published": (published(model), torch.float32),
        "float32": (together(model), torch.float32),
        "float64": (together(doubled), torch.float64),
    }
    theirs = {
        name: {"time": Stopwatch(), "residual": [], "threads": best_threads(*loop, x[:1], threads)}
        for name, loop in loops.items()
    }
    watch, residuals, converged = Stopwatch(), [], 0
    chosen = set(np.linspace(0, len(x) - 1, baseline).round().astype(int).tolist())
    for first in range(0, len(x), CHUNK):
        chunk = x[first : first + CHUNK]
        with watch:
            result = lf.invert(model, chunk, tol=TOL)
        residuals.append(result.residual.max().item())
        converged += int(result.converged.sum())
        for index in sorted(chosen.intersection(range(first, first + len(chunk)))):
            for name, (objective, dtype) in loops.items():
                one = x[index : index + 1].to(dtype)
                torch.set_num_threads(theirs[name]["threads"])
                with theirs[name]["time"]:
                    y = scipy_inversion(objective, one, TOL)
                torch.set_num_threads(threads)
                f = (doubled if dtype == torch.float64 else model)(y)
                theirs[name]["residual"].append(((f - one).norm() / one.norm()).item())
        print(f"  {first + len(chunk)} of {len(x)} images", file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours = {"time": watch, "residual_max": max(residuals), "converged": converged, "peak_memory_mb": round(peak)}
    return ours, theirs


def best_threads(objective: Objective, dtype: torch.dtype, x: Tensor, threads: int) -> int:
    """1 or `threads`, as the loop over single images is faster at a tenth of its accuracy; x (1, 1, H, W)."""
    seconds = {}
    for count in {1, threads}:
        torch.set_num_threads(count)
        with (watch := Stopwatch()):
            scipy_inversion(objective, x.to(dtype), 10 * TOL)
        seconds[count] = watch.wall
    torch.set_num_threads(threads)
    return min(seconds, key=seconds.get)


def together(model: lf.LPN) -> Objective:
    """y -> (psi(y), f(y)) as two functions that share one evaluation of the model."""

    def at(y: Tensor):
        psi, f = model.potential_and_prox(y)
        return lambda: psi, lambda: f

    return at


def published(model: lf.LPN) -> Objective:
    """y -> (psi(y), f(y)) as two functions that evaluate apart, f by autograd with a graph."""
    packed = model.packed().detach()

    def at(y: Tensor):
        def gradient() -> Tensor:
            leaf = y.clone().requires_grad_()
            psi = reference.potential(model.spec, leaf, packed).sum()
            return torch.autograd.grad(psi, leaf, create_graph=True)[0].detach()

        return lambda: reference.potential(model.spec, y, packed), gradient

    return at


def scipy_inversion(objective: Objective, x: Tensor, tol: float) -> Tensor:
    """y with f(y) = x for one image, x (1, 1, H, W), by fmin_cg on  psi(y) - <x, y>  in x's dtype."""
    from scipy.optimize import fmin_cg

    last: dict = {}

    def at(flat: np.ndarray):
        # fmin_cg asks for value and gradient at a point one after the other
        key = flat.tobytes()
        if last.get("key") != key:
            y = torch.from_numpy(flat).to(x.dtype).reshape(x.shape)
            last.update(key=key, answer=(y, *objective(y)))
        return last["answer"]

    def value(flat: np.ndarray) -> float:
        y, psi, _ = at(flat)
        return psi().double().item() - (x * y).sum(dtype=torch.float64).item()

    def gradient(flat: np.ndarray) -> np.ndarray:
        return (at(flat)[2]() - x).flatten().double().numpy()

    gtol = tol * x.norm().item()
    flat = fmin_cg(value, x.flatten().double().numpy(), fprime=gradient, gtol=gtol, norm=2, maxiter=2000, disp=False)
    return torch.from_numpy(flat).to(x.dtype).reshape(x.shape)
