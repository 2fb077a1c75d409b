"""Blur: convolution with one kernel, on every channel alike.

    circular   (A x)[i] = sum_j k[j] x[i - j + c],  indices modulo the image size, c = (kh // 2, kw // 2)
               y has the size of x, and A = F^* diag(K) F is diagonal in the Fourier basis, so
               argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2
                   = F^* (F z + gamma conj(K) F y) / (1 + gamma |K|^2)
    full       (A x)[i] = sum_j k[j] x[i - j],  x zero outside the image
               y is (H + kh - 1, W + kw - 1): nothing of the image is lost; no closed form of the prox

Both run through the real FFT on one grid G: with E = zero padding to G and P = crop to the size of
y, full convolution is A = P C E for the circular C on G (G at least the size of y, so nothing
wraps), and A^T = E^T C^T P^T is again padding, conj(K), crop. The adjoint is matched by
construction. The FFT, not a convolution layer, because cuDNN may round the latter to TF32 and
the adjoint would hold to three digits only.

||A|| <= sum |k| for both boundaries (Young's inequality), with equality for non-negative circular kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpn_fast.per_sample import check_positive, column
from lpn_fast.physics.base import Physics

BOUNDARIES = ("circular", "full")
CACHED_GRIDS = 8  # transfer functions kept: a folder of images of many sizes must not fill the memory


class Blur(Physics):
    """Convolution of every channel with one kernel.

    Parameters
    ----------
    kernel : Tensor, shape (kh, kw)
        Kernel, any sizes, odd or even; its centre is (kh // 2, kw // 2). Not normalised here.
    boundary : "circular" or "full"
        Wrap around, y of the size of x; or zero outside the image, y of size (H + kh - 1, W + kw - 1).

    Raises
    ------
    ValueError
        A kernel that is not two-dimensional, empty or not finite; an unknown boundary.

    Examples
    --------
    >>> import torch
    >>> blur = Blur(torch.ones(3, 3) / 9, boundary="full")
    >>> blur.A(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 1, 30, 30])
    """

    def __init__(self, kernel: Tensor, boundary: str = "circular"):
        kernel = torch.as_tensor(kernel).detach().to("cpu", torch.float64)
        if kernel.dim() != 2 or kernel.numel() == 0:
            raise ValueError(f"kernel must have shape (kh, kw), got {tuple(kernel.shape)}")
        if not bool(kernel.isfinite().all()):
            raise ValueError("kernel must be finite, got NaN or infinite values")
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be 'circular' or 'full', got {boundary!r}")
        self.kernel = kernel
        self.boundary = boundary
        self._transfers: dict[tuple, Tensor] = {}

    @classmethod
    def gaussian(cls, sigma: float, boundary: str = "circular", size: int | None = None) -> Blur:
        """Blur with a sampled Gaussian of unit sum.

        Parameters
        ----------
        sigma : float
            Standard deviation in pixels.
        boundary : "circular" or "full"
            As in the class.
        size : int, optional
            Side of the kernel. None is the rule of the published deblurring experiments
            (arXiv 2310.14344): max(5, int(3 sigma)), plus one if that is even.

        Returns
        -------
        Blur

        Raises
        ------
        ValueError
            sigma not positive, or size below 1.

        Examples
        --------
        >>> Blur.gaussian(2.0, boundary="full")
        Blur(kernel 7 x 7, boundary='full')
        """
        check_positive("sigma", sigma, samples=1)
        if size is None:
            size = max(5, int(3 * sigma)) | 1
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        offsets = torch.arange(size, dtype=torch.float64) - size // 2  # (size,)
        taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = torch.outer(taps, taps)
        return cls(kernel / kernel.sum(), boundary)

    def A(self, x: Tensor) -> Tensor:
        """Blurred images.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W), float32 or float64

        Returns
        -------
        Tensor, shape (N, C, H, W) if circular, (N, C, H + kh - 1, W + kw - 1) if full
        """
        _check_images("x", x)
        data_size = self._image_to_data(*x.shape[-2:])
        grid = self._grid(*data_size)
        return _filter(x, self._transfer(grid, x), grid, data_size)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Adjoint of the blur: correlation with the kernel.

        Parameters
        ----------
        y : Tensor, shape (N, C, H, W) if circular, (N, C, H + kh - 1, W + kw - 1) if full

        Returns
        -------
        Tensor, shape (N, C, H, W)

        Raises
        ------
        ValueError
            With the full boundary, y smaller than the kernel.
        """
        _check_images("y", y)
        image_size = self._data_to_image(*y.shape[-2:])
        if min(image_size) < 1:
            raise ValueError(f"y must be at least as large as the {self._size()} kernel, got {tuple(y.shape)}")
        grid = self._grid(*y.shape[-2:])
        return _filter(y, self._transfer(grid, y).conj(), grid, image_size)

    def norm(self) -> float:
        """Upper bound sum |k| on ||A||, attained by a non-negative kernel with circular boundary."""
        return float(self.kernel.abs().sum())

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2.

        In closed form for the circular boundary, by conjugate gradients for the full one.

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
            Points.
        y : Tensor, shape as ``A(z)``
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
        _check_images("z", z)
        wanted = (*z.shape[:2], *self._image_to_data(*z.shape[-2:]))
        if y.shape != wanted:
            raise ValueError(f"y must have shape {wanted} for z of shape {tuple(z.shape)}, got {tuple(y.shape)}")
        if self.boundary == "full":
            return super().prox_l2(z, y, gamma)
        check_positive("gamma", gamma, len(z))
        size = tuple(z.shape[-2:])
        transfer = self._transfer(size, z)  # (H, W // 2 + 1)
        weight = column(gamma, z)
        spectrum = torch.fft.rfft2(z) + weight * transfer.conj() * torch.fft.rfft2(y)
        spectrum = spectrum / (1 + weight * transfer.abs().square())
        return torch.fft.irfft2(spectrum, s=size)

    def __repr__(self) -> str:
        return f"Blur(kernel {self._size()}, boundary={self.boundary!r})"

    def _size(self) -> str:
        return " x ".join(map(str, self.kernel.shape))

    def _image_to_data(self, height: int, width: int) -> tuple[int, int]:
        kh, kw = self.kernel.shape
        return (height, width) if self.boundary == "circular" else (height + kh - 1, width + kw - 1)

    def _data_to_image(self, height: int, width: int) -> tuple[int, int]:
        kh, kw = self.kernel.shape
        return (height, width) if self.boundary == "circular" else (height - kh + 1, width - kw + 1)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Size of the FFT for measurements of this size; a full one is free to take a faster size."""
        if self.boundary == "circular":
            return height, width
        return _fast_fft_size(height), _fast_fft_size(width)

    def _transfer(self, grid: tuple[int, int], like: Tensor) -> Tensor:  # (Gh, Gw // 2 + 1) complex
        """Transfer function K on the grid, on the device and in the precision of ``like``."""
        key = (*grid, like.dtype, like.device)
        if key not in self._transfers:
            if len(self._transfers) >= CACHED_GRIDS:
                self._transfers.pop(next(iter(self._transfers)))
            # Made outside inference mode: a cached inference tensor could not enter autograd later.
            with torch.inference_mode(False), torch.no_grad():
                spectrum = torch.fft.rfft2(self._embedded(*grid))
                complex_type = torch.complex64 if like.dtype == torch.float32 else torch.complex128
                self._transfers[key] = spectrum.to(like.device, complex_type)
        return self._transfers[key]

    def _embedded(self, height: int, width: int) -> Tensor:  # (height, width) float64
        """The kernel on the grid: its centre (circular) or its first entry (full) at the origin.

        A kernel larger than the image wraps around and adds up, as circular convolution demands.
        """
        kh, kw = self.kernel.shape
        top, left = (kh // 2, kw // 2) if self.boundary == "circular" else (0, 0)
        rows = (torch.arange(kh) - top) % height  # (kh,)
        columns = (torch.arange(kw) - left) % width  # (kw,)
        plane = torch.zeros(height, width, dtype=torch.float64)
        return plane.index_put((rows[:, None], columns[None, :]), self.kernel, accumulate=True)


def _filter(
    images: Tensor,  # (N, C, h, w), zero-padded to the grid by the transform
    transfer: Tensor,  # (Gh, Gw // 2 + 1) complex
    grid: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:  # (N, C, *size)
    filtered = torch.fft.irfft2(torch.fft.rfft2(images, s=grid) * transfer, s=grid)
    return filtered[..., : size[0], : size[1]]


def _check_images(name: str, images: Tensor) -> None:
    if images.dim() != 4:
        remedy = f"; add a batch axis with {name}[None]" if images.dim() == 3 else ""
        raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(images.shape)}{remedy}")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {images.dtype}")


def _fast_fft_size(size: int) -> int:
    """Smallest even number not below ``size`` with no prime factor above 7: those transforms are fast."""
    candidate = size + size % 2
    while True:
        rest = candidate
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
        candidate += 2
