"""Downsampling: an anti-alias blur with circular boundary, then every s-th pixel.

    A = D C,   C = F^* diag(K) F,   (D x)[i] = x[s i]                   H and W are multiples of s
    A A^T = D C C^T D^T is again circular: its kernel is r[s n], every s-th tap of the autocorrelation r of k
    ||A||^2 = ||A A^T|| <= sum_n |r[s n]|,   with equality for non-negative kernels

So the data prox needs one division per frequency of the small image (Woodbury; Zhao et al., IEEE Trans.
Image Process. 25, 2016, write the same in blocks): with b = z + gamma A^T y and L the transfer function of A A^T

    argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2 = b - gamma A^T (1 + gamma L)^-1 A b
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..per_sample import broadcast
from .base import Physics
from .blur import LEAST_SUM, Blur
from .checks import check_count, check_images, check_prox
from .fourier import irfft2, rfft2
from .kernels import gaussian_kernel


class Downsampling(Physics):
    """Blur, then every `factor`-th pixel in both directions, the first one included.

    Parameters
    ----------
    factor : int
        s; 1 keeps all pixels.
    kernel : Tensor, shape (kh, kw), or None
        Anti-alias kernel, applied with circular boundary; None is none, plain decimation.

    Raises
    ------
    TypeError, ValueError
        A factor that is not a whole number of at least 1; a kernel that :class:`Blur` refuses.

    Examples
    --------
    >>> import torch
    >>> Downsampling.gaussian(4).A(torch.rand(2, 3, 32, 24)).shape
    torch.Size([2, 3, 8, 6])
    """

    reaches_all = True

    def __init__(self, factor: int, kernel: Tensor | None = None):
        self.factor = check_count("factor", factor)
        kernel = torch.ones(1, 1) if kernel is None else torch.as_tensor(kernel)
        if kernel.dim() != 2:
            raise ValueError(f"kernel must have shape (kh, kw), got {tuple(kernel.shape)}")
        self.blur = Blur(kernel, "circular")

    @classmethod
    def gaussian(cls, factor: int, sigma: float | None = None) -> "Downsampling":
        """Gaussian anti-alias blur.

        Parameters
        ----------
        factor : int
        sigma : float, optional
            Standard deviation in pixels; None is factor / 2, of which the kernel holds three to each side.

        Returns
        -------
        Downsampling
        """
        check_count("factor", factor)
        sigma = factor / 2 if sigma is None else sigma
        return cls(factor, gaussian_kernel(sigma, size=2 * max(1, round(3 * sigma)) + 1))

    @classmethod
    def average(cls, factor: int) -> "Downsampling":
        """Mean of blocks of factor x factor pixels.

        The block of a kept pixel begins at it: the kernel's centre is its last tap.
        """
        check_count("factor", factor)
        side = 2 * factor - 1  # centred on its last non-zero row: pixels i .. i + factor - 1
        kernel = torch.zeros(side, side, dtype=torch.float64)
        kernel[:factor, :factor] = 1 / factor**2
        return cls(factor, kernel)

    def A(self, x: Tensor) -> Tensor:
        """Small images.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W), float32 or float64
            H and W multiples of the factor.

        Returns
        -------
        Tensor, shape (N, C, H / factor, W / factor)

        Raises
        ------
        ValueError
            Sides that are not multiples of the factor.
        """
        self._check_large("x", x)
        return self._decimate(self.blur.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Zeros between the pixels, then correlation with the kernel.

        Parameters
        ----------
        y : Tensor, shape (N, C, h, w)

        Returns
        -------
        Tensor, shape (N, C, factor h, factor w)
        """
        check_images("y", y)
        s = self.factor
        large = y.new_zeros(*y.shape[:2], y.shape[2] * s, y.shape[3] * s)
        large[..., ::s, ::s] = y
        return self.blur.A_adjoint(large)

    def start(self, y: Tensor) -> Tensor:
        """Bicubic interpolation, (N, C, H, W), every small pixel where the kernel's centre of mass took it from."""
        check_images("y", y)
        kernel = self.blur.kernel
        total = float(kernel.sum())
        if abs(total) < LEAST_SUM * float(kernel.abs().sum()):
            return super().start(y)
        coordinates = []
        for axis, side in enumerate(y.shape[-2:]):
            taps = torch.arange(kernel.shape[axis], dtype=torch.float64)
            mass = float((kernel.sum(1 - axis) * taps).sum()) / total - kernel.shape[axis] // 2
            place = (torch.arange(side * self.factor, dtype=torch.float64) + mass) / self.factor  # in small pixels
            coordinates.append(2 * place / max(1, side - 1) - 1)
        rows, columns = torch.meshgrid(*coordinates, indexing="ij")
        grid = torch.stack([columns, rows], -1).to(y).expand(len(y), -1, -1, -1)
        return F.grid_sample(y, grid, "bicubic", "border", align_corners=True) / total

    def norm(self) -> float:
        """Upper bound sqrt(sum_n |r[s n]|) on ||A||, attained by non-negative kernels."""
        kernel = self.blur.kernel
        kh, kw = kernel.shape
        padded = (2 * kh - 1, 2 * kw - 1)
        spectrum = torch.fft.rfft2(kernel, s=padded)
        r = torch.fft.irfft2(spectrum.abs().square(), s=padded)  # tap n at n modulo the padded size
        rows, columns = (self._multiples(k) % size for k, size in zip((kh, kw), padded, strict=True))
        return float(r[rows[:, None], columns].abs().sum().sqrt()) * (1 + 1e-12)  # rounding of the transforms

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2, in closed form.

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
            Points.
        y : Tensor, shape (N, C, H / factor, W / factor)
            Measurements.
        gamma : float or Tensor, shape (N,)
            Weight of the data, positive.

        Returns
        -------
        Tensor, shape (N, C, H, W)

        Raises
        ------
        ValueError
            gamma not positive, or shapes of z and y that do not belong together.
        """
        self._check_large("z", z)
        check_prox(z, y, gamma, self.measurement_shape(z.shape))
        weight = broadcast(gamma, z)
        b = z + weight * self.A_adjoint(y)
        size = (y.shape[-2], y.shape[-1])
        # A A^T is circular, so its first column is its kernel. Made in the type of z: the same A to rounding.
        delta = z.new_zeros(1, 1, *size)
        delta[..., 0, 0] = 1
        transfer = rfft2(self.A(self.A_adjoint(delta)), size).real.clamp_min(0)  # L, (1, 1, h, w // 2 + 1)
        solved = irfft2(rfft2(self.A(b), size) / (1 + weight * transfer), size)
        return b - weight * self.A_adjoint(solved)

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """(N, C, H / factor, W / factor) for images (N, C, H, W)."""
        return (*image_shape[:2], *(side // self.factor for side in image_shape[-2:]))

    def __repr__(self) -> str:
        return f"Downsampling(factor {self.factor}, kernel {' x '.join(map(str, self.blur.kernel.shape))})"

    def _decimate(self, images: Tensor) -> Tensor:
        return images[..., :: self.factor, :: self.factor]

    def _check_large(self, name: str, images: Tensor) -> None:
        check_images(name, images)
        height, width = images.shape[-2:]
        s = self.factor
        if height % s or width % s or not height or not width:
            raise ValueError(
                f"{name} must have sides that are multiples of {s}, got {tuple(images.shape)}; "
                f"crop to {name}[..., :{height - height % s}, :{width - width % s}]"
            )

    def _multiples(self, taps: int) -> Tensor:
        """Multiples of s among the offsets -(taps - 1) .. taps - 1 of an autocorrelation."""
        reach = (taps - 1) // self.factor
        return self.factor * torch.arange(-reach, reach + 1)
