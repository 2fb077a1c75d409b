"""Batched certified inversion against a loop of scipy's conjugate gradients over single images.

    find y with  f(y) = x,   |f(y) - x| <= tol |x|,   by minimising  psi(y) - <x, y>   from y = x

ours       lf.invert on all images, in chunks of bounded memory
baseline   scipy.optimize.fmin_cg, one image at a time, as the published code evaluates its prior; it gets the
           same network on the same threads, value and gradient from one evaluation, and a gradient norm of
           tol |x| to stop at. In float32, as published, it stops earlier where values no longer tell points
           apart; in float64 it gets there. Both are measured and say what they reached.

Ours and the baseline take turns, chunk by chunk, so that whatever else runs on the machine meets both. The
baseline sees `--baseline` images of the same list, spread evenly over it, and its time for all of them is
extrapolated; the column says so.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import lpn_fast as lf

from . import mnist
from .provenance import ROOT, where, write_csv

TOL = 1e-5
CHUNK = 100
DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
        help=f"default: the proximal matching run of mnist-prior, runs/mnist_prior/matching-{mnist.STEPS}",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--out", metavar="DIR", help="for the CSV (default: bench/results/mnist_inversion)")


def run(args) -> int:
    torch.set_num_threads(args.threads)
    if not 1 <= args.baseline <= args.count:
        raise ValueError(f"--baseline must lie between 1 and --count {args.count}, got {args.baseline}")
    checkpoint = Path(args.model or f"runs/mnist_prior/matching-{mnist.STEPS}/model.safetensors")
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint {checkpoint}; run mnist-prior first, or give --model")
    model = lf.load(checkpoint).requires_grad_(False)
    digits = mnist.read_digits(mnist.find_digits(args.data))
    x = mnist.as_images(digits[mnist.TEST][: args.count])
    x = (x + args.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

    lf.invert(model, x[:2], max_iter=3, homotopy=False)  # first calls load libraries
    ours, baselines = compare(model, x, args.baseline)
    seconds = ours["seconds"] / len(x)
    print(
        f"ours: {ours['converged']} of {len(x)} converged, residual <= {ours['residual_max']:.1e}, "
        f"{1e3 * seconds:.1f} ms per image"
    )
    rows = []
    for precision, theirs in baselines.items():
        each = theirs["seconds"] / len(theirs["residual"])
        residual = np.array(theirs["residual"])
        rows.append(
            {
                "op": "invert",
                "family": "mnist",
                "shape": "1x28x28",
                "batch": len(x),
                "backend": lf.explain(model, x).partition(":")[0],
                "tol": TOL,
                "ours_converged": ours["converged"],
                "ours_residual_max": ours["residual_max"],
                "ours_seconds": ours["seconds"],
                "baseline": f"scipy fmin_cg, one image at a time, {precision}",
                "baseline_images": len(residual),
                "baseline_residual_median": float(np.median(residual)),
                "baseline_residual_max": residual.max(),
                "baseline_reached_tol": int((residual <= 1.01 * TOL).sum()),
                "baseline_seconds": theirs["seconds"],
                "baseline_seconds_for_batch": each * len(x),
                "extrapolated": len(residual) < len(x),
                "ratio": each / seconds,
                "peak_memory_mb": ours["peak_memory_mb"],
                **where({"count": len(x), "chunk": CHUNK, "noise": args.noise, "model": model.card}),
            }
        )
        print(
            f"{precision} baseline: {rows[-1]['baseline_reached_tol']} of {len(residual)} reached {TOL:g}, "
            f"residual {np.median(residual):.1e} median {residual.max():.1e} max, {1e3 * each:.0f} ms per image; "
            f"ours is {rows[-1]['ratio']:.1f} times faster"
        )
    out = Path(args.out or ROOT / "bench" / "results" / "mnist_inversion")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    print(f"wrote {out / 'results.csv'}")
    return 0


def compare(model: lf.LPN, x: Tensor, baseline: int) -> tuple[dict, dict[str, dict]]:
    """Times and residuals of ours on all images and of the baselines on some, taking turns."""
    doubled = lf.LPN(model.spec).double().requires_grad_(False)
    doubled.load_state_dict(model.state_dict())
    networks = {"float32": model, "float64": doubled}
    theirs = {name: {"seconds": 0.0, "residual": []} for name in networks}
    seconds, residuals, converged = 0.0, [], 0
    chosen = set(np.linspace(0, len(x) - 1, baseline).round().astype(int).tolist())
    for first in range(0, len(x), CHUNK):
        chunk = x[first : first + CHUNK]
        started = time.perf_counter()
        result = lf.invert(model, chunk, tol=TOL)
        seconds += time.perf_counter() - started
        residuals.append(result.residual.max().item())
        converged += int(result.converged.sum())
        for index in sorted(chosen.intersection(range(first, first + len(chunk)))):
            for name, network in networks.items():
                started = time.perf_counter()
                residual = scipy_inversion(network, x[index : index + 1].to(DTYPES[name]), TOL)[1]
                theirs[name]["seconds"] += time.perf_counter() - started
                theirs[name]["residual"].append(residual)
        print(f"  {first + len(chunk)} of {len(x)} images", file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours = {"seconds": seconds, "residual_max": max(residuals), "converged": converged, "peak_memory_mb": round(peak)}
    return ours, theirs


def scipy_inversion(model: lf.LPN, x: Tensor, tol: float) -> tuple[Tensor, float]:
    """(y, |f(y) - x| / |x|) for one image, x (1, 1, H, W), by fmin_cg in x's dtype."""
    from scipy.optimize import fmin_cg

    last: dict = {}

    def at(flat: np.ndarray) -> tuple[float, np.ndarray]:
        # fmin_cg asks for value and gradient at a point separately; the second answer is kept from the first
        key = flat.tobytes()
        if last.get("key") != key:
            y = torch.from_numpy(flat).to(x.dtype).reshape(x.shape)
            psi, f = model.potential_and_prox(y)
            value = psi.double().item() - (x * y).sum(dtype=torch.float64).item()
            last.update(key=key, answer=(value, (f - x).flatten().double().numpy()))
        return last["answer"]

    flat = fmin_cg(
        lambda u: at(u)[0],
        x.flatten().double().numpy(),
        fprime=lambda u: at(u)[1],
        gtol=tol * x.norm().item(),
        norm=2,
        maxiter=2000,
        disp=False,
    )
    y = torch.from_numpy(flat).to(x.dtype).reshape(x.shape)
    return y, ((model(y) - x).norm() / x.norm()).item()
