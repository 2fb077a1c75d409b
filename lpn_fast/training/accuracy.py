"""The accuracy check of mixed precision: a low precision is used only while it computes the same step.

    prox       |f_low - f| / |f|                  <= PROX_LIMIT
    gradient   |grad_low - grad| / |grad|         <= GRADIENT_LIMIT        (grad of the loss in all parameters)

on one batch of the run itself, against fp32, before the first step of every phase: a smaller gamma makes the
loss, and so the gradient, more sensitive to the digits of f. PROX_LIMIT is a few roundings of bfloat16
(2^-9 each); a gradient that is a tenth wrong is far closer to the true one than that of another batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks import LPN

PROX_LIMIT = 1e-2
GRADIENT_LIMIT = 1e-1


@dataclass(frozen=True)
class AccuracyReport:
    """What the check measured."""

    precision: str
    prox_error: float
    gradient_error: float

    @property
    def holds(self) -> bool:
        """False for NaN, too."""
        return self.prox_error <= PROX_LIMIT and self.gradient_error <= GRADIENT_LIMIT

    def __str__(self) -> str:
        verdict = "is used" if self.holds else "is NOT used, fp32 is"
        return (
            f"{self.precision} {verdict}: against fp32 on one batch, f differs by {self.prox_error:.1e} "
            f"(limit {PROX_LIMIT:g}), the gradient by {self.gradient_error:.1e} (limit {GRADIENT_LIMIT:g})"
        )


def measure(
    model: LPN, precision: str, y: Tensor, sigma: Tensor | None, loss: Callable[[Tensor], Tensor]
) -> AccuracyReport:
    """Compare f(y) and the gradient of loss(f(y)) in `precision` and in fp32; the model's precision is left at fp32.

    Parameters
    ----------
    model : LPN
    precision : str
    y : Tensor, shape (N, ...)
    sigma : Tensor, shape (N,), or None
    loss : callable
        f(y) -> scalar.
    """
    low, full = (_prox_and_gradient(model, name, y, sigma, loss) for name in (precision, "fp32"))
    return AccuracyReport(precision, *(_distance(a, b) for a, b in zip(low, full, strict=True)))


def _prox_and_gradient(model: LPN, precision: str, y, sigma, loss) -> tuple[Tensor, Tensor]:
    """(f(y), gradient), flat, float64."""
    model.precision = precision
    try:
        pred = model(y, sigma)
        gradients = torch.autograd.grad(loss(pred), list(model.parameters()), allow_unused=True)
    finally:
        model.precision = "fp32"
    flat = torch.cat([g.reshape(-1) for g in gradients if g is not None])
    return pred.detach().reshape(-1).double(), flat.double()


def _distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()
