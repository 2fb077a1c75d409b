"""Noise on measurements: how it is drawn, how strong it is, and what it makes of the data term.

    Gaussian    y = A x + sigma n                            -log p(y | x) = ||A x - y||^2 / (2 sigma^2) + const
    Poisson     y = g Poisson(A x / g) + sigma n,  A x >= 0   with m = A x + b, w = y + b, b = sigma^2 / g:
                variance g A x + sigma^2                     -log p(y | x) ~ sum (m - w log m) / g + const

g is the gain: intensity per counted event, so 1/g events make an intensity of 1. The Poisson term is exact
for sigma = 0; for sigma > 0 it is the shifted Poisson of Snyder et al. (J. Opt. Soc. Am. A 10, 1993), which
has the right mean and variance everywhere. Its gradient in A x is (1 - w / m) / g.

A physics with a noise model is a `Noisy`: the operator itself, which also knows how to simulate measurements
and how large their noise is, so that a solver need not be told.
"""

from typing import TypeGuard

import torch
from torch import Tensor

from ..contract import check_batch
from ..per_sample import broadcast, check_positive, norm
from .protocol import LinearOperator, NoiseModel
from .starts import seen


class GaussianNoise:
    """Independent normal noise of one standard deviation, or of one per sample.

    Parameters
    ----------
    sigma : float or Tensor, shape (N,)
        Standard deviation, in the units of the measurements.

    Raises
    ------
    ValueError
        sigma not positive and finite.

    Examples
    --------
    >>> import torch
    >>> GaussianNoise(0.1).level(torch.zeros(2, 5))
    tensor([0.1000, 0.1000], dtype=torch.float64)
    """

    def __init__(self, sigma: float | Tensor):
        _check_level("sigma", sigma)
        self.sigma = sigma

    def add(self, clean: Tensor, generator: torch.Generator | int | None = None) -> Tensor:
        """Measurements (N, ...) with noise; a generator or a seed makes them reproducible."""
        _check_clean(clean)
        _check_samples("sigma", self.sigma, clean)
        return clean + broadcast(self.sigma, clean) * _normal(clean, generator)

    def level(self, y: Tensor) -> Tensor:
        """Standard deviation of the noise in each sample of y, (N,) float64."""
        _check_samples("sigma", self.sigma, y)
        return torch.as_tensor(self.sigma, dtype=torch.float64, device=y.device).expand(len(y)).clone()

    def negative_log_likelihood(self, predicted: Tensor, y: Tensor) -> Tensor:
        """||predicted - y||^2 / (2 sigma^2) per sample, (N,) float64, for predicted = A x."""
        return norm(predicted - y).square() / (2 * self.level(y).square())

    def negative_log_likelihood_gradient(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Gradient in `predicted` = A x, (N, ...); A^T of it is the gradient in x."""
        return (predicted - y) / broadcast(self.level(y).square(), y)

    def select(self, samples: Tensor) -> "GaussianNoise":
        """The noise of these samples of a batch."""
        return GaussianNoise(self.sigma[samples.to(self.sigma.device)]) if _is_per_sample(self.sigma) else self

    def __repr__(self) -> str:
        return f"GaussianNoise(sigma={_text(self.sigma)})"


class PoissonNoise:
    """Counting noise, with normal noise of the electronics on top.

    Parameters
    ----------
    gain : float or Tensor, shape (N,)
        Intensity per counted event; small is little noise.
    sigma : float
        Standard deviation of the normal part; 0 is none.

    Raises
    ------
    ValueError
        gain not positive, sigma negative.

    Examples
    --------
    >>> import torch
    >>> y = PoissonNoise(0.25).add(torch.ones(1, 4), generator=0)
    >>> bool((y / 0.25 == (y / 0.25).round()).all())
    True
    """

    def __init__(self, gain: float | Tensor, sigma: float = 0.0):
        _check_level("gain", gain)
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be at least 0, got {sigma}")
        self.gain = gain
        self.sigma = sigma

    def add(self, clean: Tensor, generator: torch.Generator | int | None = None) -> Tensor:
        """Measurements (N, ...) with noise; a generator or a seed makes them reproducible.

        Raises
        ------
        ValueError
            Negative or NaN values in `clean`: there is no negative number of events.
        """
        _check_clean(clean)
        _check_samples("gain", self.gain, clean)
        if not bool((clean >= 0).all()):
            raise ValueError(f"measurements must not be negative or NaN before Poisson noise, got {float(clean.min())}")
        generator = _generator(generator)
        gain = broadcast(self.gain, clean)
        home = clean.device if generator is None else generator.device
        events = torch.poisson((clean / gain).to(home, torch.float64), generator=generator).to(clean)
        noisy = gain * events
        return noisy + self.sigma * _normal(clean, generator) if self.sigma else noisy

    def level(self, y: Tensor) -> Tensor:
        """Root mean square of the noise in each sample of y, (N,) float64; exact in the mean over the noise."""
        _check_samples("gain", self.gain, y)
        gain = torch.as_tensor(self.gain, dtype=torch.float64, device=y.device)
        mean = y.flatten(1).mean(dim=1, dtype=torch.float64).clamp_min(0)
        return (gain * mean + self.sigma**2).sqrt()

    def negative_log_likelihood(self, predicted: Tensor, y: Tensor) -> Tensor:
        """sum (m - w log m) / g per sample, (N,) float64, for predicted = A x; infinite where m < 0, or m = 0 < w."""
        mean, count, gain = self._shifted(predicted, y)
        value = (mean - torch.xlogy(count, mean.clamp_min(0))) / gain
        value = torch.where(mean < 0, torch.inf, value)
        return value.flatten(1).sum(dim=1)

    def negative_log_likelihood_gradient(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(1 - w / m) / g, (N, ...), the gradient in `predicted` = A x where m > 0; A^T of it is that in x."""
        mean, count, gain = self._shifted(predicted, y)
        return ((1 - count / mean) / gain).to(predicted)

    def select(self, samples: Tensor) -> "PoissonNoise":
        """The noise of these samples of a batch."""
        gain = self.gain
        return PoissonNoise(gain[samples.to(gain.device)], self.sigma) if _is_per_sample(gain) else self

    def __repr__(self) -> str:
        sigma = f", sigma={_text(self.sigma)}" if self.sigma else ""
        return f"PoissonNoise(gain={_text(self.gain)}{sigma})"

    def _shifted(self, predicted: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """(m, w, g) in float64."""
        gain = broadcast(self.gain, y.double())
        shift = self.sigma**2 / gain
        return predicted.double() + shift, y.double() + shift, gain


class Noisy:
    """An operator together with the noise of its measurements.

    Whatever the operator has (`A`, `A_adjoint`, `norm`, `prox_l2`, ...) is the operator's own, so
    a solver takes a Noisy wherever it takes the operator.

    Parameters
    ----------
    physics : LinearOperator
    noise : GaussianNoise, PoissonNoise or any other NoiseModel

    Raises
    ------
    TypeError
        An operator or a noise without these methods.

    Examples
    --------
    >>> import torch
    >>> from lpn_fast.physics import Blur
    >>> camera = Blur.gaussian(1.0).with_noise(GaussianNoise(0.02))
    >>> y = camera.simulate(torch.rand(2, 1, 16, 16), generator=0)
    >>> camera.noise_level(y)
    tensor([0.0200, 0.0200], dtype=torch.float64)
    """

    def __init__(self, physics: LinearOperator, noise: NoiseModel):
        _check_methods("physics", physics, ("A", "A_adjoint"))
        _check_methods("noise", noise, ("add", "level"))
        self.physics = physics
        self.noise = noise

    def simulate(self, x: Tensor, generator: torch.Generator | int | None = None) -> Tensor:
        """Measurements of the images x, shape (N, C, H, W), with noise.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W)
        generator : torch.Generator or int, optional
            Source of the noise, or its seed. The same seed gives the same noise in float32 and float64 and
            on every device: it is drawn in float64 where the generator lives, the CPU for a seed.

        Returns
        -------
        Tensor, shape as `A(x)`
            Without noise in entries that the operator cannot reach: nothing was measured there.
        """
        clean = self.physics.A(x)
        return torch.where(seen(self.physics, clean), self.noise.add(clean, generator), clean)

    def noise_level(self, y: Tensor) -> Tensor:
        """Root mean square of the noise in each sample of the measurements y, (N,) float64."""
        return self.noise.level(y)

    def select(self, samples: Tensor) -> "Noisy":
        """Operator and noise of these samples of a batch."""
        physics, noise = self.physics, self.noise
        return Noisy(
            physics.select(samples) if hasattr(physics, "select") else physics,
            noise.select(samples) if hasattr(noise, "select") else noise,
        )

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ("physics", "noise"):  # being copied or unpickled: not there yet
            raise AttributeError(name)
        return getattr(self.physics, name)

    def __repr__(self) -> str:
        return f"Noisy({self.physics!r}, {self.noise!r})"


def _generator(generator: torch.Generator | int | None) -> torch.Generator | None:
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, bool) or not isinstance(generator, int):
        raise TypeError(f"generator must be a torch.Generator, a seed or None, got {generator!r}")
    return torch.Generator().manual_seed(generator)


def _normal(like: Tensor, generator: torch.Generator | int | None) -> Tensor:
    generator = _generator(generator)
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device=device).to(like)


def _check_clean(clean: Tensor) -> None:
    check_batch("measurements", clean, ("N", *["..."] * (clean.dim() - 1)))


def _check_level(name: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor) and value.dim() > 1:
        raise ValueError(f"{name} must be a number or have shape (N,), got {tuple(value.shape)}")
    check_positive(name, value, samples=len(value) if _is_per_sample(value) else 1)


def _check_samples(name: str, value: float | Tensor, batch: Tensor) -> None:
    if _is_per_sample(value) and len(value) != len(batch):
        raise ValueError(f"{name} must be a number or have shape ({len(batch)},), got {tuple(value.shape)}")


def _is_per_sample(value: float | Tensor) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0


def without_noise(physics: LinearOperator) -> LinearOperator:
    """The operator behind a noise model; any other one as it is."""
    return physics.physics if isinstance(physics, Noisy) else physics


def _check_methods(name: str, value, methods: tuple[str, ...]) -> None:
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise TypeError(f"{name} must have a method {method}, got {type(value).__name__}")


def _text(value: float | Tensor) -> str:
    return f"{len(value)} values" if _is_per_sample(value) else f"{float(value):.4g}"
