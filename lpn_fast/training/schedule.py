"""What a training run does when: a list of phases, each with its loss, its length and its learning rate."""

import math
from dataclasses import dataclass

from .losses import ProximalMatchingLoss, l1_loss, l2_loss

LOSSES = ("l1", "l2", "matching")


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one loss.

    Parameters
    ----------
    loss : "l1", "l2" or "matching"
    steps : int
    learning_rate : float
        Of Adam, at the start of the phase.
    final_learning_rate : float, optional
        Reached on a cosine at the end of the phase; None keeps the rate constant.
    gamma : float, optional
        Width of proximal matching, for "matching" only.
    """

    loss: str
    steps: int
    learning_rate: float
    final_learning_rate: float | None = None
    gamma: float | None = None

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

    def rate(self, step: int) -> float:
        """Learning rate at `step`, 0 <= step < steps."""
        if self.final_learning_rate is None:
            return self.learning_rate
        wave = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * wave

    def criterion(self):
        """The loss as a function (pred, target, weight) -> scalar Tensor."""
        if self.loss == "matching":
            return ProximalMatchingLoss(self.gamma)
        return {"l1": l1_loss, "l2": l2_loss}[self.loss]


def published_phases(
    entries: int, steps: int = 40_000, pretrain: str = "l1", gamma_min: float | None = None, halvings: int = 3
) -> list[Phase]:
    """The published schedule: half the steps pre-training, then proximal matching with gamma halving by stage.

    Parameters
    ----------
    entries : int
        Number of entries n of a sample (H W C of a training crop).
    steps : int
        Total steps.
    pretrain : "l1" or "l2"
    gamma_min : float, optional
        Last gamma; by default 0.08 sqrt(n). The stages use gamma_min 2^halvings, ..., 2 gamma_min, gamma_min.
    halvings : int
        Number of halvings; there is one stage more.

    Returns
    -------
    list of Phase
    """
    gamma_min = 0.08 * math.sqrt(entries) if gamma_min is None else gamma_min
    each = (steps - steps // 2) // (halvings + 1)
    stages = [Phase("matching", each, 1e-4, gamma=gamma_min * 2**k) for k in range(halvings, -1, -1)]
    return [Phase(pretrain, steps // 2, 1e-3), *stages]


def locate(phases: list[Phase], step: int) -> tuple[int, int]:
    """(index of the phase, step within it) for a global step."""
    for index, phase in enumerate(phases):
        if step < phase.steps:
            return index, step
        step -= phase.steps
    raise ValueError(f"step lies {step} steps beyond the last phase")
