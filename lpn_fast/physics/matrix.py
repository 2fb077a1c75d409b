"""Operators of other libraries: matrices, dense or sparse, and linear operators that have products.

    y = A x  with x the flattened image,     A^T y by the transpose (the conjugate one for complex matrices)

scipy.sparse matrices, scipy, pylops and pyproximal LinearOperators, ASTRA's OpTomo and NumPy arrays all have a shape
(m, n), a product with a vector and one by the adjoint; that is all that is used of them. They compute on the CPU, in
their own precision; images and measurements are converted on the way. Complex measurements are two real numbers each,
real part and imaginary part, as everywhere in this package.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contract import check_batch
from .base import Physics, operator_norm_bound

NORM_RISK, NORM_STEPS = 1e-9, 40


class Matrix(Physics):
    """A matrix or an object with products, acting on every sample alike; made by `from_matrix`.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> lf.physics.from_matrix(torch.ones(2, 12), image_shape=(1, 3, 4)).A(torch.ones(5, 1, 3, 4)).shape
    torch.Size([5, 2])
    """

    def __init__(self, operator: Any, image_shape: tuple[int, ...], data_shape: tuple[int, ...] | None):
        rows, columns = _shape(operator)
        if math.prod(image_shape) != columns or min(image_shape) < 1:
            raise ValueError(f"image_shape must have {columns} entries, as the operator has columns, got {image_shape}")
        data_shape = (rows,) if data_shape is None else data_shape
        if math.prod(data_shape) != rows or min(data_shape) < 1:
            raise ValueError(f"data_shape must have {rows} entries, as the operator has rows, got {data_shape}")
        self.operator, self.image_shape, self.data_shape = operator, image_shape, data_shape
        self.is_complex = np.dtype(getattr(operator, "dtype", None) or np.float64).kind == "c"
        self._norm: float | None = None

    def A(self, x: Tensor) -> Tensor:
        """Measurements, shape (N, *data_shape), or (N, 2, *data_shape) of a complex operator."""
        return self._applied(x, self._samples("x", x, self.image_shape), adjoint=False)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Images A^T y, shape (N, *image_shape); the real part of a complex operator's."""
        shape = (2, *self.data_shape) if self.is_complex else self.data_shape
        return self._applied(y, self._samples("y", y, shape), adjoint=True)

    def norm(self) -> float:
        """Upper bound on ||A||, but for a probability of 1e-9; found once, by 40 products with four vectors."""
        if self._norm is None:
            self._norm = operator_norm_bound(
                self, self.image_shape, failure_probability=NORM_RISK, max_iter=NORM_STEPS, dtype=torch.float64
            )
        return self._norm

    def probable_norm(self) -> tuple[float, float]:
        """The bound and the probability with which it fails."""
        return self.norm(), NORM_RISK

    def as_real(self, y: Tensor) -> Tensor:
        """Complex measurements (N, *data_shape) as the real numbers that `A` measures."""
        return torch.view_as_real(y).movedim(-1, 1)

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """Shape of `A(x)` for images (N, *image_shape)."""
        leading = tuple(image_shape)[: len(image_shape) - len(self.image_shape)]
        return (*leading, *((2,) if self.is_complex else ()), *self.data_shape)

    def __repr__(self) -> str:
        kind = type(self.operator).__name__
        return f"Matrix({kind} {' x '.join(map(str, _shape(self.operator)))}, images {self.image_shape})"

    def _samples(self, name: str, batch: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(N,), or (N, C) where images have no channels for the operator, so that each is one to it."""
        by_channel = isinstance(batch, Tensor) and len(self.image_shape) == 2 and batch.dim() == 2 + len(shape)
        check_batch(name, batch, ("N", *(("C",) if by_channel else ()), *shape))
        return tuple(batch.shape[: 1 + by_channel])

    def _applied(self, batch: Tensor, samples: tuple[int, ...], *, adjoint: bool) -> Tensor:
        """Products of all samples: at once with what is a matrix, one by one with what has products of vectors."""
        values = batch.detach().to("cpu", torch.float64).numpy()
        if adjoint and self.is_complex:
            values = values.reshape(*samples, 2, -1)
            values = values[..., 0, :] + 1j * values[..., 1, :]
        columns = values.reshape(math.prod(samples), -1).T  # (m or n, samples)
        if not hasattr(self.operator, "matvec"):
            operator = _adjoint(self.operator) if adjoint else self.operator
            found = np.asarray(operator @ columns).T
        else:  # their products with several vectors at once may be no more than inherited: ASTRA's refuse two axes
            product = self.operator.rmatvec if adjoint else self.operator.matvec
            found = np.stack([np.asarray(product(np.ascontiguousarray(v))).reshape(-1) for v in columns.T])
        if adjoint:
            found = found.real.reshape(*samples, *self.image_shape)
        elif self.is_complex:
            found = np.stack([found.real, found.imag], axis=1).reshape(*samples, 2, *self.data_shape)
        else:
            found = found.reshape(*samples, *self.data_shape)
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float64)).to(batch.device, batch.dtype)


def from_matrix(operator: Any, image_shape: Sequence[int], data_shape: Sequence[int] | None = None) -> Matrix:
    """A matrix or a linear operator of another library as an operator on batches of images.

    Parameters
    ----------
    operator : array, scipy.sparse matrix or LinearOperator (scipy, pylops, pyproximal, ASTRA's OpTomo)
        Of shape (m, n); real or complex.
    image_shape : (C, H, W), or any shape of one image
        n entries; the operator sees images flattened in C order. (H, W) takes any number of channels (N, C, H, W),
        each by itself.
    data_shape : sequence of int, optional
        Shape of the measurements of one image, m entries; None is (m,).

    Returns
    -------
    Matrix
        Measurements (N, *data_shape), with a 2 in front of data_shape where the operator is complex.

    Raises
    ------
    TypeError, ValueError
        No shape or no products; shapes that do not belong together.

    Examples
    --------
    >>> import scipy.sparse, torch
    >>> first_rows = from_matrix(scipy.sparse.eye(32, 64, format="csr"), (1, 8, 8), (1, 4, 8))
    >>> first_rows.A(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 1, 4, 8])
    """
    if isinstance(operator, Tensor):
        operator = operator.detach().cpu().numpy()
    return Matrix(operator, tuple(image_shape), None if data_shape is None else tuple(data_shape))


def _shape(operator: Any) -> tuple[int, int]:
    shape = tuple(getattr(operator, "shape", ()))
    if len(shape) != 2 or not all(isinstance(side, int | np.integer) for side in shape):
        raise TypeError(f"operator must have a shape (m, n), got {type(operator).__name__} of shape {shape}")
    if not (hasattr(operator, "matvec") or hasattr(operator, "__matmul__")):
        raise TypeError(f"operator must have products (matvec and rmatvec, or @), got {type(operator).__name__}")
    return int(shape[0]), int(shape[1])


def _adjoint(operator: Any) -> Any:
    """A^H: of arrays and sparse matrices by conjugate and transpose, of operators by their own."""
    adjoint = getattr(operator, "H", None)
    return operator.conj().T if adjoint is None else adjoint
