"""FrameLPN: coefficients that with open gates pass whole; what mixtures have too is in test_patch_networks.py."""

import pytest
import torch
from cases import perturbed

import lpn_fast as lf
from lpn_fast.networks.frame import LIMIT
from lpn_fast.networks.gain import quadratic_heads


def frame(channels=1, gates=((1, 1, 5), (3, 2, 4)), size=0.5, **arguments) -> lf.FrameLPN:
    """A projected network far from its start, float64."""
    return perturbed(lf.FrameLPN(channels, 3, gates, **arguments).double(), size)


@pytest.mark.parametrize("channels, gates", [(1, ()), (1, ((1, 1, 5),)), (3, ((3, 2, 4), (3, 2, 4)))])
def test_with_every_gate_open_a_coefficient_passes(channels, gates):
    model = frame(channels, gates=gates)
    heads = quadratic_heads(model)
    wanted = (LIMIT - model.alpha) / 2
    assert torch.allclose(heads, torch.full_like(heads, wanted), rtol=1e-12)
    assert not gates or (model.stages[0].head < 0.99 * wanted).any(), "some of it needs a gate"


@torch.no_grad()
def test_far_out_f_is_the_identity_and_near_zero_it_shrinks():
    model = frame(gates=((1, 1, 20),), size=0.1, alpha=0.0)
    x = torch.randn(1, 1, 12, 13, dtype=torch.float64)
    far, near = 1e4 * x, 1e-3 * x
    assert (model(far, 0.1) - LIMIT * far).norm() <= 1e-3 * far.norm()
    assert model(far, 0.1).norm() <= (1 + 1e-3) * lf.asymptotic_gain(model) * far.norm()
    assert model(near, 0.1).norm() <= 0.7 * near.norm()


@torch.no_grad()
def test_without_gates_the_slope_is_bounded_and_the_bound_is_reached():
    model = frame(gates=())
    x = torch.randn(2, 1, 9, 10, dtype=torch.float64)
    slopes = (x * model.hvp(x, x, 0.1)).flatten(1).sum(1) / x.flatten(1).square().sum(1)
    assert 0.9 * lf.lipschitz_bound(model) <= slopes.max() <= lf.lipschitz_bound(model)


@torch.no_grad()
def test_a_constant_added_to_the_image_is_added_to_the_result():
    model = frame(size=0.2, gates=((1, 1, 5),), alpha=0.0)
    x = torch.rand(1, 1, 30, 31, dtype=torch.float64)
    shifted = model(x + 0.3, 0.05) - model(x, 0.05)
    interior = shifted[..., 8:-8, 8:-8]
    assert (interior - LIMIT * 0.3).abs().max() <= 2e-3


def test_gradients_move_only_what_the_projection_leaves_free():
    """The loss falls as the gradient says though `project_` resets h."""
    model = frame(size=0.01)  # no h at zero, where the limit acts
    x = torch.rand(2, 1, 11, 12, dtype=torch.float64)

    def loss():
        return (model(x, 0.1) - 0.5).square().mean()

    loss().backward()
    model.project_gradients_()
    before, slope, step = loss().item(), 0.0, 1e-6
    with torch.no_grad():
        for name in ("core", "head"):
            gates = getattr(model.stages[1], name)
            slope += (gates.grad.square() * (gates > 0)).sum().item()
            gates.sub_(step * gates.grad * (gates > 0))
        model.project_()
    assert loss().item() - before == pytest.approx(-step * slope, rel=1e-3)
