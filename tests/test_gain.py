"""The asymptotic gain bounds the growth of f, and limiting it makes R coercive."""

import math

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.networks import limit_gain_


def dense_squared(alpha=0.05):
    torch.manual_seed(0)
    stages = (Stage(12, heads=("squared",)), Stage(6, kernel=1, heads=("linear",)))
    return lf.LPN(Spec("dense", 3, stages, 10.0, alpha, quadratic=2)).double()


def conv_with_quadratic():
    """A squared head and a quadratic term whose kernels differ in size."""
    torch.manual_seed(0)
    stage = Stage(4, skip_kernel=5, skip_padding=2, heads=("squared",))
    return lf.LPN(Spec("conv", 1, (stage,), 10.0, quadratic=2, quadratic_kernel=3)).double()


@pytest.mark.parametrize("build", [dense_squared, conv_with_quadratic, lambda: lf.ConvLPN(1, hidden=8).double()])
def test_gain_bounds_the_growth_of_the_prox(build):
    model = build()
    shape = (8, 3) if model.spec.is_dense else (4, 1, 16, 16)
    direction = torch.randn(shape, dtype=torch.float64)
    for radius in (1e4, 1e6):
        x = radius * direction / direction.flatten(1).norm(dim=1).view(-1, *(1,) * (direction.dim() - 1))
        growth = model(x).flatten(1).norm(dim=1) / radius
        assert (growth <= lf.asymptotic_gain(model) * (1 + 1e-3)).all()


def test_convolutional_gain_is_the_norm_of_the_filters():
    """One unit with a 3 x 3 filter: the Hessian at infinity is 2 g a a^T, whose norm a dense SVD gives."""
    stage = Stage(1, skip_kernel=3, skip_padding=1, heads=("squared",))
    model = lf.LPN(Spec("conv", 1, (stage,), 100.0)).double()
    with torch.no_grad():
        model.stages[0].skip.normal_()
        model.stages[0].bias.fill_(1e4)  # far on the quadratic side
    x = torch.randn(1, 1, 20, 20, dtype=torch.float64)
    hessian = torch.autograd.functional.jacobian(model, x).reshape(400, 400)
    norm = torch.linalg.matrix_norm(hessian, 2).item()
    assert norm <= lf.asymptotic_gain(model) <= 1.15 * norm


def test_limited_gain_makes_the_prior_coercive():
    model = limit_gain_(dense_squared(), 0.8)
    assert lf.asymptotic_gain(model) == pytest.approx(0.8, rel=1e-6)
    far = 1e5 * torch.randn(50, 3, dtype=torch.float64)
    x, prior = model.prox_and_prior(far)
    assert (prior >= 0.9 * (1 / 0.8 - 1) / 2 * x.square().sum(1)).all()


def test_gain_of_later_squared_heads_is_unknown():
    stages = (Stage(4), Stage(4, kernel=1, heads=("squared",)))
    model = lf.LPN(Spec("dense", 2, stages, 10.0))
    assert math.isinf(lf.asymptotic_gain(model))
    with pytest.raises(ValueError, match="squared head"):
        limit_gain_(model, 0.9)
    with pytest.raises(ValueError, match=r"limit must lie in \(alpha, 1\].*got 1.5"):
        limit_gain_(dense_squared(), 1.5)
    assert lf.asymptotic_gain(lf.MLPLPN(2, alpha=0.25)) == 0.25
