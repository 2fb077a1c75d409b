"""The asymptotic gain bounds the growth of f, and limiting it makes R coercive."""

import math

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.networks import limit_gain_
from lpn_fast.networks.gain import GRID, OVERSHOOT, largest_strength, transfer_bound


def dense_squared(alpha=0.05):
    torch.manual_seed(0)
    stages = (Stage(12, heads=("squared",)), Stage(6, kernel=1, heads=("linear",)))
    return lf.LPN(Spec("dense", 3, stages, 10.0, alpha, quadratic=2)).double()


def conv_with_quadratic():
    """A squared head and a quadratic term whose kernels differ in size."""
    torch.manual_seed(0)
    stage = Stage(4, skip_kernel=5, skip_padding=2, heads=("squared",))
    return lf.LPN(Spec("conv", 1, (stage,), 10.0, quadratic=2, quadratic_kernel=3)).double()


def volumes(channels=1):
    torch.manual_seed(0)
    return lf.ConvLPN(channels, hidden=8, strides=(1, 2), ndim=3).double()


@pytest.mark.parametrize(
    "build", [dense_squared, conv_with_quadratic, lambda: lf.ConvLPN(1, hidden=8).double(), volumes]
)
def test_gain_bounds_the_growth_of_the_prox(build):
    model = build()
    shape = (8, 3) if model.spec.is_dense else (4, 1, *(16,) * model.spec.ndim)
    direction = torch.randn(shape, dtype=torch.float64)
    for radius in (1e4, 1e6):
        x = radius * direction / direction.flatten(1).norm(dim=1).view(-1, *(1,) * (direction.dim() - 1))
        growth = model(x).flatten(1).norm(dim=1) / radius
        assert (growth <= lf.asymptotic_gain(model) * (1 + 1e-3)).all()


@pytest.mark.parametrize("sides, channels", [((20, 20), 1), ((9, 8, 9), 1), ((7, 6, 7), 2)])
def test_convolutional_gain_is_the_norm_of_the_filters(sides, channels):
    """Units with filters of side 3: the Hessian at infinity is 2 g a a^T, whose norm a dense SVD gives."""
    torch.manual_seed(0)
    stage = Stage(channels, skip_kernel=3, skip_padding=1, heads=("squared",))
    model = lf.LPN(Spec("conv", channels, (stage,), 100.0, ndim=len(sides))).double()
    with torch.no_grad():
        model.stages[0].skip.normal_()
        model.stages[0].bias.fill_(1e4)  # far on the quadratic side
    x = torch.randn(1, channels, *sides, dtype=torch.float64)
    hessian = torch.autograd.functional.jacobian(model, x).reshape(x.numel(), x.numel())
    norm = torch.linalg.matrix_norm(hessian, 2).item()
    gain = lf.asymptotic_gain(model)
    # volumes of so few pixels come less close to their limit than images
    assert norm <= gain <= (1.15 if len(sides) == 2 else 1.5) * norm
    for axis in range(2, 2 + len(sides) if channels == 1 else 0):  # every quadrant of frequencies is looked at
        with torch.no_grad():
            model.stages[0].skip.copy_(model.stages[0].skip.flip(axis))
        assert lf.asymptotic_gain(model) == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_transfer_bound_holds_between_the_frequencies_it_looks_at(ndim):
    """A wave that lies midway between two of them on every axis: |A|^2 there against the bound."""
    side, omega = 9, math.pi / 2 + math.pi / GRID[ndim]
    phase = omega * torch.arange(side, dtype=torch.float64)
    axes = "ij" if ndim == 2 else "ijk"
    waves = torch.polar(torch.ones_like(phase), phase)
    kernel = torch.einsum(",".join(axes) + "->" + axes, *[waves] * ndim)  # [k, k(, k)]
    kernels = torch.stack([kernel.real, kernel.imag])[:, None]  # [2, 1, k, ..]
    peak = torch.einsum("n" + axes + "," + ",".join(axes) + "->n", kernels[:, 0] + 0j, *[waves] * ndim)
    spec = Spec("conv", 1, (Stage(2, skip_kernel=side, heads=("squared",)),), 1.0, ndim=ndim)
    bound = transfer_bound(spec, kernels)
    assert peak.abs().square().sum().item() <= bound <= 1.07 * peak.abs().square().sum().item()


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


