"""A batch against the published way, and what the objective costs; calls are interleaved, ratios formed per round.

Published way: one image at a time; every iteration copies the image from NumPy to torch, evaluates f = grad psi by
automatic differentiation with create_graph, and copies back. The operator and the iteration are ours, so that the two
do the same arithmetic: proximal gradient descent, a fixed number of steps, no stopping. Its result is compared.

deepinv: the same batch, operator, network and number of steps in the loop of deepinv's PGD, where it is installed.

Cost of the objective: the same batched run with and without it. Without, the network returns f only, and neither R
nor |A x - y|^2 is formed; the residual that stopping needs stays.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.benchmark.timing import interleaved, ratios, spread
from lpn_fast.per_sample import broadcast
from lpn_fast.physics import Blur
from lpn_fast.solvers.conditions import Conditions
from lpn_fast.solvers.driver import iterate
from lpn_fast.solvers.problem import checked_problem, relative_change
from lpn_fast.solvers.prox import LearnedProx, piece
from lpn_fast.solvers.proximal_gradient import PGDState, ProximalGradient

from ..experiments.provenance import where

PROBLEMS, NOISE, GOAL, COST_GOAL = 16, 0.04, 3.0, 0.05


def run(model, side: int, iterations: int, rounds: int, seconds: float, show=print) -> list[dict]:
    """Rows "throughput", "deepinv" where it is installed, and "objective"."""
    physics = Blur.gaussian(1.0, boundary="full")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(PROBLEMS, 1, side, side, generator=generator)
    y = physics.A(x)
    y = y + NOISE * torch.randn(y.shape, generator=generator)
    settings = lf.solvers.pgd(y, physics, model, noise=NOISE, max_iter=1).settings
    sigma, eta = settings.sigma, settings.step_size

    def ours() -> Tensor:
        return lf.solvers.pgd(y, physics, model, noise=NOISE, sigma=sigma, strength=1.0, max_iter=iterations, tol=0.0).x

    def published() -> Tensor:
        return torch.stack(
            [_one_at_a_time(model, physics, y[i : i + 1], eta, sigma, iterations)[0] for i in range(len(y))]
        )

    error = ((ours() - published()).norm() / ours().norm()).item()
    times = interleaved({"batched": ours, "published way": published}, rounds, seconds)
    config = {"problems": PROBLEMS, "side": side, "iterations": iterations, "rounds": len(times["batched"])}
    rows = [_row("throughput", "published way / batched", times["published way"], times["batched"], error, config)]
    show(_line(rows[-1], f"goal {GOAL:g}x {'met' if rows[-1]['ratio_p50'] >= GOAL else 'MISSED'}"))

    if importlib.util.find_spec("deepinv"):
        theirs = _deepinv_loop(model, physics, y, eta, sigma, iterations)
        error = ((ours() - theirs()).norm() / ours().norm()).item()
        times = interleaved({"batched": ours, "deepinv": theirs}, rounds, seconds)
        rows.append(_row("deepinv", "deepinv's loop / batched", times["deepinv"], times["batched"], error, config))
        show(_line(rows[-1], "no goal"))
    else:
        show("deepinv: not installed")

    runs = {
        name: lambda method=method: _iterated(method, y, physics, settings, iterations)
        for name, method in (
            ("with", ProximalGradient(LearnedProx.of(model))),
            ("without", WithoutObjective(LearnedProx.of(model))),
        )
    }
    error = ((runs["with"]() - runs["without"]()).norm() / runs["with"]().norm()).item()
    times = interleaved(runs, rounds, seconds)
    rows.append(_row("objective", "with objective / without", times["with"], times["without"], error, config))
    cost = rows[-1]["ratio_p50"] - 1
    show(_line(rows[-1], f"cost {100 * cost:.1f} %, goal 5 % {'met' if cost <= COST_GOAL else 'MISSED'}"))
    return rows


class WithoutObjective(ProximalGradient):
    """The iteration of `pgd`, its objective left out (zero, which the loop takes for good)."""

    def step_from(self, state: PGDState, point: Tensor, measured: Tensor) -> PGDState:
        gradient = state.physics.A_adjoint(measured - state.y)
        z = point - broadcast(state.step_size, point) * gradient
        image = torch.cat([self.prox.model(part, sigma=state.sigma) for part in z.split(piece(self.prox.model, z))])
        measured = state.physics.A(image)
        residual = relative_change(image, state.image)
        return replace(state, image=image, measured=measured, residual=residual, objective=torch.zeros_like(residual))


@torch.no_grad()
def _iterated(method: ProximalGradient, y: Tensor, physics, settings, iterations: int) -> Tensor:
    problem = checked_problem(y, physics)
    state = method.start(problem, settings)
    return iterate("pgd", method.step, state, Conditions("PGD", ()), settings, max_iter=iterations, tol=0.0).x


def _one_at_a_time(model, physics, y: Tensor, eta: float, sigma: float, iterations: int) -> Tensor:
    _, features, unit = model._checked(y, sigma)
    unit = 1.0 if unit is None else unit
    image = lf.physics.start(physics, y).numpy()
    for _ in range(iterations):
        x = torch.from_numpy(image.copy())
        with torch.no_grad():
            point = (x - eta * physics.A_adjoint(physics.A(x) - y)).numpy()
        z = (torch.from_numpy(point.copy()) / unit).requires_grad_()
        psi = reference.potential(model.spec, z, model.packed(), features).sum()
        image = np.asarray((unit * torch.autograd.grad(psi, z, create_graph=True)[0]).detach().numpy())
    return torch.from_numpy(image)


def _deepinv_loop(model, physics, y: Tensor, eta: float, sigma: float, iterations: int) -> Callable[[], Tensor]:
    import deepinv

    from lpn_fast.interop.deepinv import LPNPrior, to_deepinv_physics

    # lambda = 1 / eta: its prior prox has strength eta lambda = 1
    optimizer = deepinv.optim.PGD(
        deepinv.optim.L2(), LPNPrior(model, sigma=sigma), stepsize=eta, lambda_reg=1 / eta, max_iter=iterations,
        early_stop=False,
    )  # fmt: skip
    converted, begin = to_deepinv_physics(physics), lf.physics.start(physics, y)

    def run() -> Tensor:
        with torch.no_grad():
            return optimizer(y, converted, init=(begin, begin))

    return run


def _row(what: str, compared: str, slow: list[float], fast: list[float], error: float, config: dict) -> dict:
    ratio, per_image = ratios(slow, fast), spread([t / PROBLEMS for t in fast])
    return {
        "what": what,
        "compared": compared,
        "ratio_p50": round(ratio.p50, 3),
        "ratio_p20": round(ratio.p20, 3),
        "ratio_p80": round(ratio.p80, 3),
        "seconds_per_image": round(per_image.p50, 5),
        "relative_difference": error,
        **where(config),
    }


def _line(row: dict, verdict: str) -> str:
    return (
        f"{row['what']}: {row['compared']} {row['ratio_p50']:.2f}x [{row['ratio_p20']:.2f}..{row['ratio_p80']:.2f}], "
        f"{1 / row['seconds_per_image']:.1f} images/s, relative difference {row['relative_difference']:.0e}; {verdict}"
    )
