"""Parallel-beam computed tomography.

    (A x)[angle, k] = integral of x along the line  u cos(theta) + v sin(theta) = t_k     (geometry.py, Joseph's model)
    A^T             = the exact transpose, not a look-alike: <A x, y> = <x, A^T y> to rounding
    fbp(y)          = sum over angles of  share  (ramp * y)[angle, u cos(theta) + v sin(theta)]

||A|| comes with a proof. A has no negative entry, so for every positive image x (Collatz, 1942; Wielandt, 1950)

    ||A||^2 = rho(A^T A) <= max_i (A^T A x)_i / x_i,          while  ||A|| >= ||A x|| / ||x||

x = 1 gives a bound at once; a few steps x <- A^T A x bring the two within a percent of each other.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...contract import check_batch
from ...per_sample import check_positive
from ..base import Physics
from ..checks import check_count, check_prox, check_size
from ..starts import fitted
from .filters import WINDOWS, filter_rows
from .geometry import ParallelBeamGeometry
from .projector import Projector

NORM_GAP = 0.01  # upper / lower bound - 1 at which norm() is content
NORM_STEPS = 40
# Covers the rounding of weights and sums in float32, a few units of 6e-8.
NORM_ROUNDING = 1 + 1e-6


class ParallelBeamCT(Physics):
    """Line integrals of images over parallel rays.

    Lengths (`pixel`, `extent`, the line integrals) are in one unit, the caller's: with `pixel`
    in mm and an attenuation per mm, measurements are pure numbers.

    Parameters
    ----------
    size : int or (int, int)
        Pixels of the image, (height, width) or the side of a square.
    angles : int or sequence of float
        That many equidistant angles (i + 1/2) pi / count, or the angles themselves in radians.
    bins : int, optional
        Detector elements. None: as many as make them no wider than a pixel.
    extent : float, optional
        The bins fill [-extent, extent]. None: half the diagonal of the image, which sees all of it.
    pixel : float
        Side of a pixel.
    backend : "auto", "cpu" or "torch"
        Compiled (CPU tensors), torch operations (any device), or compiled where it can run.
        Results agree to rounding.

    Attributes
    ----------
    geometry : ParallelBeamGeometry

    Raises
    ------
    TypeError, ValueError
        Sizes that are not positive integers, angles that are not finite, lengths that are not positive.

    Examples
    --------
    >>> import torch
    >>> ct = ParallelBeamCT(32, angles=24)
    >>> ct.A(torch.ones(2, 1, 32, 32)).shape
    torch.Size([2, 1, 24, 46])
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        angles: int | Sequence[float] | Tensor,
        bins: int | None = None,
        *,
        extent: float | None = None,
        pixel: float = 1.0,
        backend: str = "auto",
    ):
        height, width = check_size("size", size)
        check_positive("pixel", pixel, samples=1)
        diagonal = math.hypot(height, width) * pixel
        extent = diagonal / 2 if extent is None else float(extent)
        check_positive("extent", extent, samples=1)
        bins = math.ceil(2 * extent / pixel) if bins is None else check_count("bins", bins)
        self.geometry = ParallelBeamGeometry(height, width, float(pixel), _angles(angles), bins, 2 * extent / bins)
        self._projector = Projector(self.geometry, backend)
        self._norm: float | None = None

    @classmethod
    def published(cls, backend: str = "auto") -> "ParallelBeamCT":
        """The scan of the published experiments (arXiv 2310.14344, code of its authors).

        512 x 512 pixels of side 0.5, 200 angles (i + 1/2) pi / 200, 400 bins over +-128 sqrt(2) = +-181.02.
        The noise there is Gaussian with standard deviation 2 on line integrals of images in [0, 1].

        Examples
        --------
        >>> ParallelBeamCT.published()
        ParallelBeamCT(512 x 512 pixels of 0.5, 200 angles, 400 bins of 0.9051)
        """
        return cls(512, 200, 400, extent=128 * math.sqrt(2), pixel=0.5, backend=backend)

    def A(self, x: Tensor) -> Tensor:
        """Sinograms.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W), float32 or float64

        Returns
        -------
        Tensor, shape (N, C, angles, bins)
            Intensity times length.
        """
        check_batch("x", x, ("N", "C", self.geometry.height, self.geometry.width))
        return _Project.apply(x, self._projector)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Transpose of the projector, without any filter.

        Parameters
        ----------
        y : Tensor, shape (N, C, angles, bins)

        Returns
        -------
        Tensor, shape (N, C, H, W)
        """
        self._check_sinogram(y)
        return _Transpose.apply(y, self._projector)

    def fbp(self, y: Tensor, window: str = "ramp", cutoff: float = 1.0) -> Tensor:
        """Filtered back-projection: the classical inverse, exact for fine angles and bins.

        Parameters
        ----------
        y : Tensor, shape (N, C, angles, bins)
            Sinograms; the angles should cover a half turn, each is weighted by its share of it.
        window : "ramp", "shepp-logan", "cosine", "hamming" or "hann"
            Factor on the ramp; "ramp" is none (Ram-Lak).
        cutoff : float in (0, 1]
            Highest frequency passed, as a fraction of half the sampling rate of the bins.

        Returns
        -------
        Tensor, shape (N, C, H, W)
            In the intensity units of the image.

        Raises
        ------
        ValueError
            An unknown window, a cutoff outside (0, 1], sinograms of another shape, NaN or infinite values.
        """
        self._check_sinogram(y)
        if window not in WINDOWS:
            raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window!r}")
        if not 0 < cutoff <= 1:
            raise ValueError(f"cutoff must lie in (0, 1], got {cutoff}")
        if not bool(y.isfinite().all()):
            raise ValueError("y must be finite, got NaN or infinite values")
        return self._projector.backproject(filter_rows(y, self.geometry.spacing, window, cutoff))

    def start(self, y: Tensor) -> Tensor:
        """Filtered back-projection of the sinograms y, shape (N, C, H, W), scaled to fit them best."""
        image = self.fbp(y)
        return fitted(self, image, self.A_adjoint(y))

    def norm(self) -> float:
        """Upper bound on ||A||, proved and within 1 % of the norm (see the head of this file)."""
        if self._norm is None:
            self._norm = self._bound()
        return self._norm

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(N, C, angles, bins) for images (N, C, H, W)."""
        return (*image_shape[:2], len(self.geometry.angles), self.geometry.bins)

    @property
    def has_closed_prox(self) -> bool:
        """Never."""
        return False

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2, by conjugate gradients; see the base class."""
        check_batch("z", z, ("N", "C", self.geometry.height, self.geometry.width))
        check_prox(z, y, gamma, self.measurement_shape(z.shape))
        return super().prox_l2(z, y, gamma)

    def __repr__(self) -> str:
        g = self.geometry
        return (
            f"ParallelBeamCT({g.height} x {g.width} pixels of {g.pixel:.4g}, {len(g.angles)} angles, "
            f"{g.bins} bins of {g.spacing:.4g})"
        )

    def _check_sinogram(self, y: Tensor) -> None:
        check_batch("y", y, ("N", "C", len(self.geometry.angles), self.geometry.bins))

    @torch.no_grad()
    def _bound(self) -> float:
        x = torch.ones(1, 1, self.geometry.height, self.geometry.width, dtype=torch.float64)
        upper = math.inf
        for _ in range(NORM_STEPS):
            y = self._projector.project(x)
            product = self._projector.transpose(y)
            # A pixel that no ray meets is a zero column of A: its product is 0, and so is x from then on.
            ratio = torch.where(product > 0, product / x, 0.0)
            upper = min(upper, math.sqrt(float(ratio.max())))
            lower = float(y.norm() / x.norm())
            if upper <= (1 + NORM_GAP) * lower:  # at once where no ray meets the image: 0 <= 0
                break
            x = product / product.max()  # a pixel that some ray meets stays positive: (A^T A)_ii > 0
        return upper * NORM_ROUNDING


class _Linear(torch.autograd.Function):
    """What A and A^T share: nothing is kept for the derivative but the projector itself."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.projector = inputs[1]

    @classmethod
    def vmap(cls, info, in_dims, tensor: Tensor, projector: Projector):
        """One more axis of samples."""
        tensor = tensor.movedim(in_dims[0], 0)
        result = cls.apply(tensor.flatten(0, 1), projector)
        return result.unflatten(0, tensor.shape[:2]), 0


class _Project(_Linear):
    """A with its derivatives, which are A^T and A again."""

    @staticmethod
    def forward(x: Tensor, projector: Projector) -> Tensor:
        return projector.project(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Transpose.apply(gradient, ctx.projector), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _):
        return _Project.apply(tangent, ctx.projector)


class _Transpose(_Linear):
    """A^T with its derivatives, which are A and A^T again."""

    @staticmethod
    def forward(y: Tensor, projector: Projector) -> Tensor:
        return projector.transpose(y)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Project.apply(gradient, ctx.projector), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _):
        return _Transpose.apply(tangent, ctx.projector)


def _angles(angles: int | Sequence[float] | Tensor) -> tuple[float, ...]:
    if isinstance(angles, int):
        count = check_count("angles", angles)
        return tuple((i + 0.5) * math.pi / count for i in range(count))
    values = torch.as_tensor(angles, dtype=torch.float64)
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"angles must be a number or a sequence of radians, got shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError("angles must be finite, got NaN or infinite values")
    return tuple(values.tolist())
