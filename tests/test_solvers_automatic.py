"""Weight and noise level chosen from the data: Bayes' rule in closed form, the discrepancy principle by search."""

import types

import pytest
import torch
from solver_cases import PHYSICS, SOLVERS, QuadraticPrior, linear_solution, make_measurements

import lpn_fast as lf
from lpn_fast.physics import Blur, Denoising, GaussianNoise
from lpn_fast.solvers import estimate_noise, hqs, pgd

EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


class KnownLevel(QuadraticPrior):
    """A prior of one noise level, as a card tells it."""

    def __init__(self, level, **options):
        super().__init__(**options)
        self.card = {"sigma": level}


class Conditional(QuadraticPrior):
    """A prior for a range of noise levels."""

    is_noise_conditional = True
    spec = types.SimpleNamespace(noise_levels=(0.01, 0.03, 0.1))


def smooth_image(samples=2, side=64):
    generator = torch.Generator().manual_seed(4)
    return Blur.gaussian(2.0, size=25).A(torch.rand(samples, 1, side, side, generator=generator))


# ---------------------------------------------------------------- the noise of the data


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_the_noise_of_smoothed_measurements_is_estimated_to_ten_percent(level):
    y = smooth_image()
    y = y + level * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(y).tolist() == pytest.approx([level, level], rel=0.1)


def test_what_cannot_be_estimated_says_what_to_give():
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\) .* got \(2, 9\); give noise="):
        estimate_noise(torch.rand(2, 9))
    with pytest.raises(ValueError, match="samples .1. show none; give noise="):
        estimate_noise(torch.stack((torch.rand(1, 16, 16), torch.zeros(1, 16, 16))))


# ---------------------------------------------------------------- the rule "map"


@EVERY_SOLVER
@pytest.mark.parametrize(
    "noise", [0.002, 0.05, 0.5, torch.tensor([0.002, 0.05, 0.5, 0.1], dtype=torch.float64)], ids=str
)
def test_map_weighs_the_prior_as_bayes_does(solver, noise):
    """t sigma^2 / eta = s^2, whether q = s eta^1/2 lies below, within or above the network's levels."""
    y = make_measurements(PHYSICS["circular"])
    result = solver(y, PHYSICS["circular"], Conditional(), noise=noise, max_iter=1, strict=True)
    used = result.settings
    s = torch.as_tensor(noise, dtype=torch.float64)
    product = torch.as_tensor(used.weight, dtype=torch.float64) * torch.as_tensor(used.sigma).double().square()
    assert torch.allclose(product, s.square(), rtol=1e-6)
    sigma, strength = (torch.as_tensor(v, dtype=torch.float64).expand(4) for v in (used.sigma, used.strength))
    s = s.expand(4)
    assert ((0.01 - 1e-7 <= sigma) & (sigma <= 0.1 + 1e-7) & (strength <= 1)).all()
    assert ((strength < 1) == (s == 0.002)).all()
    assert used.rule == "map" and used.noise_source == "given" and result.misfit.shape == (4,)


def test_a_network_of_one_level_is_weakened_or_its_step_shortened():
    y, physics = make_measurements(PHYSICS["circular"]), PHYSICS["circular"]
    weak = pgd(y, physics, KnownLevel(0.2), noise=0.1, max_iter=1).settings
    assert weak.strength == pytest.approx(0.95 * 0.25) and weak.step_size == pytest.approx(0.95)
    strong = pgd(y, physics, KnownLevel(0.05), noise=0.1, max_iter=1).settings
    assert strong.strength == 1.0 and strong.step_size == pytest.approx(0.25)
    assert weak.sigma is strong.sigma is None


def test_what_is_given_stays():
    y, physics = make_measurements(PHYSICS["circular"]), PHYSICS["circular"]
    used = pgd(y, physics, Conditional(), noise=0.05, strength=0.25, step_size=0.64, max_iter=1).settings
    assert (used.strength, used.step_size) == (0.25, 0.64)
    assert used.sigma == pytest.approx(0.05 * 0.8 / 0.5)
    used = pgd(y, physics, Conditional(), noise=0.05, sigma=0.07, max_iter=1).settings
    assert (used.strength, used.sigma, used.rule) == (1.0, 0.07, "given")


