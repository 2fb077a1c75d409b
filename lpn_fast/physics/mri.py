"""Magnetic resonance imaging: some frequencies of a real or complex image, seen by one coil or several.

    y_c = m F (S_c x),     F unitary,  m the sampling mask,  S_c complex sensitivities
    A^T y = Re sum_c conj(S_c) F^* (m y_c),     ||A|| <= max |m| max_pixel sqrt(sum_c |S_c|^2)

Measurements are complex and kept as two real channels (real part, imaginary part), so that sums, norms and noise mean
the same for every physics. Noise of standard deviation s in each of the two is complex noise of variance 2 s^2.
Complex images are two channels likewise, and A^T is without the Re; a network of one channel sees each of the two.

With a single coil and no sensitivity, A^T A is diagonal among real images: the frequencies k and -k carry
the same information, and m^2 enters by its mean over the two,  e(k) = (m(k)^2 + m(-k)^2) / 2, or by itself
among complex ones:

    argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2 = F^* (F (z + gamma A^T y) / (1 + gamma e))
"""

import torch
from torch import Tensor

from ..contract import check_batch
from ..per_sample import broadcast
from .base import Physics
from .checks import check_count, check_prox, check_size
from .fourier import irfft2, rfft2, unitary_fft2, unitary_ifft2
from .starts import fitted

LEAST_POWER = 1e-2  # what the coils hear together, over the largest: where they hear nothing their quotient is noise


