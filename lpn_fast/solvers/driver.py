"""The loop that all solvers share: per-sample stopping, compaction, histories.

A solver is a map from state to state. The loop applies it to the samples that are still *active*
and lets a sample go when
    its residual is at most tol, or by default what is
        left to come can no longer be seen             converged,
    its objective or residual is not finite            broken, its last good image kept, with a warning,
    max_iter is reached or the callback says so        neither.
A sample that is let go is cut out of the state, so it costs nothing further and cannot influence
the others. The histories stay on the device; the only thing the CPU waits for in an iteration is
the answer to "does any sample leave?".

What is left to come is estimated from the residuals c seen so far: where they shrink by a factor q an iteration,

    c q + c q^2 + ... = c q / (1 - q)

q is the larger of the last two rates, so that a single small step among large ones, as acceleration makes them, ends
nothing; where residuals grow, all is left.

That answer decides the batch of the next iteration, so iterations are not captured as CUDA graphs: a graph needs
one shape, and a batch of one shape would carry its finished samples to the end.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..per_sample import choose
from ..physics import LinearOperator
from .automatic import Settings
from .conditions import Conditions
from .problem import InverseProblem, relative_misfit, subset
from .reconstruction import Reconstruction

# Relative change that nobody sees: a quarter of a gray level of 255, root mean square, in a picture of mean square 1/4.
INVISIBLE = 2e-3

Callback = Callable[[int, Tensor, Tensor], bool | None]
S = TypeVar("S", bound="State")


@dataclass(frozen=True)
class State:
    """What an iteration reads and writes; every tensor has the n active samples first.

    Solvers add their own variables in a subclass.
    """

    physics: LinearOperator  # as the active samples see it
    y: Tensor  # (n, ...) measurements
    step_size: float | Tensor  # (n,) eta, or 1 / rho
    strength: float | Tensor  # (n,) t
    sigma: float | Tensor | None  # (n,)
    image: Tensor  # (n, ...) last prox output
    preimage: Tensor | None  # (n, ...) u with f(u) = image, where t < 1
    objective: Tensor  # (n,) float64, at image
    residual: Tensor  # (n,) float64, relative change that led to image
    halvings: Tensor  # (n,) int64, of the step because the objective rose

    @classmethod
    def before(cls, problem: InverseProblem, settings: Settings, **own: Any) -> Self:
        """The state before the first iteration; R of the start is unknown, hence NaN. `own`: a subclass's fields."""
        unknown = torch.full((len(problem.y),), torch.nan, dtype=torch.float64, device=problem.y.device)
        return cls(
            problem.physics, problem.y, settings.step_size, settings.strength, settings.sigma,
            problem.x0, None, unknown, unknown, torch.zeros_like(unknown, dtype=torch.int64), **own,
        )  # fmt: skip

    @property
    def weight(self) -> float | Tensor:  # (n,)
        """Weight t / eta of R in the objective."""
        return self.strength / self.step_size

    @property
    def output(self) -> Tensor:  # (n, ...)
        """What the user gets: the prox output, unless the caller chose another image."""
        return self.image

    def select(
        self,
        keep: Tensor,  # (n,) bool
    ) -> Self:
        """The samples to keep, the operator included."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        kept: dict[str, Any] = {name: v[keep] for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **kept, physics=subset(self.physics, keep))

    def merge(
        self,
        place: Tensor,  # (n,) bool, m of them true
        other: Self,  # m samples
    ) -> Self:
        """These samples replaced by others."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        where = place.nonzero().flatten()
        merged: dict[str, Any] = {
            name: v.index_copy(0, where, getattr(other, name)) for name, v in values.items() if isinstance(v, Tensor)
        }
        return replace(self, **merged)


def iterate(
    name: str,
    step: Callable[[S], S],
    state: S,
    conditions: Conditions,
    settings: Settings,
    *,
    max_iter: int,
    tol: float | None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Run `step` until every sample has stopped.

    Parameters
    ----------
    name : str
        The solver, for messages.
    step : callable, State -> State
        One iteration on samples that do not see each other.
    state : State
        Start, all N samples; its image is what a sample that never completes an iteration returns.
    conditions, settings
        Passed through to the result.
    max_iter, tol, callback, progress
        As documented by the solvers.

    Returns
    -------
    Reconstruction
    """
    start, samples, device = state, len(state.image), state.image.device
    images = state.output  # (N, ...), kept up to date for stopped samples only
    active = torch.arange(samples, device=device)  # (n,) which samples the state holds
    objective = torch.full((max_iter, samples), torch.nan, dtype=torch.float64, device=device)
    residual = torch.full_like(objective, torch.nan)
    iterations = torch.zeros(samples, dtype=torch.int64, device=device)
    converged = torch.zeros(samples, dtype=torch.bool, device=device)
    broken = torch.zeros_like(converged)
    halvings = torch.zeros_like(iterations)
    rates = torch.full((2, samples), torch.inf, dtype=torch.float64, device=device)  # in the last two iterations

    for k in tqdm(range(max_iter), desc=name, unit="it", disable=not progress):
        new = step(state)
        good = new.objective.isfinite() & new.residual.isfinite()  # (n,)
        if tol is None:
            rates[k % 2, active] = torch.where(state.residual > 0, new.residual / state.residual, torch.inf)
            finished = good & (left_to_come(new.residual, rates[:, active].amax(0)) <= INVISIBLE)
        else:
            finished = good & (new.residual <= tol)
        staying = good & ~finished
        leaving = not bool(staying.all())  # the one wait per iteration

        if k > 0:
            objective[k], residual[k] = objective[k - 1], residual[k - 1]
        objective[k, active] = torch.where(good, new.objective, state.objective)
        residual[k, active] = torch.where(good, new.residual, state.residual)
        iterations[active] += good
        converged[active] = finished
        broken[active] = ~good
        halvings[active] = new.halvings

        if leaving or callback is not None:
            images = images.index_copy(0, active, choose(good, new.output, state.output))
        stop = callback is not None and bool(callback(k + 1, images, objective[k].clone()))
        if leaving:
            _warn_of_nan(name, k + 1, active[~good])
            active = active[staying]
            if len(active) == 0:  # before operators of their own would have to be those of no sample
                break
            new = new.select(staying)
        state = new
        if stop:
            break

    if len(active) > 0:
        images = images.index_copy(0, active, state.output)
    misfit = None
    if settings.noise is not None:
        misfit = relative_misfit(start.physics, images, start.y, settings.noise)
    objective, residual = objective[: k + 1], residual[: k + 1]
    conditions = conditions.after(objective, halvings)
    return Reconstruction(images, objective, residual, iterations, converged, broken, conditions, settings, misfit)


def left_to_come(
    residual: Tensor,  # (n,)
    rate: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Sum of all residuals that follow if they go on to shrink by `rate` an iteration."""
    return torch.where(residual == 0, 0.0, torch.where(rate < 1, residual * rate / (1 - rate), torch.inf))


def _warn_of_nan(name: str, iteration: int, broken: Tensor) -> None:
    if len(broken) > 0:
        warnings.warn(
            f"{name}: samples {broken.tolist()} became NaN or infinite in iteration {iteration} "
            "and keep their last good image",
            RuntimeWarning,
            stacklevel=5,
        )
