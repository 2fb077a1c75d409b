"""A posed problem and chosen settings, run to the end: refuse, find the weight, iterate.

The discrepancy principle requires  ||A x - y||^2 = s^2 m  at the solution, which no weight in closed form can
promise. So the weight is found first, per sample, by short runs of the same solver, each warm-started from the last;
then it is frozen, and only from there on are objectives recorded: they belong to one function and may be compared.
"""

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..per_sample import choose as choose_sample
from . import alarms
from .automatic import SMALLEST_STRENGTH, Settings, calibrated, trained_levels
from .conditions import Conditions
from .driver import Callback, S, iterate
from .problem import InverseProblem, relative_misfit
from .prox import LearnedProx
from .reconstruction import Reconstruction

STAGES, STAGE_ITERATIONS = 6, 12  # short runs, and iterations of each
FIRST_SLOPE = 0.3  # slope of log misfit against log of the assumed noise, for photographs and CT slices; then a secant
# What a secant may claim: a pure denoiser at small t has slope 2; outside, two short runs say more about themselves.
SLOPES = (0.05, 2.0)
LARGEST_MOVE = math.log(2)  # change in the log of the assumed noise, in one stage
LARGEST_KAPPA = -0.5 * math.log(SMALLEST_STRENGTH)  # bound on log kappa: there t = kappa^2 meets its limit
CLOSE_ENOUGH = 0.01  # relative distance from the required misfit


class Iteration(Protocol[S]):
    """A solver, as a map of states: its start and one step."""

    @property
    def prox(self) -> LearnedProx: ...

    def start(self, problem: InverseProblem, settings: Settings, /) -> S: ...

    def step(self, state: S, /) -> S: ...


def solve(
    name: str,
    method: Iteration[S],
    problem: InverseProblem,
    settings: Settings,
    conditions: Conditions,
    *,
    max_iter: int,
    tol: float | None,
    strict: bool,
    callback: Callback | None,
    progress: bool,
) -> Reconstruction:
    """The reconstruction of a problem by a method."""
    if strict:
        conditions.raise_unless_all_hold()
    if settings.rule == "discrepancy":
        settings, problem = meet_discrepancy(method, problem, settings)
    model = method.prox.model
    own = next(model.parameters(), problem.y) if isinstance(model, torch.nn.Module) else problem.y
    if own.dtype != problem.y.dtype:
        raise TypeError(f"y must be {own.dtype} as the model is, got {problem.y.dtype}; convert with y.to({own.dtype})")
    found = alarms.of_units(model, problem.x0) + alarms.of_level(model, settings.sigma)
    result = iterate(
        name, method.step, method.start(problem, settings), conditions, settings,
        max_iter=max_iter, tol=tol, callback=callback, progress=progress,
    )  # fmt: skip
    return alarms.warned(result, found + alarms.of_result(result, problem.x0), stacklevel=4)


def meet_discrepancy(
    method: Iteration[S], problem: InverseProblem, settings: Settings
) -> tuple[Settings, InverseProblem]:
    """Settings whose solution has misfit one, as far as strengths in (0, 1] allow, and a warm start.

    The weight is that of MAP for an assumed noise kappa s; misfits rise with kappa. The step stays.
    """
    model, y = method.prox.model, problem.y
    levels, conditional = trained_levels(model), settings.sigma is not None
    samples = len(y)
    noise = torch.as_tensor(settings.noise, dtype=torch.float64, device=y.device).expand(samples)
    log_kappa = torch.zeros(samples, dtype=torch.float64, device=y.device)
    slope = torch.full_like(log_kappa, FIRST_SLOPE)
    previous: tuple[Tensor, Tensor] | None = None
    for stage in range(STAGES):
        state = method.start(problem, settings)
        for _ in range(STAGE_ITERATIONS):
            state = method.step(state)
        good = state.objective.isfinite()
        problem = replace(problem, x0=choose_sample(good, state.image, problem.x0))
        misfit = relative_misfit(problem.physics, problem.x0, y, noise)
        error = misfit.clamp_min(torch.finfo(torch.float64).tiny).log()  # (N,), to become zero
        if stage == STAGES - 1 or bool((error.abs() <= CLOSE_ENOUGH).all()):
            break
        if previous is not None:
            moved = log_kappa - previous[0]
            secant = ((error - previous[1]) / moved).clamp(*SLOPES)
            slope = torch.where(secant.isfinite() & (moved.abs() > 1e-3), secant, slope)
        previous = log_kappa, error
        log_kappa = log_kappa - (error / slope).clamp(-LARGEST_MOVE, LARGEST_MOVE)
        log_kappa = log_kappa.clamp(-LARGEST_KAPPA, 0.0 if levels is None else LARGEST_KAPPA)
        settings = _with_assumed_noise(settings, levels, conditional, log_kappa.exp(), noise, y)
    return settings, problem


def _with_assumed_noise(
    settings: Settings,
    levels: tuple[float, float] | None,
    conditional: bool,
    kappa: Tensor,  # (N,) float64
    noise: Tensor,  # (N,) float64
    y: Tensor,  # (N, ...)
) -> Settings:
    if levels is None:  # t = kappa^2: the only scale there is
        strength = kappa.square().clamp(SMALLEST_STRENGTH, 1).to(y)
        return replace(settings, strength=strength)
    _, weaker, sigma = calibrated(y, levels, kappa * noise, settings.step_size, conditional=conditional)
    return replace(settings, strength=weaker, sigma=sigma if conditional else settings.sigma)
