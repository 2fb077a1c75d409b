"""Denoising: the operator that measures the image itself.

A = I,     argmin_x 1/2 ||x - z||^2 + gamma/2 ||x - y||^2 = (z + gamma y) / (1 + gamma)
"""

from torch import Tensor

from ..per_sample import broadcast
from .base import Physics
from .checks import check_prox


class Denoising(Physics):
    """The identity operator; images of any shape.

    Examples
    --------
    >>> import torch
    >>> Denoising().prox_l2(torch.zeros(1, 2), torch.ones(1, 2), gamma=3.0)
    tensor([[0.7500, 0.7500]])
    """

    reaches_all = True

    def A(self, x: Tensor) -> Tensor:
        """The images x themselves, shape (N, ...)."""
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The measurements y themselves, shape (N, ...)."""
        return y

    def start(self, y: Tensor) -> Tensor:
        """The measurements y themselves, shape (N, ...)."""
        return y

    def norm(self) -> float:
        """||I|| = 1."""
        return 1.0

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Weighted mean (z + gamma y) / (1 + gamma), shape (N, ...); gamma is a float or (N,)."""
        check_prox(z, y, gamma, z.shape)
        weight = broadcast(gamma, z)
        return (z + weight * y) / (1 + weight)

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """The shape of the images themselves."""
        return tuple(image_shape)

    def __repr__(self) -> str:
        return "Denoising()"
