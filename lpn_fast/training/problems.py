"""Inverse problems that a prior is trained through: truths, measurements and minimisers, differentiable.

deblur    a blur with the boundary "full", the image without its crop's rim in zeros: such problems have borders as the
          published ones have, and hold more of an image than circular ones, whose left side would have to fit its
          right. Kernels are drawn per sample: Gaussians, cut off to squares of random side, or camera shakes.
inpaint   a share of the pixels, drawn per sample, at random places
fourier   frequencies of one coil: columns near zero and random others, the acceleration drawn per sample
denoise   A = 1, where the minimiser is f itself: eta is 1

All operators have norm one; equilibrium.py says what noise belongs to which level of the prior.
"""

import torch
from torch import Tensor

from ..per_sample import broadcast
from ..physics import MRI, Blur, Inpainting, gaussian_kernel, shake_kernel
from ..solvers.continuation import TRUST
from .equilibrium import STEP, equilibrium

SIDES = (5, 27)  # smallest and largest kernel, odd numbers of pixels; recorded shakes have 13 to 27
SMALLEST = 29  # crop: with the largest kernel that its image can hold, one of 15 pixels
KINDS = ("denoise", "deblur", "inpaint", "fourier")
DRAWN = ("denoise", "denoise", "denoise", "deblur", "inpaint", "fourier")
SEEN = (0.2, 0.8)  # share of the pixels of `inpaint`
ACCELERATION, CENTRE = (2.0, 5.0), 0.08  # of `fourier`


