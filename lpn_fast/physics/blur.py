"""Blur: convolution of every channel with a kernel, one for all samples or one for each.

    (A x)[i] = sum_j k[j] x[i - j + c],  c = (kh // 2, kw // 2),  with x continued beyond its borders
    circular     periodically; A = F^* diag(K) F is diagonal in the Fourier basis, so
                 argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2
                     = F^* (F z + gamma conj(K) F y) / (1 + gamma |K|^2)
    reflective   by reflection, the border pixel repeated (boundaries.py)
    full         by zeros, and c = 0: y is (H + kh - 1, W + kw - 1), nothing of the image is lost
    valid        not at all: y is (H - kh + 1, W - kw + 1), what a camera sees of a scene that goes on beyond the frame

The rim of a valid blur's image, outside y's frame, is estimated with the rest and seldom of interest: `crop`.

All run through the real FFT on one grid G: with E = extension (by zeros or by reflection) and P = crop
to the size of y, A = P C E for the circular C on G (large enough that nothing wraps into what is kept),
and A^T = E^T C^T P^T. The adjoint is matched by construction. The FFT, not a convolution layer, because
cuDNN may round the latter to TF32 and the adjoint would hold to three digits only.

||A|| <= sum |k| for the circular, the full and the valid boundary (Young's inequality), with equality for
non-negative circular kernels. Reflection needs more: the shift by o has norm 1 once averaged with its
mirror images (they are diagonal in the cosine basis), else up to sqrt(2) per axis that it moves along,
since it may read a border pixel twice. Hence, with s = the mean of k and its flips about the centre,

    ||A|| <= sum_o |s[o]| + sum_o |k[o] - s[o]| sqrt(2)^(axes along which o != 0)
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import check_name
from ..per_sample import broadcast
from .base import Physics
from .boundaries import fold, reflect
from .checks import check_images, check_prox
from .fourier import irfft2, rfft2
from .kernels import gaussian_kernel

BOUNDARIES = ("circular", "reflective", "full", "valid")
CACHED_GRIDS = 8  # transfer functions kept: a folder of images of many sizes must not fill the memory

UNIT_SUM = 0.01  # distance of a kernel's sum from 1 that is no rounding
LEAST_SUM = 0.1  # a kernel's sum over that of its magnitudes: below it an edge filter, whose output is no picture


class Blur(Physics):
    """Convolution of every channel with one kernel, the same for all samples or one per sample.

    Parameters
    ----------
    kernel : Tensor, shape (kh, kw) or (N, kh, kw)
        Kernel, any sizes, odd or even; its centre is (kh // 2, kw // 2). Not normalised here.
        With a first axis, sample n of a batch of exactly N is blurred by kernel n.
    boundary : "circular", "reflective", "full" or "valid"
        Continued periodically or by reflection, y of the size of x; or zero outside the image,
        y of size (H + kh - 1, W + kw - 1); or unknown beyond the image, y of size (H - kh + 1, W - kw + 1): right
        for photographs.

    Raises
    ------
    ValueError
        A kernel of another rank, empty or not finite; an unknown boundary.

    Warns
    -----
    UserWarning
        A kernel without negative values whose sum is not 1: it makes images brighter or darker.

    Examples
    --------
    >>> import torch
    >>> blur = Blur(torch.ones(3, 3) / 9, boundary="full")
    >>> blur.A(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 1, 30, 30])
    """

    reaches_all = True

    def __init__(self, kernel: Tensor, boundary: str = "circular"):
        kernel = torch.as_tensor(kernel).detach().to("cpu", torch.float64)
        if kernel.dim() not in (2, 3) or kernel.numel() == 0:
            raise ValueError(f"kernel must have shape (kh, kw) or (N, kh, kw), got {tuple(kernel.shape)}")
        if not bool(kernel.isfinite().all()):
            raise ValueError("kernel must be finite, got NaN or infinite values")
        check_name("boundary", boundary, BOUNDARIES)
        total = kernel.sum(dim=(-2, -1))  # () or (N,)
        if bool((kernel >= 0).all()) and bool(((total - 1).abs() > UNIT_SUM).any()):
            warnings.warn(
                f"kernel sums to {float(total.flatten()[(total - 1).abs().argmax()]):.4g}, not 1: the blur scales "
                "images by that; for one that keeps their brightness pass kernel / kernel.sum()",
                UserWarning,
                stacklevel=2,
            )
        self.kernel = kernel
        self.boundary = boundary
        self._transfers: dict[tuple, Tensor] = {}

    @classmethod
    def gaussian(cls, sigma: float, boundary: str = "circular", size: int | str | None = None) -> "Blur":
        """Blur with a sampled Gaussian of unit sum.

        Parameters
        ----------
        sigma : float
            Standard deviation in pixels.
        boundary : "circular", "reflective", "full" or "valid"
            As in the class.
        size : int or "published", optional
            Side of the kernel; None is 4 sigma to each side, see :func:`gaussian_kernel`.

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
        Blur(kernel 17 x 17, boundary='full')
        """
        return cls(gaussian_kernel(sigma, size), boundary)

    def A(self, x: Tensor) -> Tensor:
        """Blurred images.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W), float32 or float64

        Returns
        -------
        Tensor, shape (N, C, H, W), or (N, C, H + kh - 1, W + kw - 1) if full, (N, C, H - kh + 1, W - kw + 1) if valid

        Raises
        ------
        ValueError
            Not as many samples as kernels; with the reflective boundary, an image smaller than half the kernel, with
            the valid one, smaller than the kernel.
        """
        check_images("x", x)
        self._check_samples("x", x)
        data_size = self._image_to_data(*x.shape[-2:])
        if min(data_size) < 1:
            raise ValueError(f"x must be at least as large as the {self._size()} kernel, got {tuple(x.shape)}")
        grid = self._grid(*data_size)
        if self.boundary == "reflective":
            x = reflect(x, *self._margins(*data_size))
        return _filter(x, self._transfer(grid, x), grid, data_size)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Adjoint of the blur: correlation with the kernel.

        Parameters
        ----------
        y : Tensor, shape as `A(x)`

        Returns
        -------
        Tensor, shape (N, C, H, W)

        Raises
        ------
        ValueError
            As for `A`; with the full boundary, y smaller than the kernel.
        """
        check_images("y", y)
        self._check_samples("y", y)
        image_size = self._data_to_image(*y.shape[-2:])
        if min(image_size) < 1:
            raise ValueError(f"y must be at least as large as the {self._size()} kernel, got {tuple(y.shape)}")
        grid = self._grid(*y.shape[-2:])
        transfer = self._transfer(grid, y).conj()
        if self.boundary != "reflective":
            return _filter(y, transfer, grid, image_size)
        before, after = self._margins(*image_size)
        height, width = (low + side + high for low, side, high in zip(before, image_size, after, strict=True))
        return fold(_filter(y, transfer, grid, (height, width)), before, after)

    def start(self, y: Tensor) -> Tensor:
        """The measurements over the kernel's sum, (N, C, H, W); c A^T y if that sum is near 0.

        Cut to the image (full) or continued by the pixels of the border (valid).
        """
        check_images("y", y)
        self._check_samples("y", y)
        total, size = self.kernel.sum(dim=(-2, -1)), self.kernel.abs().sum(dim=(-2, -1))  # () or (N,)
        if bool((total.abs() < LEAST_SUM * size).any()):
            return super().start(y)
        height, width = self._data_to_image(*y.shape[-2:])
        if min(height, width) < 1:
            raise ValueError(f"y must be at least as large as the {self._size()} kernel, got {tuple(y.shape)}")
        if self.boundary == "valid":
            (top, left), (bottom, right) = self._rim()
            return F.pad(y, (left, right, top, bottom), mode="replicate") / broadcast(total, y)
        top, left = (k // 2 if self.boundary == "full" else 0 for k in self.kernel.shape[-2:])
        return y[..., top : top + height, left : left + width] / broadcast(total, y)

    def crop(self, x: Tensor) -> Tensor:
        """The part of images (N, C, H, W) that lies in the frame of y: all of it unless the boundary is valid."""
        if self.boundary != "valid":
            return x
        (top, left), (bottom, right) = self._rim()
        return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]

    def norm(self) -> float:
        """Upper bound on ||A||, see the head of this file; attained by a non-negative circular kernel."""
        plain = self.kernel.abs().sum(dim=(-2, -1))  # () or (N,)
        if self.boundary != "reflective":
            return float(plain.max())
        symmetric, rest, moved = self._mirror_parts()
        bound = symmetric.abs().sum(dim=(-2, -1)) + (rest.abs() * moved).sum(dim=(-2, -1))
        whole = ((symmetric + rest).abs() * moved).sum(dim=(-2, -1))  # without the split; smaller for one far tap
        return float(torch.minimum(bound, whole).max())

    @property
    def has_closed_prox(self) -> bool:
        """For the circular boundary."""
        return self.boundary == "circular"

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2.

        In closed form for the circular boundary, by conjugate gradients for the others.

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
            Points.
        y : Tensor, shape as `A(z)`
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
        check_images("z", z)
        self._check_samples("z", z)
        check_prox(z, y, gamma, self.measurement_shape(z.shape))
        if not self.has_closed_prox:
            return super().prox_l2(z, y, gamma)
        size = (z.shape[-2], z.shape[-1])
        transfer = self._transfer(size, z)  # (H, W // 2 + 1) or (N, 1, H, W // 2 + 1)
        weight = broadcast(gamma, z)
        spectrum = rfft2(z, size) + weight * transfer.conj() * rfft2(y, size)
        spectrum = spectrum / (1 + weight * transfer.abs().square())
        return irfft2(spectrum, size)

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """Shape of `A(x)` for images (N, C, H, W)."""
        return (*image_shape[:2], *self._image_to_data(*image_shape[-2:]))

    def select(self, samples: Tensor) -> "Blur":
        """The blur of these samples of the batch; the operator itself if all samples share one kernel."""
        return self if self.kernel.dim() == 2 else Blur(self.kernel[samples.to("cpu")], self.boundary)

    def __repr__(self) -> str:
        count = "" if self.kernel.dim() == 2 else f"s {len(self.kernel)} x"
        return f"Blur(kernel{count} {self._size()}, boundary={self.boundary!r})"

    def _size(self) -> str:
        return " x ".join(map(str, self.kernel.shape[-2:]))

    def _check_samples(self, name: str, tensor: Tensor) -> None:
        if self.kernel.dim() == 3 and len(tensor) != len(self.kernel):
            raise ValueError(f"{name} must hold {len(self.kernel)} samples, one per kernel, got {tuple(tensor.shape)}")

    def _image_to_data(self, height: int, width: int) -> tuple[int, int]:
        grown = {"full": 1, "valid": -1}.get(self.boundary, 0)
        kh, kw = self.kernel.shape[-2:]
        return height + grown * (kh - 1), width + grown * (kw - 1)

    def _data_to_image(self, height: int, width: int) -> tuple[int, int]:
        grown = {"full": -1, "valid": 1}.get(self.boundary, 0)
        kh, kw = self.kernel.shape[-2:]
        return height + grown * (kh - 1), width + grown * (kw - 1)

    def _rim(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the image that are read beyond the frame of y: (before, after)."""
        kh, kw = self.kernel.shape[-2:]
        after = kh // 2, kw // 2
        return (kh - 1 - after[0], kw - 1 - after[1]), after

    def _margins(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns by which reflection extends an image: (before, after)."""
        before, after = self._rim()
        if after[0] > height or after[1] > width:
            raise ValueError(
                f"images must be at least half as large as the {self._size()} kernel to be reflected, "
                f"got {height} x {width}"
            )
        return before, after

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Size of the FFT for measurements of this size; only a circular one must have just that."""
        if self.boundary == "circular":
            return height, width
        if self.boundary in ("reflective", "valid"):
            height, width = (side + k - 1 for side, k in zip((height, width), self.kernel.shape[-2:], strict=True))
        return _fast_fft_size(height), _fast_fft_size(width)

    def _transfer(self, grid: tuple[int, int], like: Tensor) -> Tensor:  # (Gh, Gw // 2 + 1) or (N, 1, ...) complex
        """Transfer function K on the grid, on the device and in the precision of `like`."""
        key = (*grid, like.dtype, like.device)
        transfer = self._transfers.get(key)
        if transfer is None:
            for oldest in list(self._transfers)[: max(0, len(self._transfers) + 1 - CACHED_GRIDS)]:
                self._transfers.pop(oldest, None)  # None: another thread may have done so
            # Made outside inference mode: a cached inference tensor could not enter autograd later.
            with torch.inference_mode(False), torch.no_grad():
                spectrum = torch.fft.rfft2(self._embedded(*grid))
                complex_type = torch.complex64 if like.dtype == torch.float32 else torch.complex128
                transfer = self._transfers[key] = spectrum.to(like.device, complex_type)
        return transfer

    def _embedded(self, height: int, width: int) -> Tensor:  # (height, width) or (N, 1, height, width) float64
        """The kernel on the grid, shifted so that the first entry of the result is the first measurement.

        At the origin lies the centre (circular), the first entry (full), or the last one (reflective and valid:
        what is read begins before the first measurement). A circular kernel larger than the image
        wraps around and adds up, as circular convolution demands.
        """
        kh, kw = self.kernel.shape[-2:]
        top, left = {"circular": (kh // 2, kw // 2), "full": (0, 0)}.get(self.boundary, (kh - 1, kw - 1))
        rows = (torch.arange(kh) - top) % height  # (kh,)
        columns = (torch.arange(kw) - left) % width  # (kw,)
        plane = torch.zeros(*self.kernel.shape[:-2], height, width, dtype=torch.float64)
        place = rows[:, None], columns[None, :]
        for kernel, target in zip(self.kernel.reshape(-1, kh, kw), plane.reshape(-1, height, width), strict=True):
            target.index_put_(place, kernel, accumulate=True)
        return plane if self.kernel.dim() == 2 else plane[:, None]

    def _mirror_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(s, k - s, sqrt(2)^(axes moved along)) with k padded to odd sides about its centre."""
        kh, kw = self.kernel.shape[-2:]
        centred = torch.nn.functional.pad(self.kernel, (0, 1 - kw % 2, 0, 1 - kh % 2))  # (..., odd, odd)
        symmetric = (centred + centred.flip(-1)) / 2
        symmetric = (symmetric + symmetric.flip(-2)) / 2
        factors = [torch.full((2 * (k // 2) + 1,), 2.0**0.5, dtype=torch.float64) for k in (kh, kw)]
        for factor in factors:
            factor[len(factor) // 2] = 1
        return symmetric, centred - symmetric, torch.outer(*factors)


def _filter(
    images: Tensor,  # (N, C, h, w), zero-padded to the grid by the transform
    transfer: Tensor,  # (Gh, Gw // 2 + 1) or (N, 1, Gh, Gw // 2 + 1) complex
    grid: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:  # (N, C, *size)
    filtered = irfft2(rfft2(images, grid) * transfer, grid)
    return filtered[..., : size[0], : size[1]]


def _fast_fft_size(size: int) -> int:
    """Smallest even number not below `size` with no prime factor above 7: those transforms are fast."""
    candidate = size + size % 2
    while True:
        rest = candidate
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
        candidate += 2
