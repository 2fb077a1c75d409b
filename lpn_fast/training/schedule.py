"""What a training run does when: a list of phases, each with its loss, its length and its learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .losses import ProximalMatchingLoss, l1_loss, l2_loss, log_loss

LOSSES = ("l1", "l2", "log", "matching")
GAMMA_UNITS = ("absolute", "sigma")
GAMMA_MIN = 0.08  # published floor of gamma in units of sqrt(n), n entries per sample


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one loss.

    Parameters
    ----------
    loss : "l1", "l2", "log" or "matching"
    steps : int
    learning_rate : float
        Learning rate of Adam at the start of the phase.
    final_learning_rate : float, optional
        Reached on a cosine at the end of the phase; None keeps the rate constant.
    gamma : float, optional
        Width of proximal matching, for "matching" only.
    gamma_unit : "absolute" or "sigma"
        Unit of gamma: that of the data, or the noise level of each sample, which gives every sample a gamma
        of its own where noise levels are drawn.
    warmup : int
        The rate rises linearly over so many first steps.
    """

    loss: str
    steps: int
    learning_rate: float
    final_learning_rate: float | None = None
    gamma: float | None = None
    gamma_unit: str = "absolute"
    warmup: int = 0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("learning_rate", "final_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"{name} must be positive, got {rate}")
        if (self.gamma is None) == (self.loss == "matching"):
            raise ValueError(f"gamma belongs to loss='matching' and only there, got gamma={self.gamma}")
        if self.gamma is not None and not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"gamma must be positive, got {self.gamma}")
        if self.gamma_unit not in GAMMA_UNITS:
            raise ValueError(f"gamma_unit must be one of {GAMMA_UNITS}, got {self.gamma_unit!r}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must lie in [0, steps) = [0, {self.steps}), got {self.warmup}")

    def rate(self, step: int) -> float:
        """Learning rate at `step`, 0 <= step < steps."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.final_learning_rate is None:
            return rise * self.learning_rate
        wave = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rise * (self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * wave)

    def criterion(
        self, sigma: Tensor | None = None, gamma_factor: Tensor | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss as a function (pred, target) -> scalar Tensor.

        Parameters
        ----------
        sigma : Tensor, shape (N,), optional
            Noise levels, where they differ. Errors are then measured in units of the noise, by a weight of
            1 / sigma^2, so that no level drowns the others; a gamma in units of sigma and log do that by themselves.
        gamma_factor : Tensor, shape (N,), optional
            Multiplies gamma, sample by sample.
        """
        if self.loss == "log":
            return log_loss
        weight = None if sigma is None else sigma**-2
        if self.loss == "matching":
            gamma = self.gamma if gamma_factor is None else self.gamma * gamma_factor
            if self.gamma_unit == "sigma":
                if sigma is None:
                    raise ValueError("gamma_unit='sigma' requires the noise levels of the samples, got none")
                gamma, weight = gamma * sigma, None
            return partial(ProximalMatchingLoss(gamma), weight=weight)
        return partial({"l1": l1_loss, "l2": l2_loss}[self.loss], weight=weight)


def published_phases(
    entries: int,
    steps: int = 40_000,
    pretrain: str | None = "l1",
    gamma_min: float = GAMMA_MIN,
    halvings: int = 3,
    *,
    pretrain_rate: float = 1e-3,
    matching_rate: float = 1e-4,
    decay: float = 1.0,
    warmup: int = 0,
    gamma_unit: str = "absolute",
) -> list[Phase]:
    """The published schedule: half the steps pre-training, then proximal matching with gamma halving by stage.

    Parameters
    ----------
    entries : int
        Number of entries n of a sample (H W C of a training crop).
    steps : int
        Total steps.
    pretrain : "l1", "l2" or None
        None spends all steps on proximal matching: as suits fine-tuning a trained denoiser.
    gamma_min : float
        Last gamma in units of sqrt(n). The stages use 2^halvings, ..., 2 and 1 times it.
    halvings : int
        Number of halvings; there is one stage more.
    pretrain_rate, matching_rate : float
        Learning rates of the two parts.
    decay : float
        In every phase the rate falls to this fraction of itself on a cosine; 1 keeps it constant, as published.
    warmup : int
        Steps of linear rise, in the first phase.
    gamma_unit : "absolute" or "sigma"
        As for `Phase`.

    Returns
    -------
    list of Phase
    """
    if pretrain not in ("l1", "l2", None):
        raise ValueError(f"pretrain must be 'l1', 'l2' or None, got {pretrain!r}")
    if not (math.isfinite(gamma_min) and gamma_min > 0):
        raise ValueError(f"gamma_min must be positive, in units of sqrt(n), got {gamma_min}")
    if halvings < 0:
        raise ValueError(f"halvings must not be negative, got {halvings}")
    if not 0 < decay <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}")

    def phase(loss, length, rate, gamma=None, first=False):
        final = None if decay == 1 else decay * rate
        unit = gamma_unit if gamma else "absolute"
        return Phase(loss, length, rate, final, gamma, unit, warmup if first else 0)

    before = 0 if pretrain is None else steps // 2
    each = (steps - before) // (halvings + 1)
    floor = gamma_min * math.sqrt(entries)
    stages = [
        phase("matching", each, matching_rate, floor * 2**k, first=pretrain is None and k == halvings)
        for k in range(halvings, -1, -1)
    ]
    return stages if pretrain is None else [phase(pretrain, before, pretrain_rate, first=True), *stages]


def locate(phases: list[Phase], step: int) -> tuple[int, int]:
    """(index of the phase, step within it) for a global step."""
    for index, phase in enumerate(phases):
        if step < phase.steps:
            return index, step
        step -= phase.steps
    raise ValueError(f"step lies {step} steps beyond the last phase")
