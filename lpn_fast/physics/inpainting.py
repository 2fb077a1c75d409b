"""Inpainting: some pixels are seen, the others are not.

A x = m x  (elementwise),     ||A|| = max |m|
argmin_x 1/2 ||x - z||^2 + gamma/2 ||m x - y||^2 = (z + gamma m y) / (1 + gamma m^2)
"""

import torch
from torch import Tensor

from ..contract import check_batch
from ..per_sample import broadcast
from .base import Physics
from .checks import check_count, check_images, check_prox, check_size
from .starts import fill


class Inpainting(Physics):
    """Elementwise product with a mask.

    Parameters
    ----------
    mask : Tensor, shape (H, W), (C, H, W) or (N, C, H, W); bool or numbers
        1 where a pixel is seen, 0 where not; any finite weights are accepted. (N, C, H, W) holds one mask
        per sample of a batch of exactly N; its C, or that of (C, H, W), may be 1.

    Raises
    ------
    ValueError
        A mask of another rank, empty, or not finite.

    Examples
    --------
    >>> import torch
    >>> Inpainting(torch.tensor([[True, False]])).A(torch.ones(1, 1, 1, 2))
    tensor([[[[1., 0.]]]])
    """

    def __init__(self, mask: Tensor):
        mask = torch.as_tensor(mask).detach().to("cpu", torch.float64)
        if mask.dim() not in (2, 3, 4) or mask.numel() == 0:
            raise ValueError(f"mask must have shape (H, W), (C, H, W) or (N, C, H, W), got {tuple(mask.shape)}")
        if not bool(mask.isfinite().all()):
            raise ValueError("mask must be finite, got NaN or infinite values")
        self.mask = mask[0] if mask.dim() == 4 and len(mask) == 1 else mask  # one mask is that of every sample
        self._copies: dict[tuple, Tensor] = {}

    @classmethod
    def random(cls, size: int | tuple[int, int], seen: float, seed: int = 0) -> "Inpainting":
        """Mask that sees a given fraction of the pixels, drawn without replacement.

        Parameters
        ----------
        size : int or (int, int)
            Pixels of the image, (height, width).
        seen : float in (0, 1]
            Fraction of the pixels that are seen, rounded to whole pixels.
        seed : int
            The same seed gives the same mask.

        Returns
        -------
        Inpainting
        """
        height, width = check_size("size", size)
        if not 0 < seen <= 1:
            raise ValueError(f"seen must lie in (0, 1], got {seen}")
        check_count("seed", seed, low=0)
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(height * width)
        mask[order[: max(1, round(seen * height * width))]] = 1
        return cls(mask.reshape(height, width))

    def A(self, x: Tensor) -> Tensor:
        """Masked images, shape (N, C, H, W) as x."""
        self._check("x", x)
        return self._mask(x) * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The mask once more, shape (N, C, H, W) as y: a diagonal operator is its own adjoint."""
        self._check("y", y)
        return self._mask(y) * y

    def start(self, y: Tensor) -> Tensor:
        """Pixels that are seen, divided by their weights, and means of the nearest of them elsewhere, shape of y."""
        self._check("y", y)
        mask = self._mask(y).expand_as(y)
        return fill(y / torch.where(mask == 0, 1.0, mask), mask != 0)

    def seen(self, y: Tensor) -> Tensor:
        """Where the mask is not zero, bool, shape of y."""
        self._check("y", y)
        return (self._mask(y) != 0).expand_as(y)

    def norm(self) -> float:
        """||A|| = max |m|."""
        return float(self.mask.abs().max())

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox (z + gamma m y) / (1 + gamma m^2), shape (N, C, H, W); gamma is a float or (N,)."""
        self._check("z", z)
        check_prox(z, y, gamma, z.shape)
        mask, weight = self._mask(z), broadcast(gamma, z)
        return (z + weight * mask * y) / (1 + weight * mask.square())

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """The shape of the images themselves."""
        return tuple(image_shape)

    def select(self, samples: Tensor) -> "Inpainting":
        """The masks of these samples of the batch; the operator itself if all samples share one."""
        return self if self.mask.dim() < 4 else Inpainting(self.mask[samples.to("cpu")])

    def __repr__(self) -> str:
        seen = (self.mask != 0).double().mean()
        return f"Inpainting(mask {' x '.join(map(str, self.mask.shape))}, {seen:.1%} seen)"

    def _check(self, name: str, images: Tensor) -> None:
        check_images(name, images)
        expected = ["N", "C", *self.mask.shape[-2:]]
        for axis, size in zip((1, 0), self.mask.shape[-3::-1], strict=False):
            if size != 1 or axis == 0:
                expected[axis] = size
        check_batch(name, images, tuple(expected))

    def _mask(self, like: Tensor) -> Tensor:  # the mask in the type and on the device of `like`
        key = (like.dtype, like.device)
        if key not in self._copies:
            with torch.inference_mode(False):
                self._copies[key] = self.mask.to(like.device, like.dtype)
        return self._copies[key]
