"""What a method of the comparison gives back."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """Images (N, 1, H, W), iterations (N,), and what is known beyond: objective (iterations, N), text for the table."""

    x: Tensor
    iterations: Tensor | int
    objective: Tensor | None = None
    converged: int | str = ""
    outside: float | str = ""  # the largest factor by which a condition is missed; 1 inside the theorem
    misfit: float | str = ""
    config: dict = field(default_factory=dict)
