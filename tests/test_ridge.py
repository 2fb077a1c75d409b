"""RidgeLPN: what its projection promises of gain, curvature and descent."""

import pytest
import torch
from cases import Case

import lpn_fast as lf
from lpn_fast.data import synthetic_crops
from lpn_fast.networks.gain import OVERSHOOT
from lpn_fast.networks.initialise import initialise_as_
from lpn_fast.networks.ridge import LIMIT
from lpn_fast.training import Phase, Trainer


def perturbed(channels=1, **arguments) -> lf.RidgeLPN:
    """A projected network far from its start, float64."""
    torch.manual_seed(0)
    model = lf.RidgeLPN(channels, pairs=6, kernel=3, beta=20.0, **arguments).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.project_()


@pytest.mark.parametrize("channels", [1, 3])
def test_projection_keeps_gain_below_one_and_pairs_mirrored(channels):
    model = perturbed(channels, sigma_conditional=True)
    stage = model.stages[0]
    assert torch.equal(stage.skip[::2], -stage.skip[1::2])
    assert torch.equal(stage.head_squared[::2], stage.head_squared[1::2]) and (stage.head_squared >= 0).all()
    assert (stage.bias <= 0).all() and (stage.noise <= 0).all()
    assert lf.asymptotic_gain(model) <= LIMIT * (1 + 1e-5)
    before = model.packed().detach().clone()
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9), "projecting twice changes nothing"


def test_jacobian_is_bounded_by_the_gain_times_the_overshoot():
    model = perturbed()
    bound = OVERSHOOT * lf.asymptotic_gain(model)
    for scale in (0.1, 1.0, 10.0):
        x = scale * torch.randn(2, 1, 12, 13, dtype=torch.float64)
        d = torch.randn_like(x)
        for _ in range(30):
            d = model.hvp(x, d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).detach()
        assert (d.flatten(1).norm(dim=1) <= bound).all()


def test_it_starts_as_the_identity_borders_included():
    torch.manual_seed(0)
    model = lf.RidgeLPN(1, pairs=9, kernel=3, beta=1000.0)
    x = torch.rand(1, 1, 11, 12)
    assert (model(x) - x).abs().max() < 0.02


@pytest.mark.parametrize("name", ["conv", "conv-odd", "ridge"])
def test_pgd_inside_the_theorem_descends_at_every_iteration(name):
    """F falls for every sample, up to the float64 rounding of its own terms."""
    case = Case(name)
    physics = lf.physics.Blur.gaussian(1.2)
    result = lf.solvers.pgd(physics.A(case.x.abs()), physics, case.model, sigma=case.sigma, max_iter=30, tol=0.0)
    terms = case.x.square().flatten(1).sum(1) + case.model.potential(case.x, case.sigma).abs()
    assert (result.objective.diff(dim=0) <= 1e-13 * (terms + result.objective.abs().max(0).values)).all()
    assert result.conditions["step size"].holds


@pytest.mark.parametrize("conditional", [False, True])
def test_steps_are_relative_to_the_parameters_of_the_start(conditional):
    model = initialise_as_(lf.RidgeLPN(1, sigma_conditional=conditional), "default", 0.1).project_()
    scales = model.step_scales()
    assert set(scales) == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        size = p.detach().square().mean().sqrt().item()
        assert size == 0 or 0.5 < scales[name] / size < 2, name


def test_training_does_not_eat_the_gain_up():
    """The mean of S over frequencies, which images want near one; cutting spectra and scaling left 0.939 here."""
    torch.manual_seed(0)
    model = initialise_as_(lf.RidgeLPN(1, pairs=25, kernel=5), "default", 0.1).project_()
    crops = synthetic_crops("dead-leaves", 32, 1, pool=8, side=64)
    trainer = Trainer(model, crops, [Phase("l2", 100, 1e-2)], sigma=0.1, batch_size=8, progress=False)
    for _ in range(100):
        trainer.advance()
    stage = model.stages[0]
    assert (2 * stage.head_squared[::2] * stage.skip[::2].flatten(1).square().sum(1)).sum() > 0.96