class MRI(Physics):
    """Masked Fourier transform of images.

    Parameters
    ----------
    mask : Tensor, shape (H, W) or (N, H, W); bool or numbers
        1 where a frequency is sampled, 0 where not; any finite weights. Frequency zero is at [0, 0], as
        `torch.fft.fft2` has it; use `torch.fft.ifftshift` for a mask drawn with zero in the centre.
        With a first axis, sample n of a batch of exactly N is measured with mask n.
    sensitivities : Tensor, shape (coils, H, W) or (N, coils, H, W), complex or real, optional
        Sensitivity of the receiving coils; None is one coil that sees everything alike.
    complex_images : bool
        Whether images are complex, (N, 2, H, W) with real and imaginary part as channels; measurements have C = 1.

    Raises
    ------
    ValueError
        Shapes that do not belong together, values that are not finite.

    Examples
    --------
    >>> import torch
    >>> MRI(torch.ones(8, 8)).A(torch.rand(3, 1, 8, 8)).shape
    torch.Size([3, 1, 2, 8, 8])
    """

    def __init__(self, mask: Tensor, sensitivities: Tensor | None = None, *, complex_images: bool = False):
        mask = torch.as_tensor(mask).detach().to("cpu", torch.float64)
        if mask.dim() not in (2, 3) or mask.numel() == 0:
            raise ValueError(f"mask must have shape (H, W) or (N, H, W), got {tuple(mask.shape)}")
        if not bool(mask.isfinite().all()):
            raise ValueError("mask must be finite, got NaN or infinite values")
        if sensitivities is not None:
            sensitivities = torch.as_tensor(sensitivities).detach().to("cpu", torch.complex128)
            size, own = mask.shape[-2:], sensitivities.shape
            if sensitivities.dim() not in (3, 4) or own[-2:] != size or not sensitivities.numel():
                raise ValueError(
                    f"sensitivities must have shape (coils, {size[0]}, {size[1]}) or (N, coils, {size[0]}, {size[1]}), "
                    f"got {tuple(own)}"
                )
            if sensitivities.dim() == 4 and mask.dim() == 3 and len(sensitivities) != len(mask):
                raise ValueError(
                    f"sensitivities must be those of {len(mask)} samples as mask is, got {tuple(sensitivities.shape)}"
                )
            if not bool(sensitivities.isfinite().all()):
                raise ValueError("sensitivities must be finite, got NaN or infinite values")
        self.mask = mask
        self.sensitivities = sensitivities
        self.complex_images = complex_images
        self._copies: dict[tuple, tuple] = {}

    @classmethod
    def lines(cls, size: int | tuple[int, int], acceleration: float = 4, centre: float = 0.08, seed: int = 0) -> "MRI":
        """Cartesian sampling: whole columns of frequencies, all near zero and random ones elsewhere.

        Parameters
        ----------
        size : int or (int, int)
            Pixels of the image, (height, width).
        acceleration : float, at least 1
            width / acceleration columns are sampled, rounded.
        centre : float in [0, 1]
            Fraction of all columns that are sampled around frequency zero.
        seed : int
            Seed of the random columns.

        Returns
        -------
        MRI
        """
        height, width = check_size("size", size)
        if not 1 <= acceleration < float("inf"):
            raise ValueError(f"acceleration must be at least 1, got {acceleration}")
        if not 0 <= centre <= 1:
            raise ValueError(f"centre must lie in [0, 1], got {centre}")
        check_count("seed", seed, low=0)
        sampled = max(1, round(width / acceleration))
        always = min(sampled, max(1, round(centre * width)))
        nearest = torch.fft.fftfreq(width).abs().sort(stable=True).indices  # columns, frequency zero first
        rest = nearest[always:]
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        columns = torch.cat([nearest[:always], rest[order[: sampled - always]]])
        mask = torch.zeros(height, width)
        mask[:, columns] = 1
        return cls(mask)

    def A(self, x: Tensor) -> Tensor:
        """Sampled frequencies.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W), float32 or float64

        Returns
        -------
        Tensor, shape (N, C, 2, H, W), or (N, C, coils, 2, H, W) with sensitivities
            Real and imaginary parts; zero where the mask is.
        """
        self._check("x", x, (2 if self.complex_images else "C", *self.mask.shape[-2:]))
        mask, coils, _ = self._parts(x)
        if self.complex_images:
            x = torch.complex(x[:, :1], x[:, 1:])
        seen = x if coils is None else x[:, :, None] * coils
        frequencies = mask * unitary_fft2(seen)
        return torch.view_as_real(frequencies).movedim(-1, -3)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Real part of the zero-filled inverse transform, summed over coils.

        Parameters
        ----------
        y : Tensor, shape (N, C, 2, H, W), or (N, C, coils, 2, H, W) with sensitivities

        Returns
        -------
        Tensor, shape (N, C, H, W)
        """
        self._check("y", y, (1 if self.complex_images else "C", *self._per_channel()))
        mask, coils, _ = self._parts(y)
        frequencies = torch.view_as_complex(y.movedim(-3, -1).contiguous())
        images = unitary_ifft2(mask * frequencies)
        images = images if coils is None else (coils.conj() * images).sum(dim=2)
        return torch.cat([images.real, images.imag], dim=1) if self.complex_images else images.real

    def start(self, y: Tensor) -> Tensor:
        """Coils combined by their sensitivities, missing frequencies zero, scaled to fit y; (N, C, H, W)."""
        back = self.A_adjoint(y)
        if self.sensitivities is None:
            return fitted(self, back, back)
        power = self._power()[..., None, :, :].to(back.device, back.dtype)  # (1, H, W) or (N, 1, H, W)
        return fitted(self, back / power.clamp_min(LEAST_POWER * float(power.max())), back)

    def select(self, samples: Tensor) -> "MRI":
        """The operator of these samples of the batch; itself if all samples share mask and coils."""
        mask, coils, chosen = self.mask, self.sensitivities, samples.to("cpu")
        if mask.dim() == 2 and (coils is None or coils.dim() == 3):
            return self
        mask = mask[chosen] if mask.dim() == 3 else mask
        coils = coils[chosen] if coils is not None and coils.dim() == 4 else coils
        return MRI(mask, coils, complex_images=self.complex_images)

    def norm(self) -> float:
        """Upper bound max |m| max_pixel sqrt(sum_c |S_c|^2) on ||A||; attained without sensitivities if m is even."""
        mask = float(self.mask.abs().max())
        if self.sensitivities is None:
            return mask
        return mask * float(self._power().max().sqrt())

    @property
    def has_closed_prox(self) -> bool:
        """Without sensitivities."""
        return self.sensitivities is None

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2.

        In closed form without sensitivities, by conjugate gradients with them.

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
        """
        self._check("z", z, (2 if self.complex_images else "C", *self.mask.shape[-2:]))
        check_prox(z, y, gamma, self.measurement_shape(z.shape))
        if not self.has_closed_prox:
            return super().prox_l2(z, y, gamma)
        _, _, energy = self._parts(z)
        weight = broadcast(gamma, z)
        size = (z.shape[-2], z.shape[-1])
        right = z + weight * self.A_adjoint(y)
        if self.complex_images:
            image = unitary_ifft2(unitary_fft2(torch.complex(right[:, :1], right[:, 1:])) / (1 + weight * energy))
            return torch.cat([image.real, image.imag], dim=1)
        return irfft2(rfft2(right, size) / (1 + weight * energy), size)

    def as_real(self, y: Tensor) -> Tensor:
        """Complex frequencies (N, C, H, W), or (N, C, coils, H, W), as the real numbers that `A` measures."""
        return torch.view_as_real(y).movedim(-1, -3)

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """(N, C, 2, H, W), or (N, C, coils, 2, H, W), for images (N, C, H, W)."""
        return (image_shape[0], 1 if self.complex_images else image_shape[1], *self._per_channel())

    def __repr__(self) -> str:
        sampled = (self.mask != 0).double().mean()
        coils = "" if self.sensitivities is None else f", {self.sensitivities.shape[-3]} coils"
        coils += ", complex images" if self.complex_images else ""
        return f"MRI(mask {' x '.join(map(str, self.mask.shape))}, {sampled:.1%} sampled{coils})"

    def _per_channel(self) -> tuple[int, ...]:
        coils = () if self.sensitivities is None else (self.sensitivities.shape[-3],)
        return (*coils, 2, *self.mask.shape[-2:])

    def _check(self, name: str, batch: Tensor, expected: tuple[int | str, ...]) -> None:
        check_batch(name, batch, ("N", *expected))
        for part in (self.mask, self.sensitivities):
            if part is not None and part.dim() == (3 if part is self.mask else 4) and len(part) != len(batch):
                raise ValueError(
                    f"{name} must hold {len(part)} samples, one per mask or set of coils, got {tuple(batch.shape)}"
                )

    def _power(self) -> Tensor:
        """sum_c |S_c|^2, (H, W) or (N, H, W)."""
        assert self.sensitivities is not None
        return self.sensitivities.abs().square().sum(dim=-3)

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mask, sensitivities or None, and e or m^2, as `like` and shaped to be multiplied with a batch.

        Mask (1, H, W) or (N, 1, H, W), and one more 1 with coils; sensitivities (coils, H, W) or (N, 1, coils, H, W);
        e (1, H, W // 2 + 1) or (N, 1, H, W // 2 + 1), m^2 of all frequencies for complex images.
        """
        key = (like.dtype, like.device)
        if key not in self._copies:
            with torch.inference_mode(False):
                mask, coils = self.mask[..., None, :, :], self.sensitivities
                energy = mask.square()
                if not self.complex_images:
                    mirrored = energy.flip(-2, -1).roll((1, 1), dims=(-2, -1))  # m(-k)^2
                    energy = ((energy + mirrored) / 2)[..., : mask.shape[-1] // 2 + 1].contiguous()
                if coils is not None:
                    mask = mask[..., None, :, :]
                    coils = coils[:, None] if coils.dim() == 4 else coils
                    coils = coils.to(like.device, torch.complex64 if like.dtype == torch.float32 else torch.complex128)
                real = (like.device, like.dtype)
                self._copies[key] = mask.to(*real), coils, energy.to(*real)
        return self._copies[key]
