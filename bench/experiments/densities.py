"""Mixtures of Gaussians in one dimension, whose MAP and MMSE denoisers, and their priors R, are known.

For x ~ p, y = x + sigma n, n ~ N(0, 1):

    MAP     f(y) = argmax_x log p(x) - (x - y)^2 / (2 sigma^2)  = prox_R,    R = -sigma^2 log p         (+ const)
    MMSE    f(y) = y + sigma^2 (log p_sigma)'(y)                = prox_R,    R(f(y)) = -sigma^2 log p_sigma(y)
                                                                                       - 1/2 (y - f(y))^2 (+ const)

with p_sigma = p * N(0, sigma^2) (Gribonval 2011). Proximal matching tends to the first, l2 training to the second.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
BISECTIONS = 60


@dataclass(frozen=True)
class GaussianMixture:
    """Density sum_k weights_k N(means_k, deviations_k^2).

    Bimodal by default: -log p is not convex, but -sigma^2 log p is convex up to a quadratic of modulus below one
    for sigma <= SIGMA, so that its prox is continuous.

    Examples
    --------
    >>> mixture = GaussianMixture()
    >>> bool((mixture.prior(torch.tensor([0.0])) > mixture.prior(torch.tensor([1.5]))).all())
    True
    """

    weights: tuple[float, ...] = (0.5, 0.5)
    means: tuple[float, ...] = (-1.5, 1.5)
    deviations: tuple[float, ...] = (1.0, 1.0)

    SIGMA = 0.8

    def __post_init__(self):
        if not len(self.weights) == len(self.means) == len(self.deviations) >= 1:
            raise ValueError("weights, means and deviations must have one entry per component")
        for name in ("weights", "deviations"):
            for value in getattr(self, name):
                _positive(value, name)
        if abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError(f"weights must sum to 1, got {sum(self.weights)}")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 (count, 1)."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        which = torch.multinomial(weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        means, deviations = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.deviations))
        return (means[which] + deviations[which] * normal).float()[:, None]

    def quantile(self, level: Tensor) -> Tensor:
        """x with P(X <= x) = level, float64, by bisection."""
        level = level.double()
        low = torch.full_like(level, min(self.means) - 12 * max(self.deviations))
        high = torch.full_like(level, max(self.means) + 12 * max(self.deviations))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self._distribution(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log of p, or of p_sigma, elementwise."""
        parts = [
            math.log(w) - 0.5 * (x - m).square() / (s**2 + sigma**2) - 0.5 * math.log(s**2 + sigma**2) - HALF_LOG_2PI
            for w, m, s in zip(self.weights, self.means, self.deviations, strict=True)
        ]
        return torch.logsumexp(torch.stack(parts), 0)

    def score(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """d/dx of log_density, elementwise."""
        logs = torch.stack(
            [
                math.log(w) - 0.5 * (x - m).square() / (s**2 + sigma**2) - 0.5 * math.log(s**2 + sigma**2)
                for w, m, s in zip(self.weights, self.means, self.deviations, strict=True)
            ]
        )
        shares = torch.softmax(logs, 0)
        slopes = [(m - x) / (s**2 + sigma**2) for m, s in zip(self.means, self.deviations, strict=True)]
        return (shares * torch.stack(slopes)).sum(0)

    def prior(self, x: Tensor, sigma: float = SIGMA) -> Tensor:
        """R(x) = -sigma^2 log p(x)."""
        return -(sigma**2) * self.log_density(x)

    def prox(self, y: Tensor, sigma: float = SIGMA) -> Tensor:
        """The MAP denoiser, elementwise, float64: the best of the points where the derivative vanishes.

        x + R'(x) = y is solved by bisection from its first and from its last change of sign on a grid: all
        solutions where there is one, and the two outermost minima where R is too non-convex for that.
        """
        y = y.double()
        reach = max(self.deviations) * 12 + max(abs(m) for m in self.means) + y.abs().max().item()
        grid = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
        rises = self._residual(grid, y[..., None], sigma) > 0  # [..., grid]
        change = (~rises[..., :-1] & rises[..., 1:]).double()
        first, last = change.argmax(-1), change.shape[-1] - 1 - change.flip(-1).argmax(-1)
        found = [self._bisected(grid[index], grid[index + 1], y, sigma) for index in (first, last)]
        values = [0.5 * (x - y).square() + self.prior(x, sigma) for x in found]
        return torch.where(values[0] <= values[1], *found)

    def posterior_mean(self, y: Tensor, sigma: float = SIGMA) -> Tensor:
        """The MMSE denoiser, elementwise."""
        return y + sigma**2 * self.score(y, sigma)

    def mmse_prior(self, y: Tensor, sigma: float = SIGMA) -> Tensor:
        """R of the MMSE denoiser at its value f(y), elementwise in y."""
        return -(sigma**2) * self.log_density(y, sigma) - 0.5 * (y - self.posterior_mean(y, sigma)).square()

    def _bisected(self, low: Tensor, high: Tensor, y: Tensor, sigma: float) -> Tensor:
        """Where x + R'(x) - y changes sign between low and high."""
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self._residual(middle, y, sigma) <= 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _residual(self, x: Tensor, y: Tensor, sigma: float) -> Tensor:
        return x - sigma**2 * self.score(x) - y

    def _distribution(self, x: Tensor) -> Tensor:
        """P(X <= x)."""
        terms = zip(self.weights, self.means, self.deviations, strict=True)
        return sum(w * torch.special.ndtr((x - m) / s) for w, m, s in terms)


def _positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive, got {value}")
