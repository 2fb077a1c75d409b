"""Compressed sensing with a random circulant matrix and random signs: the published operator.

    A x = (C (s x))[rows],     C v = F^* (K F v),   K = F a,     F the unitary transform of N = H W numbers
    s random signs, a ~ N(0, 1)^N, M rows without replacement                      arXiv 2310.14344
    A^T y = s C^T (y placed at its rows),        ||A|| <= max |K|,  with equality for M = N

C a random circulant makes every measurement a mixture of all pixels at the cost of two transforms, and
E |K|^2 = 1. max |K|^2 grows as log N, the norm of few rows does not: a step that max |K| allows is several times too
small, so solvers go by `probable_norm`.

`flat=True` takes K / |K| for K. C is then orthogonal, A A^T = 1, and the data prox has a closed form:

    argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2 = z + gamma / (1 + gamma) A^T (y - A z)
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..contract import check_batch
from ..per_sample import broadcast
from .base import Physics, operator_norm_bound
from .checks import check_count, check_prox, check_size
from .fourier import filter_last_axis

FAILURE_PROBABILITY = 1e-9  # probability that `probable_norm` is no bound


class CompressedSensing(Physics):
    """Some rows of a random circulant with random signs, per channel.

    Parameters
    ----------
    size : int or (int, int)
        Pixels of the image, (height, width); images are flattened row by row.
    ratio : float in (0, 1]
        M / N; M is rounded down to a whole number. The published ratios are 1/16 and 1/4.
    seed : int
        Seed of signs, filter and rows. The same seed gives the same operator on every machine and
        with every version of torch and NumPy.
    flat : bool
        Unit-modulus spectrum, hence orthonormal rows.

    Raises
    ------
    TypeError, ValueError
        Sizes that are not positive integers, a ratio outside (0, 1] or below one measurement, a negative seed.

    Examples
    --------
    >>> import torch
    >>> CompressedSensing(32, ratio=1 / 16).A(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 1, 64])
    """

    reaches_all = True

    def __init__(self, size: int | tuple[int, int], ratio: float = 1 / 16, *, seed: int = 0, flat: bool = False):
        self.height, self.width = check_size("size", size)
        pixels = self.height * self.width
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
        self.measurements = int(ratio * pixels + 1e-9)  # 1e-9: a ratio such as 1/3 of 9 pixels is 3 of them
        if self.measurements < 1:
            raise ValueError(f"ratio must give at least one of {pixels} measurements, got {ratio}")
        self.seed = check_count("seed", seed, low=0)
        self.flat = flat
        signs, taps, rows = _draw(pixels, self.seed)
        self._signs = signs  # (N,) float64
        self._spectrum = torch.fft.rfft(taps, norm="ortho")  # K, (N // 2 + 1,) complex128
        if flat:
            self._spectrum = self._spectrum / self._spectrum.abs()
        self._rows = rows[: self.measurements].sort().values  # (M,) int64
        self._copies: dict[tuple, tuple] = {}
        self._probable_norm: tuple[float, float] | None = None

    def A(self, x: Tensor) -> Tensor:
        """Measurements.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W), float32 or float64

        Returns
        -------
        Tensor, shape (N, C, M)
        """
        check_batch("x", x, ("N", "C", self.height, self.width))
        signs, spectrum, rows = self._parts(x)
        v = signs * x.flatten(2)  # (N, C, H W)
        return filter_last_axis(v, spectrum, v.shape[-1])[..., rows]

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Adjoint.

        Parameters
        ----------
        y : Tensor, shape (N, C, M)

        Returns
        -------
        Tensor, shape (N, C, H, W)
        """
        check_batch("y", y, ("N", "C", self.measurements))
        signs, spectrum, rows = self._parts(y)
        placed = y.new_zeros(*y.shape[:2], self.height * self.width)
        placed[..., rows] = y
        v = filter_last_axis(placed, spectrum.conj(), placed.shape[-1])
        return (signs * v).unflatten(-1, (self.height, self.width))

    def norm(self) -> float:
        """Upper bound max |K| on ||A||; the norm itself if all rows are measured, or if `flat`."""
        return float(self._spectrum.abs().max()) * (1 + 1e-12)  # rounding of the transform

    def probable_norm(self) -> tuple[float, float]:
        """(bound on ||A||, probability with which it fails).

        Power iteration from random images, see `operator_norm_bound`, or `norm` where that is no larger, which
        never fails. Computed once: 400 products with A and as many with A^T, seconds at 512 x 512 pixels.
        """
        if self._probable_norm is None:
            proved = self.norm()
            if self.flat:
                self._probable_norm = proved, 0.0
            else:
                shape = (1, self.height, self.width)
                bound = operator_norm_bound(self, shape, failure_probability=FAILURE_PROBABILITY, seed=self.seed)
                self._probable_norm = (bound, FAILURE_PROBABILITY) if bound < proved else (proved, 0.0)
        return self._probable_norm

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2.

        In closed form if `flat`, by conjugate gradients otherwise.

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
            Points.
        y : Tensor, shape (N, C, M)
            Measurements.
        gamma : float or Tensor, shape (N,)
            Weight of the data, positive.

        Returns
        -------
        Tensor, shape (N, C, H, W)
        """
        check_batch("z", z, ("N", "C", self.height, self.width))
        check_prox(z, y, gamma, self.measurement_shape(z.shape))
        if not self.flat:
            return super().prox_l2(z, y, gamma)
        weight = broadcast(gamma, z)
        return z + weight / (1 + weight) * self.A_adjoint(y - self.A(z))

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """(N, C, M) for images (N, C, H, W)."""
        return (*image_shape[:2], self.measurements)

    def __repr__(self) -> str:
        pixels = self.height * self.width
        flat = ", flat" if self.flat else ""
        return (
            f"CompressedSensing({self.height} x {self.width} pixels, {self.measurements} measurements "
            f"(1/{pixels / self.measurements:.3g}), seed {self.seed}{flat})"
        )

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signs, spectrum and rows in the precision and on the device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._copies:
            with torch.inference_mode(False):
                complex_type = torch.complex64 if like.dtype == torch.float32 else torch.complex128
                self._copies[key] = (
                    self._signs.to(like.device, like.dtype),
                    self._spectrum.to(like.device, complex_type),
                    self._rows.to(like.device),
                )
        return self._copies[key]


def _draw(pixels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signs (N,), standard normal taps (N,), and a permutation (N,), the same everywhere and always.

    From raw integers: NumPy promises that the stream of a bit generator never changes, and promises no
    such thing of the distributions built on it. Box and Muller's transform makes normal numbers of them.
    """
    raw = np.random.PCG64(seed).random_raw(4 * pixels).reshape(4, pixels)
    signs = 1.0 - 2.0 * (raw[0] >> 63).astype(np.float64)
    unit = ((raw[1:3] >> 11) + 0.5) * 2.0**-53  # (2, N) in (0, 1)
    taps = np.sqrt(-2 * np.log(unit[0])) * np.cos(2 * math.pi * unit[1])
    rows = np.argsort(raw[3], kind="stable")
    return torch.from_numpy(signs), torch.from_numpy(taps), torch.from_numpy(rows)