def test_without_any_knowledge_the_strength_is_one():
    y, physics = make_measurements(PHYSICS["circular"]), PHYSICS["circular"]
    result = pgd(y, physics, QuadraticPrior(), max_iter=1)
    assert result.settings.strength == 1.0 and result.settings.rule == "none" and result.misfit is None
    with pytest.raises(ValueError, match="strength='map' needs a model that knows the noise it was trained on"):
        pgd(y, physics, QuadraticPrior(), strength="map", noise=0.1)


def test_the_physics_or_the_data_tell_the_noise():
    x = smooth_image()
    y = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    told = pgd(y, Denoising().with_noise(GaussianNoise(0.05)), Conditional(), max_iter=1).settings
    assert (told.noise_source, told.noise) == ("physics", pytest.approx(0.05))
    per_sample = Denoising().with_noise(GaussianNoise(torch.tensor([0.05, 0.02])))
    assert pgd(y, per_sample, Conditional(), max_iter=1).settings.noise.tolist() == pytest.approx([0.05, 0.02])
    estimated = pgd(y, Denoising(), Conditional(), max_iter=1).settings
    assert estimated.noise_source == "estimated"
    assert estimated.noise.tolist() == pytest.approx([0.05, 0.05], rel=0.1)
    assert "noise 0.0" in str(estimated) and "(estimated), rule: map" in str(estimated)
    with pytest.raises(ValueError, match="give noise="):
        pgd(y.flatten(1), Denoising(), Conditional())


def test_the_shipped_network_needs_no_tuning():
    """With the noise from the data alone, better than the measurement and at the discrepancy that noise makes."""
    x, physics = smooth_image(), Blur.gaussian(1.0)
    y = physics.A(x)
    y = y + 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    result = pgd(y, physics, lf.pretrained("frame-gray"), max_iter=30, strict=True)
    assert (lf.metrics.psnr(result.x, x) > lf.metrics.psnr(y, x) + 5).all()
    assert result.misfit.tolist() == pytest.approx([1, 1], abs=0.1)


# ---------------------------------------------------------------- the discrepancy principle


def weight_at_discrepancy(physics, y, noise, q, mean):
    """The weight t / eta at which the linear solution has ||A x - y||^2 = s^2 m, by bisection."""
    low, high = 1e-4, 1e4
    for _ in range(60):
        middle = (low * high) ** 0.5
        x = linear_solution(physics, y, middle * q, mean)
        low, high = (middle, high) if (physics.A(x) - y).norm() < noise * y.numel() ** 0.5 else (low, middle)
    return middle


@EVERY_SOLVER
def test_the_discrepancy_principle_is_met_sample_by_sample(solver):
    physics, model = PHYSICS["identity"], QuadraticPrior(q=3.0)
    y, noise = make_measurements(physics), torch.tensor([0.05, 0.1, 0.15, 0.08], dtype=torch.float64)
    result = solver(y, physics, model, noise=noise, max_iter=500, tol=1e-10)
    assert result.settings.rule == "discrepancy"
    assert result.misfit.tolist() == pytest.approx([1, 1, 1, 1], abs=0.03)
    if solver is not hqs:  # which has another data term
        for n in range(4):
            wanted = weight_at_discrepancy(physics, y[n : n + 1], noise[n].item(), model.q, model.mean)
            assert result.settings.weight[n].item() == pytest.approx(wanted, rel=0.1)


def test_a_network_of_known_levels_can_be_asked_for_the_discrepancy():
    x, physics = smooth_image(side=32), Blur.gaussian(1.0)
    y = physics.A(x)
    y = y + 0.06 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    result = pgd(y, physics, lf.pretrained("frame-gray"), noise=0.06, strength="discrepancy", max_iter=60)
    assert result.settings.rule == "discrepancy" and result.conditions.all_hold
    assert result.misfit.tolist() == pytest.approx([1, 1], abs=0.03)
    # Only the frozen weight is recorded. Rounding of float32 is that of the squares which F and R sum.
    rises = result.objective[1:] - result.objective[:-1]
    assert (rises <= 1e-6 * y.square().sum(dim=(1, 2, 3))).all()


def test_a_weight_that_no_strength_reaches_stays_at_the_limit():
    """Noise claimed far above what is in y: t cannot exceed one."""
    physics, model = PHYSICS["identity"], QuadraticPrior(q=0.01)
    result = pgd(make_measurements(physics), physics, model, noise=10.0, max_iter=5)
    assert torch.as_tensor(result.settings.strength == 1.0).all()
    assert (result.misfit < 1).all()
