"""The loop that all solvers share: per-sample stopping, compaction, histories.

A solver is a map from state to state. The loop applies it to the samples that are still *active*
and lets a sample go when
    its residual is at most tol                        converged,
    its objective or residual is not finite            stopped, its last good image kept, with a warning,
    the iterations are used up or the callback says so neither.
A sample that is let go is cut out of the state, so it costs nothing further and cannot influence
the others. The histories stay on the device; the only thing the CPU waits for in an iteration is
the answer to "does any sample leave?".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from tqdm import tqdm

from lpn_fast.per_sample import choose
from lpn_fast.solvers.conditions import Conditions
from lpn_fast.solvers.reconstruction import Reconstruction


@dataclass(frozen=True)
class State:
    """What an iteration reads and writes; every tensor has the n active samples first.

    Solvers add their own variables in a subclass.
    """

    y: Tensor  # (n, ...) measurements
    strength: float | Tensor  # (n,)
    sigma: float | Tensor | None  # (n,)
    image: Tensor  # (n, ...) last prox output
    objective: Tensor  # (n,) float64, at image
    residual: Tensor  # (n,) float64, relative change that led to image

    def select(
        self,
        keep: Tensor,  # (n,) bool
    ) -> State:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: v[keep] for name, v in values.items() if isinstance(v, Tensor)})


def iterate(
    name: str,
    step: Callable[[State], State],
    state: State,
    conditions: Conditions,
    *,
    max_iter: int,
    tol: float,
    callback: Callable[[int, Tensor, Tensor], bool | None] | None,
    progress: bool,
) -> Reconstruction:
    """Run ``step`` until every sample has stopped.

    Parameters
    ----------
    name : str
        The solver, for messages.
    step : callable, State -> State
        One iteration on samples that do not see each other.
    state : State
        Start, all N samples; its image is what a sample that never completes an iteration returns.
    conditions : Conditions
        Passed through to the result.
    max_iter, tol, callback, progress
        As documented by the solvers.

    Returns
    -------
    Reconstruction
    """
    samples, device = len(state.image), state.image.device
    images = state.image  # (N, ...), kept up to date for stopped samples only
    active = torch.arange(samples, device=device)  # (n,) which samples the state holds
    objective = torch.full((max_iter, samples), torch.nan, dtype=torch.float64, device=device)
    residual = torch.full_like(objective, torch.nan)
    iterations = torch.zeros(samples, dtype=torch.int64, device=device)
    converged = torch.zeros(samples, dtype=torch.bool, device=device)

    for k in tqdm(range(max_iter), desc=name, unit="it", disable=not progress):
        new = step(state)
        good = new.objective.isfinite() & new.residual.isfinite()  # (n,)
        finished = good & (new.residual <= tol)
        staying = good & ~finished
        leaving = not bool(staying.all())  # the one wait per iteration

        if k > 0:
            objective[k], residual[k] = objective[k - 1], residual[k - 1]
        objective[k, active] = torch.where(good, new.objective, state.objective)
        residual[k, active] = torch.where(good, new.residual, state.residual)
        iterations[active] += good
        converged[active] = finished

        if leaving or callback is not None:
            images = images.index_copy(0, active, choose(good, new.image, state.image))
        stop = callback is not None and bool(callback(k + 1, images, objective[k].clone()))
        if leaving:
            _warn_of_nan(name, k + 1, active[~good])
            new, active = new.select(staying), active[staying]
        state = new
        if stop or len(active) == 0:
            break

    images = images.index_copy(0, active, state.image)
    return Reconstruction(images, objective[: k + 1], residual[: k + 1], iterations, converged, conditions)


def _warn_of_nan(name: str, iteration: int, broken: Tensor) -> None:
    if len(broken) > 0:
        warnings.warn(
            f"{name}: samples {broken.tolist()} became NaN or infinite in iteration {iteration} "
            "and keep their last good image",
            RuntimeWarning,
            stacklevel=4,
        )
