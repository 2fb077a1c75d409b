"""What an explicit prior costs: passes of grad R and of its parameters, the solve of f, R of many images.

pass     grad R of a batch of photographs, beside one prox of the one-pass mixture, and beside the same R written in
         plain torch and differentiated by autograd, eager and by torch.compile
params   gradients of all parameters of <v, grad R> and of R for crops at four noise levels, and a step of score
         matching: by the kernels, and with torch's operations in their place for the parameters
solve    f(y) to a residual of 1e-4 |y|: passes of grad R from y and from the prox of the mixture, and the time of the
         kernels against that of the torch path
values   R(x) of many small images: one pass, against the certified batch inversion of the mixture (lf.prior), and
         against the published way, scipy's conjugate gradients image by image; the latter on some, extrapolated
"""

import argparse
import copy
import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.noise import noise_features
from lpn_fast.benchmark.timing import interleaved, ratios
from lpn_fast.ops.explicit import Patches, Potentials, SolveLimits, proximal_point
from lpn_fast.ops.explicit.potentials import gradients
from lpn_fast.per_sample import norm

from ..reconstruction import data
from .mnist_inversion import Stopwatch, scipy_inversion
from .provenance import ROOT, where, write_csv

SIGMA = 25 / 255
TOL = 1e-4  # for solves and inversions
ROUNDS, SECONDS = 9, 60.0
PARTS = ("pass", "params", "solve", "values")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "explicit",
        help="time of an explicit prior: gradients, solves and values",
        description=__doc__,
        epilog="example: python -m bench.experiments explicit --threads 2 --images 2000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: $LPN_FAST_DATA)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="an ExplicitLPN, shipped or in a file (default: 7 x 7 patches, 64 groups, fresh)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--images", type=int, default=2000, help="of `values` (default: %(default)s)")
    parser.add_argument("--published", type=int, default=10, help="of them the published way (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--out", metavar="DIR", help="for the CSV (default: bench/results/explicit)")


def run(args) -> int:
    torch.set_num_threads(args.threads)
    model = lf.networks.shipped_or_loaded(args.model) if args.model else lf.ExplicitLPN(1, 7, 64)
    if not isinstance(model, lf.ExplicitLPN):
        raise TypeError(f"--model must be an ExplicitLPN, got {type(model).__name__}")
    model.requires_grad_(False)
    mixture = lf.pretrained("fast-gray").requires_grad_(False)
    root = data.find(args.data)
    rows: list[dict] = []
    if "pass" in args.parts:
        rows += passes(model, mixture, data.photographs(root, "validation", 4, 256))
    if "params" in args.parts:
        rows += parameter_passes(model, data.photographs(root, "validation", 4, 112))
    if "solve" in args.parts:
        rows += solves(model, mixture, data.photographs(root, "validation", 4, 256))
    if "values" in args.parts:
        rows += values(model, mixture, crops(root, args.images), args.published)
    out = Path(args.out or ROOT / "bench" / "results" / "explicit")
    out.mkdir(parents=True, exist_ok=True)
    origin = where({"sigma": SIGMA, "tol": TOL, "model": args.model, "spec": model.spec.to_dict()})
    write_csv(out / "results.csv", [row | origin for row in rows])
    print(f"wrote {out / 'results.csv'}")
    return 0


def row(part: str, name: str, seconds: float, times_ours: float, **more) -> dict:
    print(f"{part:7s} {name:34s} {1e3 * seconds:10.2f} ms, {times_ours:8.2f} times ours", more or "", flush=True)
    columns = {"images": "", "passes": "", "converged": "", "worst_residual": ""}
    return {"part": part, "name": name, "seconds": seconds, "times_ours": times_ours, **columns, **more}


def timed(part: str, calls: dict, more: dict[str, dict]) -> list[dict]:
    """Rows of calls that take turns; the first one is ours."""
    times = interleaved(calls, ROUNDS, SECONDS)
    ours = next(iter(calls))
    return [
        row(part, name, float(np.median(t)), ratios(t, times[ours]).p50, **more.get(name, {}))
        for name, t in times.items()
    ]


def plain_value(pot: Potentials, x: Tensor, k: int) -> Tensor:
    """R of images in units of the noise, (N,), in plain torch operations; potentials of one noise level."""
    patches = Patches(x.shape[2:], k, x)
    energies, a, b, e = (
        pot.energies[0][:, :, None, None],
        *(t.view(1, -1, 1, 1) for t in (pot.slope, pot.near, pot.far)),
    )
    energy = F.conv2d(F.conv2d(patches.extended(x), pot.atoms.view(-1, x.shape[1], k, k)).square(), energies)
    outer = torch.maximum(energy, e * e)
    penalty = a * ((energy + b).sqrt() - b.sqrt()) - e * outer.sqrt() + (outer - energy + e * e) / 2
    return (penalty.sum(1) * patches.weights).sum((1, 2)) / k**2