def dense_single(dim=1, heads=("squared",), scale=0.35):
    model = lf.LPN(Spec("dense", dim, (Stage(8, heads=heads),), 10.0, 0.01)).double()
    torch.manual_seed(3)
    with torch.no_grad():
        for name in ("head", "head_squared"):
            if hasattr(model.stages[0], name):
                getattr(model.stages[0], name).copy_(scale * torch.rand(8))
        model.stages[0].skip.copy_(torch.randn_like(model.stages[0].skip))
        model.stages[0].bias.copy_(torch.randn(8))
    return model


def half_curvature(u):
    """(z^2)''/2 of z = softplus(u); another beta only rescales u."""
    slope = torch.sigmoid(u)
    return slope.square() + torch.nn.functional.softplus(u) * slope * (1 - slope)


def test_the_curvature_of_a_unit_and_of_a_pair_stays_below_its_bound():
    u = torch.linspace(-40, 40, 40001, dtype=torch.float64)
    assert 1.03 < half_curvature(u).max() <= OVERSHOOT
    for b in torch.linspace(-20, 0, 401, dtype=torch.float64):
        assert (half_curvature(u + b) + half_curvature(-u + b)).max() <= OVERSHOOT


@pytest.mark.parametrize("heads", [("squared",), ("linear",), ("linear", "squared")])
@pytest.mark.parametrize("dim", [1, 4])
def test_the_lipschitz_bound_holds_wherever_one_looks(dim, heads):
    model = dense_single(dim, heads)
    bound = lf.lipschitz_bound(model)
    x = 3 * torch.randn(2000, dim, dtype=torch.float64)
    v = torch.nn.functional.normalize(torch.randn_like(x), dim=1)
    slopes = (v * model.hvp(x, v)).sum(1).detach()
    assert slopes.max() <= bound < math.inf
    assert dim > 1 or bound < 4 * slopes.max()  # and is not idle


def test_of_a_ridge_network_a_pair_counts_once():
    model = lf.RidgeLPN(1, pairs=6, kernel=5)
    assert lf.lipschitz_bound(model) <= OVERSHOOT * lf.asymptotic_gain(model) + 1e-6


def test_several_stages_have_no_known_bound_and_no_strength_above_one():
    model = lf.MLPLPN(dim=2)
    assert math.isinf(lf.lipschitz_bound(model)) and largest_strength(model) == 1
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\], got 1.5.*lipschitz_bound"):
        model.prox(torch.zeros(3, 2), strength=1.5)


@pytest.mark.parametrize("t", [1.3, 1.9])
def test_strength_above_one_minimises_by_brute_force(t):
    model = dense_single()
    limit = largest_strength(model)
    assert t < limit < math.inf, limit
    assert limit / (limit - 1) == pytest.approx(lf.lipschitz_bound(model)), (
        "where t / (t - 1) is the Lipschitz constant"
    )
    u = torch.linspace(-60, 60, 600001, dtype=torch.float64)[:, None]
    points, prior = model.prox_and_prior(u)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    best = ((points.T - z).square() / 2 + t * prior).argmin(1)
    assert (model.prox(z, strength=t) - points[best]).abs().max() <= 1e-3  # spacing of the candidates
    with pytest.raises(ValueError, match="positive and below"):
        model.prox(z, strength=1.01 * limit)


def test_gradients_of_strength_above_one():
    model = dense_single()
    z = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.tensor([1.2, 1.5, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: model.prox(z, strength=t), (z, t))
