"""The mixture of Gaussians that networks of one dimension are compared with."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is run from a checkout, it is not installed
GaussianMixture = pytest.importorskip(
    "bench.densities", reason="bench/ is not part of the source archive"
).GaussianMixture


def brute_force_prox(prior, y):
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    return torch.stack([x[(0.5 * (x - v) ** 2 + prior(x)).argmin()] for v in y])


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.3])  # at 1.3 the prox of the mixture jumps
@pytest.mark.parametrize("density", [GaussianMixture(), GaussianMixture((0.3, 0.7), (-1, 2), (0.5, 1))])
def test_the_prox_of_a_density_is_the_minimiser(density, sigma):
    y = torch.linspace(-4, 4, 57, dtype=torch.float64) + 0.003
    expected = brute_force_prox(lambda x: density.prior(x, sigma), y)
    assert torch.allclose(density.prox(y, sigma), expected, atol=2e-4)


def test_the_mixtures_mmse_denoiser_is_the_conditional_mean_and_the_prox_of_its_prior():
    mixture, sigma = GaussianMixture(), 0.8
    x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    y = torch.linspace(-3, 3, 31, dtype=torch.float64)
    weight = torch.exp(mixture.log_density(x)[None] - 0.5 * (x[None] - y[:, None]) ** 2 / sigma**2)
    mean = (weight * x).sum(1) / weight.sum(1)
    assert torch.allclose(mixture.posterior_mean(y, sigma), mean, atol=1e-8)
    # f = prox_R: 1/2 |f(y) - y|^2 + R(f(y)) is smallest among all values of f
    fine = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    f, prior = mixture.posterior_mean(fine, sigma), mixture.mmse_prior(fine, sigma)
    own = 0.5 * (mean - y) ** 2 + mixture.mmse_prior(y, sigma)
    assert (0.5 * (f[None] - y[:, None]) ** 2 + prior[None]).min(1).values.sub(own).min() > -1e-6


def test_samples_have_the_moments_and_quantiles_of_their_density():
    mixture = GaussianMixture((0.3, 0.7), (-1, 2), (0.5, 1))
    x = mixture.sample(200_000, torch.Generator().manual_seed(0))
    assert x.mean() == pytest.approx(1.1, abs=0.02) and x.var() == pytest.approx(0.775 + 1.89, rel=0.02)
    levels = torch.tensor([0.025, 0.5, 0.9])
    assert torch.allclose(torch.quantile(x.double().flatten(), levels.double()), mixture.quantile(levels), atol=0.03)
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    assert torch.trapezoid(mixture.log_density(grid).exp(), grid) == pytest.approx(1, abs=1e-4)
    step = 1e-5
    slope = (mixture.log_density(grid + step) - mixture.log_density(grid - step)) / (2 * step)
    assert torch.allclose(slope, mixture.score(grid), atol=1e-5)


def test_the_default_mixture_is_not_convex_but_weakly_so():
    mixture = GaussianMixture()
    x = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    curvature = torch.gradient(-(mixture.SIGMA**2) * mixture.score(x), spacing=(x,))[0]
    assert -1 < curvature.min() < -0.5


def test_bad_densities_are_named():
    with pytest.raises(ValueError, match="weights must sum to 1"):
        GaussianMixture((0.5, 0.6))
    with pytest.raises(ValueError, match="deviations must be positive, got 0.0"):
        GaussianMixture((0.5, 0.5), (0, 0), (1, 0.0))
