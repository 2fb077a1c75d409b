"""Noise models: moments, reproducibility, likelihoods against their definitions, and the pair with an operator."""

import copy

import pytest
import torch
from physics_cases import rand, randn

import lpn_fast.solvers as solvers
from lpn_fast.physics import Blur, Denoising, GaussianNoise, Inpainting, Noisy, PoissonNoise, adjoint_mismatch


@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        (GaussianNoise(0.3), lambda y: 0.09 + 0 * y),
        (PoissonNoise(0.05), lambda y: 0.05 * y),
        (PoissonNoise(0.05, 0.2), lambda y: 0.05 * y + 0.04),
    ],
    ids=["gaussian", "poisson", "both"],
)
def test_noise_has_mean_zero_and_its_variance(noise, variance):
    clean = torch.tensor([[0.0], [0.3], [1.0], [4.0]]).expand(4, 200_000).contiguous()
    error = noise.add(clean, generator=1) - clean
    wanted = variance(clean[:, 0].double())
    assert (error.mean(1).double().abs() <= 5 * (wanted / 200_000).sqrt() + 1e-12).all()
    assert torch.allclose(error.var(1).double(), wanted, rtol=0.02, atol=1e-12)
    assert torch.allclose(noise.level(clean + error), wanted.sqrt(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonNoise(0.05, 0.1)], ids=repr)
def test_a_seed_fixes_the_noise_in_both_precisions(noise):
    clean = rand(3, 50)
    first = noise.add(clean, generator=5)
    assert torch.equal(first, noise.add(clean, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, noise.add(clean, generator=6))
    if isinstance(noise, GaussianNoise):
        assert torch.allclose(noise.add(clean.float(), generator=5).double(), first, atol=1e-6)


def test_every_sample_has_its_own_level():
    noise = GaussianNoise(torch.tensor([0.1, 1.0, 10.0]))
    error = noise.add(torch.zeros(3, 100_000), generator=0)
    assert error.std(1).tolist() == pytest.approx([0.1, 1.0, 10.0], rel=0.02)
    assert noise.select(torch.tensor([2, 0])).level(error[:2]).tolist() == pytest.approx([10.0, 0.1])
    gains = PoissonNoise(torch.tensor([0.1, 0.4]))
    assert gains.select(torch.tensor([False, True])).level(torch.ones(1, 5)).tolist() == pytest.approx([0.4**0.5])


def test_gaussian_likelihood_is_that_of_torch_distributions():
    noise, m, y = GaussianNoise(torch.tensor([0.2, 0.7])), randn(2, 9), randn(2, 9, seed=2)
    normal = torch.distributions.Normal(m, torch.tensor([[0.2], [0.7]], dtype=torch.float64))
    constant = -torch.distributions.Normal(y, normal.scale).log_prob(y).sum(1)
    assert torch.allclose(noise.negative_log_likelihood(m, y), -normal.log_prob(y).sum(1) - constant, atol=1e-5)


def test_poisson_likelihood_is_that_of_torch_distributions():
    """Differences of the likelihood in A x; its constant does not matter to anyone."""
    gain = 0.25
    y = PoissonNoise(gain).add(4 * rand(3, 20), generator=0)
    a, b = rand(3, 20, seed=5) + 0.1, rand(3, 20, seed=6) + 0.1
    noise = PoissonNoise(gain)
    got = noise.negative_log_likelihood(a, y) - noise.negative_log_likelihood(b, y)
    log_p = [torch.distributions.Poisson(m / gain).log_prob(y / gain).sum(1) for m in (a, b)]
    assert torch.allclose(got, log_p[1] - log_p[0], atol=1e-9)


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonNoise(0.05), PoissonNoise(0.05, 0.1)], ids=repr)
def test_likelihood_gradient_is_its_derivative(noise):
    predicted = (rand(3, 7) + 0.2).requires_grad_()
    y = noise.add(rand(3, 7, seed=2), generator=0)
    (truth,) = torch.autograd.grad(noise.negative_log_likelihood(predicted, y).sum(), predicted)
    assert torch.allclose(noise.negative_log_likelihood_gradient(predicted, y), truth, atol=1e-10)