def passes(model: lf.ExplicitLPN, mixture: lf.LPN, x: Tensor) -> list[dict]:
    pot, k = model.potentials(torch.tensor([SIGMA])), model.spec.kernel

    def plain(z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(plain_value(pot, leaf, k).sum(), leaf)[0]

    compiled_value = torch.compile(lambda z: plain_value(pot, z, k))

    def compiled(z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(compiled_value(leaf).sum(), leaf)[0]

    own = model.grad_prior(x, SIGMA) / SIGMA
    for other in (plain, compiled):
        error = float((norm(other(x / SIGMA) - own) / norm(own)).max())
        if error > 1e-5:
            raise AssertionError(f"the plain form of R must agree with the kernels, its gradient is off by {error:.1e}")
    mixture(x, SIGMA)
    calls = {
        "grad R": lambda: model.grad_prior(x, SIGMA),
        "R and grad R": lambda: model.prior_and_grad(x, SIGMA),
        "Hessian product": lambda: model.hessian_product(x, x, SIGMA),
        "prox of fast-gray": lambda: mixture(x, SIGMA),
        "grad R, autograd": lambda: plain(x / SIGMA),
        "grad R, torch.compile": lambda: compiled(x / SIGMA),
    }
    return timed("pass", calls, {})


def parameter_passes(model: lf.ExplicitLPN, x: Tensor) -> list[dict]:
    levels = torch.linspace(0.05, 0.2, len(x))
    pot, k, v = model.potentials(levels), model.spec.kernel, torch.randn(x.shape)
    z, ones = x / levels.view(-1, 1, 1, 1), torch.ones(len(x))
    trained = copy.deepcopy(model).requires_grad_(True)

    def step(backend: str):
        loss = (trained.grad_prior(x + levels.view(-1, 1, 1, 1) * v, levels) - v).square().sum()
        with lf.use_backend(backend):
            loss.backward()

    def in_torch(call):
        with lf.use_backend("torch"):
            call()

    of_pairing = functools.partial(gradients, pot, z, v, None, k)
    of_values = functools.partial(gradients, pot, z, None, ones, k)
    rows = []
    for name, ours, torchs in (
        ("<v, grad R>", of_pairing, lambda: in_torch(of_pairing)),
        ("R", of_values, lambda: in_torch(of_values)),
        ("a step of score matching", lambda: step("auto"), lambda: step("torch")),
    ):
        rows += timed("params", {name: ours, f"{name}, torch": torchs}, {})
    return rows


def solves(model: lf.ExplicitLPN, mixture: lf.LPN, x: Tensor) -> list[dict]:
    y = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    pot = model.potentials(torch.tensor([SIGMA]))

    def found(start: Tensor | None) -> dict:
        of_start = None if start is None else start / SIGMA
        ones, limits = torch.ones(len(y)), SolveLimits(TOL)
        _, solution = proximal_point(pot, y / SIGMA, ones, model.spec.kernel, limits, of_start)
        return {
            "passes": int(solution.iterations.max()) + 1,
            "converged": int(solution.converged.sum()),
            "images": len(x),
            "worst_residual": float((solution.residual * SIGMA / norm(y)).max()),
        }

    def in_torch():
        with lf.use_backend("torch"):
            return model(y, SIGMA, tol=TOL)

    return timed(
        "solve",
        {
            "f": lambda: model(y, SIGMA, tol=TOL),
            "f from the prox of the mixture": lambda: model(y, SIGMA, tol=TOL, start=mixture(y, SIGMA)),
            "f, torch path": in_torch,
        },
        {"f": found(None), "f from the prox of the mixture": found(mixture(y, SIGMA))},
    )


def crops(root: Path, count: int, side: int = 64) -> Tensor:
    """Squares of the validation photographs, row by row."""
    whole = data.photographs(root, "validation", 32, 320)
    squares = whole.unfold(2, side, side // 2).unfold(3, side, side // 2).reshape(-1, 1, side, side)
    if count > len(squares):
        raise ValueError(f"--images must be at most {len(squares)}, got {count}")
    return squares[:: len(squares) // count][:count].contiguous()


def values(model: lf.ExplicitLPN, mixture: lf.LPN, x: Tensor, published: int) -> list[dict]:
    with (ours := Stopwatch()):
        result = lf.prior(model, x, sigma=SIGMA)
    rows = [row("values", "one pass", ours.wall, 1.0, images=len(x), converged=int(result.converged.sum()))]
    with (batch := Stopwatch()):
        inverted = lf.prior(mixture, x, sigma=SIGMA, tol=TOL)
    more = {"images": len(x), "converged": int(inverted.converged.sum())}
    rows.append(row("values", "inversion of the mixture, lf.prior", batch.wall, batch.wall / ours.wall, **more))
    packed, features = mixture.packed(), noise_features(torch.tensor([SIGMA]), mixture.spec.noise_levels)

    def objective(y: Tensor):
        def gradient() -> Tensor:
            leaf = y.clone().requires_grad_()
            psi = reference.potential(mixture.spec, leaf / SIGMA, packed, features).sum() * SIGMA
            return torch.autograd.grad(psi, leaf, create_graph=True)[0].detach() * SIGMA

        return lambda: reference.potential(mixture.spec, y / SIGMA, packed, features) * SIGMA**2, gradient

    chosen, residuals = np.linspace(0, len(x) - 1, published).round().astype(int).tolist(), []
    with (single := Stopwatch()):
        for index in chosen:
            one = x[index : index + 1]
            y = scipy_inversion(objective, one, TOL)
            residuals.append(float(norm(mixture(y, SIGMA) - one) / norm(one)))
    seconds = single.wall * len(x) / published
    reached = sum(r <= 1.01 * TOL for r in residuals)
    more = {"images": published, "converged": reached, "worst_residual": max(residuals)}
    rows.append(row("values", "inversion as published, extrapolated", seconds, seconds / ours.wall, **more))
    return rows
