"""Step, strength and noise level of the network, chosen from the noise of the measurements.

All solvers minimise  h + (t / eta) R  (ADMM and HQS with eta = 1 / rho). With Gaussian noise of level s in y, MAP
is  ||A x - y||^2 / (2 s^2) - log p(x),  and a network trained on noise sigma has learned  R = -sigma^2 log p. Hence

    t sigma^2 / eta = s^2                                  the rule "map"

With q = s sqrt(eta) the choice is, in this order:
    sigma = q, t = 1                  where the network knows the level q: one evaluation per iteration;
    sigma = smallest level, t < 1     where q lies below every level;
    sigma = largest level, t = 1      where q lies above, with the step reduced to (sigma / s)^2.
A network of one level has only the last two. Where the network's level is unknown, and on request, the weight is
found by the discrepancy principle instead: ||A x - y||^2 = s^2 m for m measurements (run.py).
The step is the solver's default, just inside its theorem, unless given.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import estimate_noise, known_noise
from .problem import InverseProblem, positive, shown
from .protocol import ProxModel

RULES = ("map", "discrepancy")
SMALLEST_STRENGTH = 1e-3  # the error of an inner solve grows as 1 / t


@dataclass(frozen=True, repr=False)
class Settings:
    """The numbers of a run; floats where all samples share them, else tensors of shape (N,).

    Attributes
    ----------
    step_size : float or Tensor, shape (N,)
        eta; 1 / rho for ADMM and HQS.
    strength : float or Tensor, shape (N,)
        Weight t of the prior inside its prox; t / step_size is the weight in the objective.
    sigma : None, float or Tensor, shape (N,)
        Noise level handed to a network that is conditioned on it.
    noise : None, float or Tensor, shape (N,)
        Standard deviation of the measurements; None where it is unknown and no choice needed it.
    noise_source : str
        "given", "physics", "estimated" or "unknown".
    rule : str
        What decided weight and sigma: "given", "map", "discrepancy", or "none": t = 1 because neither was
        given and nothing is known that they could follow from.
    """

    step_size: float | Tensor
    strength: float | Tensor
    sigma: float | Tensor | None
    noise: float | Tensor | None
    noise_source: str
    rule: str

    @property
    def weight(self) -> float | Tensor:
        """Weight of R in the objective, t / step_size."""
        return self.strength / self.step_size

    def __repr__(self) -> str:
        parts = [f"step size {_brief(self.step_size)}", f"strength {_brief(self.strength)}"]
        if self.sigma is not None:
            parts.append(f"sigma {_brief(self.sigma)}")
        noise = "unknown" if self.noise is None else f"{_brief(self.noise)} ({self.noise_source})"
        return ", ".join([*parts, f"noise {noise}, rule: {self.rule}"])


def choose(
    problem: InverseProblem,
    model: ProxModel,
    *,
    step_size: float | Tensor | None,
    default_step: float | Tensor,
    strength: float | Tensor | str | None,
    sigma: float | Tensor | None,
    noise: float | Tensor | None,
) -> Settings:
    """The settings of a run, by the rules at the head of this file; what is given stays as it is.

    Raises
    ------
    TypeError, ValueError
        A number out of range, an unknown rule, a rule that the model cannot follow, or noise that would have to
        be estimated and cannot be.
    """
    y = problem.y
    step = default_step if step_size is None else step_size
    if isinstance(strength, str) and strength not in RULES:
        raise ValueError(f"strength must be a number, a tensor or one of {', '.join(RULES)}, got {strength!r}")
    fixed = None if strength is None or isinstance(strength, str) else positive("strength", strength, y)
    if fixed is not None and float(fixed.max() if isinstance(fixed, Tensor) else fixed) > 1:
        raise ValueError(f"strength must lie in (0, 1], got {shown(fixed)}")
    sigma = None if sigma is None else positive("sigma", sigma, y)
    source = "unknown" if noise is None else "given"
    noise = None if noise is None else positive("noise", noise, y)
    if noise is None and (known := known_noise(problem.physics, y)) is not None:
        noise, source = _one_or_many(torch.as_tensor(positive("noise of the physics", known, y)), y), "physics"

    levels, conditional = trained_levels(model), bool(getattr(model, "is_noise_conditional", False))
    rule = _rule(strength, sigma, noise, levels, conditional)
    if rule == "map" and levels is None:
        raise ValueError(
            "strength='map' needs a model that knows the noise it was trained on (card['sigma']), got one "
            "that does not; use strength='discrepancy'"
        )
    if rule in ("given", "none"):
        return Settings(step, 1.0 if fixed is None else fixed, sigma, noise, source, rule)
    if noise is None:
        noise, source = positive("noise", estimate_noise(y, problem.physics), y), "estimated"
    step, fixed, sigma = calibrated(y, levels, noise, step, step_size is not None, fixed, sigma, conditional)
    return Settings(step, fixed, sigma, noise, source, rule)


def calibrated(
    y: Tensor,  # (N, ...), for its number of samples, type and device
    levels: tuple[float, float] | None,
    noise: float | Tensor,
    step: float | Tensor,
    step_is_given: bool = True,
    strength: float | Tensor | None = None,
    sigma: float | Tensor | None = None,
    conditional: bool = False,
) -> tuple[float | Tensor, float | Tensor, float | Tensor | None]:
    """(step, strength, sigma) with t sigma^2 / eta = s^2 as far as the network's levels allow; given values stay.

    A model that knows no level counts as one of level `noise` (step)^1/2: it starts at t = 1.
    """
    s, eta = (torch.as_tensor(v, dtype=torch.float64, device=y.device).expand(len(y)) for v in (noise, step))
    q = s * eta.sqrt()  # (N,)
    low, high = levels or (None, None)
    if levels is None:
        own, t = None, torch.ones_like(q)
    elif strength is not None:
        t = torch.as_tensor(strength, dtype=torch.float64, device=y.device).expand(len(y))
        own = (q / t.sqrt()).clamp(low, high)
    else:
        own = q.clamp(low, high) if sigma is None else torch.as_tensor(sigma).to(q).expand(len(y))
        if not step_is_given:
            eta = torch.minimum(eta, (own / s).square())
            q = s * eta.sqrt()
        t = (q / own).square().clamp(SMALLEST_STRENGTH, 1)
    if conditional and sigma is None and own is not None:
        sigma = _one_or_many(own, y)
    strength = _one_or_many(t, y) if strength is None else strength
    return (step if step_is_given else _one_or_many(eta, y)), strength, sigma


def trained_levels(model: ProxModel) -> tuple[float, float] | None:
    """Smallest and largest noise level the network was trained on, or None where that is unknown."""
    known = getattr(model, "card", {}).get("sigma")
    if known is None:
        known = getattr(getattr(model, "spec", None), "noise_levels", ()) or None
    if isinstance(known, int | float):
        known = (known,)
    if not isinstance(known, list | tuple) or not known or not all(isinstance(v, int | float) for v in known):
        return None
    return float(min(known)), float(max(known))


def white_level(model: ProxModel) -> float:
    """Largest intensity of the images that the network was trained on; 1 where that is unknown."""
    return float(getattr(model, "card", {}).get("value_range", (0.0, 1.0))[-1])


def _rule(
    strength: float | Tensor | str | None,
    sigma: float | Tensor | None,
    noise: float | Tensor | None,
    levels: tuple[float, float] | None,
    conditional: bool,
) -> str:
    if isinstance(strength, str):
        return strength
    if conditional and sigma is None:
        return "map"
    if strength is not None or sigma is not None:
        return "given"
    if noise is None:
        return "none"
    return "map" if levels is not None else "discrepancy"


def _one_or_many(values: Tensor, y: Tensor) -> float | Tensor:
    """A float where all samples agree (strength 1 as a float is a single evaluation), else (N,) in y's type."""
    first = float(values[0])
    return first if bool((values == first).all()) else values.to(y)


def _brief(value: float | Tensor) -> str:
    if not isinstance(value, Tensor):
        return f"{value:.4g}"
    return f"{float(value.min()):.4g} to {float(value.max()):.4g}"
