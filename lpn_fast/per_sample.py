"""One number per sample: inner products, norms, and the way back to a batch of images.

    <a, b>_n = sum over all axes but the first of a b          ||a||_n = sqrt <a, a>_n

Sums are accumulated in float64 whatever the input: a solver compares objectives that agree in
their first five digits, and a sum of 10^5 float32 terms has not many more.
"""

from typing import overload

import torch
from torch import Tensor

from .contract import check_number


def dot(
    a: Tensor,  # (N, ...)
    b: Tensor,  # (N, ...)
) -> Tensor:  # (N,) float64
    return (a * b).flatten(1).sum(dim=1, dtype=torch.float64)


def norm(a: Tensor) -> Tensor:  # (N, ...) -> (N,) float64
    return torch.linalg.vector_norm(a.flatten(1), dim=1, dtype=torch.float64)


@overload
def broadcast(value: Tensor, like: Tensor) -> Tensor: ...
@overload
def broadcast(value: float | Tensor, like: Tensor) -> float | Tensor: ...
def broadcast(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A float as it is; a tensor (N,) as (N, 1, ..., 1) in the type of `like`, to scale its samples."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return value.to(like).reshape(-1, *[1] * (like.dim() - 1))


def choose(
    condition: Tensor,  # (N,) bool
    a: Tensor,  # (N, ...)
    b: Tensor,  # (N, ...)
) -> Tensor:  # (N, ...), a's sample where the condition holds, b's elsewhere
    return torch.where(condition.reshape(-1, *[1] * (a.dim() - 1)), a, b)


def check_positive(name: str, value: float | Tensor, samples: int) -> None:
    """Raise unless `value` is a finite positive number, or a tensor (samples,) of them."""
    check_number(name, value)
    if isinstance(value, Tensor):
        if value.dim() > 0 and value.shape != (samples,):
            raise ValueError(f"{name} must be a number or have shape ({samples},), got {tuple(value.shape)}")
        if not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(f"{name} must be positive, got {value.tolist()}")
    elif not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive, got {value}")
