"""A prior that is not convex, in closed form: does the learned R follow -sigma^2 log p?

    p = 1/2 N(-1.5, 1) + 1/2 N(1.5, 1),     sigma = 0.8:     R = -sigma^2 log p has R'' down to -0.8, a double well.

Trains the same 1-D network with l2, l1 and proximal matching, evaluates R by certified inversion (lf.prior) where
the central 95 % of p lie, and compares with -sigma^2 log p, and with the prior of the MMSE denoiser, which l2
training tends to (Gribonval 2011); constants are subtracted. Claims: with proximal matching the RMS error to
-sigma^2 log p is at most half that of l2 training, and the learned R has the bump between the wells.

--floors measures what the smallest gamma does: a large one leaves a bias, a small one a noisy gradient.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import lpn_fast as lf
from bench.densities import GaussianMixture
from lpn_fast.training.laplacian import train_scalar

from .figures import axes_row
from .laplacian import add_scalar_options, prepare
from .provenance import where, write_csv

LOSSES = ("l2", "l1", "matching")
STEPS = 2500
GAMMA_MIN = 0.12  # in units of sigma; R has no kinks, see training/laplacian.py
MIXTURE = GaussianMixture()
SIGMA = GaussianMixture.SIGMA
FLOORS = (0.028, 0.06, 0.12, 0.25, 0.5)  # in units of sigma
MASS = 0.95
POINTS = 201


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "gaussian-mixture",
        help="the learned R against -sigma^2 log p of a Gaussian mixture, which is not convex",
        description="Trains a 1-D network with each of three losses, compares its R with the closed form.",
        epilog="example: python -m bench.experiments gaussian-mixture",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_scalar_options(parser, "gaussian_mixture", STEPS)
    parser.add_argument("--floors", action="store_true", help="the smallest gamma varied, for three seeds: floors.csv")


def run(args) -> int:
    out, steps = prepare(args, "gaussian_mixture")
    if args.floors:
        return vary_floor(out, steps)
    x = region(MIXTURE)
    rows, priors = [], {}
    for loss in LOSSES:
        started = time.perf_counter()
        model = train_scalar(stratified(MIXTURE), SIGMA, loss, steps, args.seed, False, GAMMA_MIN)
        seconds = time.perf_counter() - started
        priors[loss], figures = evaluate(model, x, MIXTURE)
        rows.append({"loss": loss, "steps": steps, **figures, "seconds": round(seconds, 1), **where({"sigma": SIGMA})})
        print(
            f"{loss:9s} rms of R: to -sigma^2 log p {figures['rms_to_map_prior']:.4f}, to the MMSE prior "
            f"{figures['rms_to_mmse_prior']:.4f};  R(0) - R(mode) = {figures['bump']:.3f} "
            f"(closed form {figures['bump_closed_form']:.3f}),  {figures['converged']} of {POINTS} converged",
            flush=True,
        )
    write_csv(out / "results.csv", rows)
    draw(x, priors, out / "gaussian_mixture.png")
    print(f"wrote {out / 'results.csv'} and {out / 'gaussian_mixture.png'}")
    by_loss = {row["loss"]: row for row in rows}
    matching, l2 = by_loss["matching"], by_loss["l2"]
    holds = 2 * matching["rms_to_map_prior"] <= l2["rms_to_map_prior"] and matching["bump"] > 0
    print(f"proximal matching recovers -sigma^2 log p, l2 training does not: {'yes' if holds else 'NO'}")
    return 0 if holds or args.quick else 1


def vary_floor(out: Path, steps: int, seeds: int = 3) -> int:
    """Proximal matching with every floor of gamma and several seeds, to floors.csv."""
    x, rows = region(MIXTURE), []
    for floor in FLOORS:
        for seed in range(seeds):
            model = train_scalar(stratified(MIXTURE), SIGMA, "matching", steps, seed, False, floor)
            _, figures = evaluate(model, x, MIXTURE)
            about = {"gamma_min_per_sigma": floor, "seed": seed, "steps": steps}
            rows.append(about | figures | where({"sigma": SIGMA}))
            print(f"gamma down to {floor:g} sigma, seed {seed}: rms of R {figures['rms_to_map_prior']:.4f}", flush=True)
        write_csv(out / "floors.csv", rows)
    print(f"wrote {out / 'floors.csv'}")
    return 0


def region(mixture: GaussianMixture) -> Tensor:
    """Points (POINTS, 1) that span the central MASS of p."""
    tail = (1 - MASS) / 2
    low, high = mixture.quantile(torch.tensor([tail, 1 - tail])).tolist()
    return torch.linspace(low, high, POINTS)[:, None]


def stratified(mixture: GaussianMixture, levels: int = 20_001):
    """Sampler: one sample per quantile interval, in rising order (training/laplacian.py says why)."""
    grid = torch.linspace(0, 1, levels, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    table = mixture.quantile(grid)

    def sampler(count: int, generator: torch.Generator) -> Tensor:
        position = torch.rand(count, generator=generator, dtype=torch.float64)
        place = (torch.arange(count, dtype=torch.float64) + position) / count * (levels - 1)
        index = place.long().clamp(max=levels - 2)
        return torch.lerp(table[index], table[index + 1], place - index).float()[:, None]

    return sampler


def evaluate(model: lf.LPN, x: Tensor, mixture: GaussianMixture) -> tuple[Tensor, dict]:
    """(R at x less its mean, float64 (N,); the figures of the table)."""
    model = model.requires_grad_(False)
    result = lf.prior(model, x)
    value = _centred(result.value)
    closed = _centred(mixture.prior(x[:, 0].double(), SIGMA))
    middle, mode = len(x) // 2, int(closed.argmin())
    return value, {
        "rms_to_map_prior": round(_rms(value - closed), 4),
        "rms_to_mmse_prior": round(_rms(value - _centred(mmse_prior(mixture, x[:, 0]))), 4),
        "bump": round((value[middle] - value[mode]).item(), 4),
        "bump_closed_form": round((closed[middle] - closed[mode]).item(), 4),
        "residual_max": result.residual.max().item(),
        "converged": int(result.converged.sum()),
    }


def mmse_prior(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """R of the MMSE denoiser at x, float64 (N,): interpolated between its values at f(y) on a fine grid of y."""
    y = torch.linspace(-12, 12, 12_001, dtype=torch.float64)
    f, prior = mixture.posterior_mean(y, SIGMA), mixture.mmse_prior(y, SIGMA)
    x = x.double()
    index = torch.searchsorted(f, x).clamp(1, len(f) - 1)
    share = (x - f[index - 1]) / (f[index] - f[index - 1])
    return torch.lerp(prior[index - 1], prior[index], share)


def draw(x: Tensor, priors: dict[str, Tensor], path: Path) -> None:
    with axes_row(path, 1, width=5.5, height=3.6) as (axes,):
        draw_priors(axes, MIXTURE, x, priors)
        axes.set_title("R(x) less its mean")
        axes.legend()


def draw_priors(axes, mixture: GaussianMixture, x: Tensor, priors: dict[str, Tensor]) -> None:
    """The learned R of every loss, and what MAP and MMSE denoisers have."""
    axes.plot(x, _centred(mixture.prior(x[:, 0].double(), SIGMA)), "k--", label="-sigma^2 log p")
    axes.plot(x, _centred(mmse_prior(mixture, x[:, 0])), "k:", label="MMSE prior")
    for loss, value in priors.items():
        axes.plot(x, value, label=loss)
    axes.set_xlabel("x")


def _centred(values: Tensor) -> Tensor:
    return values - values.mean()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
