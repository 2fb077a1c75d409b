"""Magnetic resonance imaging: some frequencies of a real image, seen by one coil or several.

    y_c = m F (S_c x),     F unitary,  m the sampling mask,  S_c complex sensitivities
    A^T y = Re sum_c conj(S_c) F^* (m y_c),     ||A|| <= max |m| max_pixel sqrt(sum_c |S_c|^2)

Images are real. Measurements are complex and kept as two real channels (real part, imaginary part), so
that sums, norms and noise mean the same for every physics. Noise of standard deviation s in each of the
two is complex noise of variance 2 s^2.

With a single coil and no sensitivity, A^T A is diagonal among real images: the frequencies k and -k carry
the same information, and m^2 enters by its mean over the two,  e(k) = (m(k)^2 + m(-k)^2) / 2:

    argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2 = F^* (F (z + gamma A^T y) / (1 + gamma e))
"""

import torch
from torch import Tensor

from ..per_sample import broadcast
from .base import Physics
from .checks import check_batch, check_count, check_prox, check_size
from .fourier import irfft2, rfft2, unitary_fft2, unitary_ifft2
from .starts import fitted

LEAST_POWER = 1e-2  # of the coils together, over the largest: where they hear nothing their quotient is noise


class MRI(Physics):
    """Masked Fourier transform of real images.

    Parameters
    ----------
    mask : Tensor, shape (H, W); bool or numbers
        1 where a frequency is sampled, 0 where not; any finite weights. Frequency zero is at [0, 0], as
        `torch.fft.fft2` has it; use `torch.fft.ifftshift` for a mask drawn with zero in the centre.
    sensitivities : Tensor, shape (coils, H, W), complex or real, optional
        Sensitivity of the receiving coils; None is one coil that sees everything alike.

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

    def __init__(self, mask: Tensor, sensitivities: Tensor | None = None):
        mask = torch.as_tensor(mask).detach().to("cpu", torch.float64)
        if mask.dim() != 2 or mask.numel() == 0:
            raise ValueError(f"mask must have shape (H, W), got {tuple(mask.shape)}")
        if not bool(mask.isfinite().all()):
            raise ValueError("mask must be finite, got NaN or infinite values")
        if sensitivities is not None:
            sensitivities = torch.as_tensor(sensitivities).detach().to("cpu", torch.complex128)
            if sensitivities.dim() != 3 or sensitivities.shape[1:] != mask.shape or not len(sensitivities):
                raise ValueError(
                    f"sensitivities must have shape (coils, {mask.shape[0]}, {mask.shape[1]}), "
                    f"got {tuple(sensitivities.shape)}"
                )
            if not bool(sensitivities.isfinite().all()):
                raise ValueError("sensitivities must be finite, got NaN or infinite values")
        self.mask = mask
        self.sensitivities = sensitivities
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
        check_batch("x", x, ("N", "C", *self.mask.shape))
        mask, coils, _ = self._parts(x)
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
        check_batch("y", y, ("N", "C", *self._per_channel()))
        mask, coils, _ = self._parts(y)
        frequencies = torch.view_as_complex(y.movedim(-3, -1).contiguous())
        images = unitary_ifft2(mask * frequencies)
        return images.real if coils is None else (coils.conj() * images).sum(dim=2).real

    def start(self, y: Tensor) -> Tensor:
        """Coils combined by their sensitivities, missing frequencies zero, scaled to fit y; (N, C, H, W)."""
        back = self.A_adjoint(y)
        if self.sensitivities is None:
            return fitted(self, back, back)
        power = self.sensitivities.abs().square().sum(0).to(back.device, back.dtype)  # (H, W)
        return fitted(self, back / power.clamp_min(LEAST_POWER * float(power.max())), back)

    def norm(self) -> float:
        """Upper bound max |m| max_pixel sqrt(sum_c |S_c|^2) on ||A||; attained without sensitivities if m is even."""
        mask = float(self.mask.abs().max())
        if self.sensitivities is None:
            return mask
        return mask * float(self.sensitivities.abs().square().sum(dim=0).max().sqrt())

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
        check_batch("z", z, ("N", "C", *self.mask.shape))
        check_prox(z, y, gamma, self.measurement_shape(z.shape))
        if self.sensitivities is not None:
            return super().prox_l2(z, y, gamma)
        _, _, energy = self._parts(z)
        weight = broadcast(gamma, z)
        size = (z.shape[-2], z.shape[-1])
        right = rfft2(z + weight * self.A_adjoint(y), size)
        return irfft2(right / (1 + weight * energy), size)

    def measurement_shape(self, image_shape) -> tuple[int, ...]:
        """(N, C, 2, H, W), or (N, C, coils, 2, H, W), for images (N, C, H, W)."""
        return (*image_shape[:2], *self._per_channel())

    def __repr__(self) -> str:
        sampled = (self.mask != 0).double().mean()
        coils = "" if self.sensitivities is None else f", {len(self.sensitivities)} coils"
        return f"MRI(mask {' x '.join(map(str, self.mask.shape))}, {sampled:.1%} sampled{coils})"

    def _per_channel(self) -> tuple[int, ...]:
        coils = () if self.sensitivities is None else (len(self.sensitivities),)
        return (*coils, 2, *self.mask.shape)

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mask (H, W), sensitivities (coils, H, W) or None, and e (H, W // 2 + 1), as `like`."""
        key = (like.dtype, like.device)
        if key not in self._copies:
            with torch.inference_mode(False):
                square = self.mask.square()
                mirrored = square.flip(0, 1).roll((1, 1), dims=(0, 1))  # m(-k)^2
                energy = ((square + mirrored) / 2)[:, : self.mask.shape[1] // 2 + 1]
                complex_type = torch.complex64 if like.dtype == torch.float32 else torch.complex128
                coils = self.sensitivities
                coils = None if coils is None else coils.to(like.device, complex_type)
                real = (like.device, like.dtype)
                self._copies[key] = self.mask.to(*real), coils, energy.contiguous().to(*real)
        return self._copies[key]