class Deblurring:
    """Deblurring problems, solved to their minimiser, with derivatives.

    Parameters
    ----------
    blur : (float, float)
        Range of the standard deviation of the Gaussian blurs, in pixels.
    shakes : float
        Share of camera shakes among the kernels, in [0, 1].
    iterations : int
        Most iterations of the solver.
    inner : int
        Iterations of conjugate gradients.

    Raises
    ------
    ValueError
        A range that is not increasing and positive, a share outside [0, 1], or numbers below one.
    """

    def __init__(
        self, blur: tuple[float, float] = (0.4, 3.0), shakes: float = 0.5, iterations: int = 50, inner: int = 12
    ):
        if not 0 < blur[0] <= blur[1]:
            raise ValueError(f"blur must be an increasing pair of positive widths, got {blur}")
        if not 0 <= shakes <= 1:
            raise ValueError(f"shakes must lie in [0, 1], got {shakes}")
        for name, value in (("iterations", iterations), ("inner", inner)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.blur, self.shakes, self.iterations, self.inner = tuple(blur), shakes, iterations, inner

    def __repr__(self) -> str:
        return f"Deblurring({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    def __call__(
        self,
        model,
        x: Tensor,  # (N, C, H, W)
        noise: Tensor,  # (N, C, H, W)
        sigma: Tensor | None,  # (N,)
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Minimisers x^ of problems whose truths are x without its rim, and these truths.

        Kernels have up to 27 pixels, or as many as their truths; the rim is half of the largest, and left out for what
        the blur spreads. `noise`, of standard deviation sigma, is that of the measurements. The minimisers are
        differentiable in the parameters of `model`, an LPN; `generator`, on the CPU, draws the kernels. ValueError for
        crops below 29 pixels.
        """
        shortest = min(x.shape[-2:])
        if shortest < SMALLEST:
            raise ValueError(f"crops must be at least {SMALLEST} x {SMALLEST} for deblurring, got {tuple(x.shape)}")
        largest = min(SIDES[1], 2 * ((shortest - 1) // 4) + 1)  # odd, and twice its half leaves as much
        rim = largest // 2
        truth = x[..., rim:-rim, rim:-rim]
        physics = Blur(torch.stack([self._kernel(largest, generator) for _ in x]), boundary="full")
        measured = physics.A(truth) + noise / STEP**0.5
        start = measured[..., rim:-rim, rim:-rim]
        return equilibrium(model, physics, measured, start, sigma, self.iterations, self.inner), truth

    def _kernel(self, largest: int, generator: torch.Generator) -> Tensor:
        """A Gaussian cut off to a square, or a shake; zeros around it up to the largest side."""
        shaken, place, width = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        side = SIDES[0] + 2 * int(place * (1 + (largest - SIDES[0]) // 2))
        low, high = self.blur
        kernel = (
            shake_kernel(side, generator) if shaken < self.shakes else gaussian_kernel(low + (high - low) * width, side)
        )
        return torch.nn.functional.pad(kernel, ((largest - side) // 2,) * 4)


class Problems:
    """Problems of one kind after the other, so that one prior learns to serve all; the kind is drawn for every batch.

    Parameters
    ----------
    kinds : sequence of str
        Some of "denoise", "deblur", "inpaint", "fourier"; a kind that is named twice comes twice as often.
    trust : float
        Square of the noise in measurements over the one that the network is told. A denoiser, f, removes all of the
        noise, as a posterior mean does; with a quarter of that prior's weight, 4, minimisers are better
        (solvers/continuation.py), so that one prior can be both. Only for networks that know noise levels.
    deblurring : Deblurring, optional
        The problems of "deblur", and the numbers of iterations of all.

    Raises
    ------
    ValueError
        An unknown kind, or none; a trust that is not positive.
    """

    def __init__(self, kinds: tuple[str, ...] = DRAWN, trust: float = TRUST, deblurring: Deblurring | None = None):
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds:
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
        if not 0 < trust < float("inf"):
            raise ValueError(f"trust must be positive, got {trust}")
        self.kinds, self.trust = tuple(kinds), trust
        self.deblurring = Deblurring() if deblurring is None else deblurring

    def __repr__(self) -> str:
        return f"Problems(kinds={self.kinds}, trust={self.trust}, deblurring={self.deblurring})"

    def __call__(
        self,
        model,
        x: Tensor,  # (N, C, H, W)
        noise: Tensor,  # (N, C, H, W)
        sigma: Tensor | None,  # (N,)
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Minimisers and truths, of one shape; arguments as those of `Deblurring`."""
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
        if kind == "denoise":
            return model(x + noise, sigma), x
        if sigma is not None:  # what is left of the level, and not below the model's lowest
            told = (sigma / self.trust**0.5).clamp(min=min(model.spec.noise_levels))
            noise, sigma = broadcast(self.trust**0.5 * told / sigma, noise) * noise, told
        if kind == "deblur":
            return self.deblurring(model, x, noise, sigma, generator)
        draw = _masked if kind == "inpaint" else _fourier
        physics, measured = draw(x, noise / STEP**0.5, generator)
        start, own = physics.start(measured), self.deblurring
        return equilibrium(model, physics, measured, start, sigma, own.iterations, own.inner), x


def _masked(x: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Inpainting, Tensor]:
    """Masks and measurements of x."""
    places = torch.rand(len(x), 1, *x.shape[2:], generator=generator)
    seen = torch.empty(len(x)).uniform_(*SEEN, generator=generator)
    physics = Inpainting((places < seen.view(-1, 1, 1, 1)).expand(-1, x.shape[1], -1, -1))
    return physics, physics.A(x + noise)


def _fourier(x: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[MRI, Tensor]:
    """Masked frequencies of x; both their parts have the noise's standard deviation."""
    height, width = x.shape[-2:]
    masks = []
    for acceleration in torch.empty(len(x)).uniform_(*ACCELERATION, generator=generator).tolist():
        seed = int(torch.randint(2**31, (), generator=generator))
        masks.append(MRI.lines((height, width), acceleration, CENTRE, seed).mask)
    mask = torch.stack(masks)
    physics, level = MRI(mask), noise.square().mean((1, 2, 3)).sqrt()  # (N,)
    measured = physics.A(x)
    drawn = torch.randn(measured.shape, generator=generator, dtype=x.dtype).to(x) * mask[:, None, None].to(x)
    return physics, measured + broadcast(level, drawn) * drawn


# what `lpn-fast train --task` names -> problems, None for f(x + noise) itself
TASKS = {"denoise": lambda: None, "deblur": Deblurring, "reconstruct": Problems}
