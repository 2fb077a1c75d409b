"""What solvers require of a measurement operator and of a noise model, whoever wrote them."""

from typing import Protocol

import torch
from torch import Tensor


class LinearOperator(Protocol):
    """A linear operator with a matched adjoint, acting on every sample alone: <A x, y> = <x, A^T y>.

    These two methods are enough. What else an operator has, solvers look up by name: `norm()` or `probable_norm()`,
    `prox_l2(z, y, gamma)`, `select(samples)` where samples have operators of their own, and `noise`, a `NoiseModel`.
    `Physics` is a base class that provides most of these, and no operator has to derive from it.
    """

    def A(self, x: Tensor, /) -> Tensor:  # (N, ...) -> (N, ...)
        """Measurements of images."""
        ...

    def A_adjoint(self, y: Tensor, /) -> Tensor:  # (N, ...) -> (N, ...)
        """Images A^T y."""
        ...


class NoiseModel(Protocol):
    """Noise that can be drawn and whose strength is known."""

    def add(self, clean: Tensor, generator: torch.Generator | int | None = None, /) -> Tensor:
        """Measurements (N, ...) with noise."""
        ...

    def level(self, y: Tensor, /) -> Tensor:
        """Standard deviation of the noise in each sample of y, (N,) float64."""
        ...