def test_impossible_predictions_have_infinite_likelihood_terms():
    noise, y = PoissonNoise(0.5), torch.tensor([[1.0], [1.0], [0.0]])
    assert noise.negative_log_likelihood(torch.tensor([[0.0], [-1.0], [0.0]]), y).tolist() == [torch.inf, torch.inf, 0]


# ---------------------------------------------------------------- with an operator


def test_noisy_operator_is_the_operator():
    blur = Blur.gaussian(1.0)
    camera = blur.with_noise(GaussianNoise(0.02))
    x = rand(3, 1, 12, 11)
    assert torch.equal(camera.A(x), blur.A(x)) and camera.norm() == blur.norm()
    assert torch.equal(camera.prox_l2(x, blur.A(x), 0.5), blur.prox_l2(x, blur.A(x), 0.5))
    assert (adjoint_mismatch(camera, x, randn(3, 1, 12, 11)) < 1e-12).all()
    y = camera.simulate(x, generator=3)
    assert (y - blur.A(x)).std().item() == pytest.approx(0.02, rel=0.1)
    assert camera.noise_level(y).tolist() == pytest.approx([0.02] * 3)
    assert repr(camera) == "Noisy(Blur(kernel 9 x 9, boundary='circular'), GaussianNoise(sigma=0.02))"
    assert torch.equal(copy.deepcopy(camera).A(x), blur.A(x))


def test_noisy_operator_selects_operator_and_noise_together():
    masks, sigma = rand(3, 1, 4, 4), torch.tensor([0.1, 0.2, 0.3])
    part = Inpainting(masks).with_noise(GaussianNoise(sigma)).select(torch.tensor([2, 1]))
    x = rand(2, 1, 4, 4)
    assert torch.equal(part.A(x), masks[[2, 1]] * x)
    assert part.noise_level(x).tolist() == pytest.approx([0.3, 0.2])


class TwoMethods:
    """What any library's operator offers at least."""

    def A(self, x):
        return 2 * x

    def A_adjoint(self, y):
        return 2 * y


def test_noisy_lends_no_method_that_the_operator_lacks():
    noisy = Noisy(TwoMethods(), GaussianNoise(0.1))
    assert not hasattr(noisy, "norm") and not hasattr(noisy, "prox_l2")
    assert noisy.select(torch.tensor([0])).A(torch.ones(1, 1)) == 2


def test_solvers_take_noisy_and_two_method_operators():
    import lpn_fast as lf

    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=4)
    y = 2 * torch.rand(2, 1, 8, 8)
    # With the strength left open a solver would choose it from the noise, which only one of the two knows.
    plain = solvers.pgd(y, TwoMethods(), model, strength=1.0, max_iter=3)
    noisy = solvers.pgd(y, Noisy(TwoMethods(), GaussianNoise(0.1)), model, strength=1.0, max_iter=3)
    assert torch.equal(plain.x, noisy.x) and plain.x.isfinite().all()


def test_bad_noise_is_named():
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        GaussianNoise(0)
    with pytest.raises(ValueError, match=r"sigma must be a number or have shape \(N,\), got \(1, 2\)"):
        GaussianNoise(torch.ones(1, 2))
    with pytest.raises(ValueError, match="gain must be positive, got -1"):
        PoissonNoise(-1)
    with pytest.raises(ValueError, match="sigma must be at least 0, got -0.1"):
        PoissonNoise(1, -0.1)
    with pytest.raises(ValueError, match="must not be negative or NaN before Poisson noise, got -1"):
        PoissonNoise(1).add(-torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"sigma must be a number or have shape \(3,\), got \(2,\)"):
        GaussianNoise(torch.ones(2)).add(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="generator must be a torch.Generator, a seed or None, got 1.5"):
        GaussianNoise(1).add(torch.zeros(3, 4), 1.5)
    with pytest.raises(TypeError, match="physics must have a method A, got int"):
        Noisy(3, GaussianNoise(1))
    with pytest.raises(TypeError, match="noise must have a method add, got float"):
        Denoising().with_noise(0.1)
