"""FrameLPN: an orthonormal frame, means that pass, coefficients that with open gates pass whole, R bounded below."""

import pytest
import torch

import lpn_fast as lf
from lpn_fast.networks.frame import LIMIT
from lpn_fast.networks.gain import quadratic_heads


def perturbed(channels=1, kernel=3, gates=((1, 1, 5), (3, 2, 4)), size=0.5, **arguments) -> lf.FrameLPN:
    """A projected network far from its start, float64."""
    torch.manual_seed(0)
    model = lf.FrameLPN(channels, kernel, gates, **arguments).double()
    scales = model.step_scales()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(size * scales[name] * torch.randn_like(parameter))
    return model.project_()


@pytest.mark.parametrize("channels, kernel", [(1, 3), (1, 4), (3, 3)])
def test_projection_keeps_the_frame_orthonormal_and_is_idempotent(channels, kernel):
    model = perturbed(channels, kernel)
    basis = model.stages[0].skip.flatten(1) * model.stages[0].skip.shape[-1]
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=basis.dtype), atol=1e-10)
    assert (model.stages[1].core[:, :channels] == 0).all(), "means are not gated"
    assert lf.asymptotic_gain(model) <= 1
    before = model.packed().detach().clone()
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9, atol=1e-12), "projecting twice changes nothing"


@pytest.mark.parametrize("channels, gates", [(1, ()), (1, ((1, 1, 5),)), (3, ((3, 2, 4), (3, 2, 4)))])
def test_with_every_gate_open_a_coefficient_passes(channels, gates):
    model = perturbed(channels, gates=gates)
    heads = quadratic_heads(model)
    wanted = (LIMIT - model.alpha) / 2
    assert torch.allclose(heads, torch.full_like(heads, wanted), rtol=1e-12)
    assert not gates or (model.stages[0].head < 0.99 * wanted).any(), "some of it needs a gate"


@torch.no_grad()
def test_far_out_f_is_the_identity_and_near_zero_it_shrinks():
    model = perturbed(gates=((1, 1, 20),), size=0.1, alpha=0.0)
    x = torch.randn(1, 1, 12, 13, dtype=torch.float64)
    far, near = 1e4 * x, 1e-3 * x
    assert (model(far, 0.1) - LIMIT * far).norm() <= 1e-3 * far.norm()
    assert model(far, 0.1).norm() <= (1 + 1e-3) * lf.asymptotic_gain(model) * far.norm()
    assert model(near, 0.1).norm() <= 0.7 * near.norm()


@torch.no_grad()
def test_without_gates_the_slope_is_bounded_and_the_bound_is_reached():
    model = perturbed(gates=())
    x = torch.randn(2, 1, 9, 10, dtype=torch.float64)
    slopes = (x * model.hvp(x, x, 0.1)).flatten(1).sum(1) / x.flatten(1).square().sum(1)
    assert 0.9 * lf.lipschitz_bound(model) <= slopes.max() <= lf.lipschitz_bound(model)


@pytest.mark.parametrize("sigma", [0.02, 0.2])
@torch.no_grad()
def test_potential_never_exceeds_the_parabola_by_more_than_a_constant(sigma):
    """psi(x) - 1/2 |x|^2 stays bounded along rays, in directions that many steps of ascent made as bad as possible."""
    model = perturbed()
    ceiling = excess_ceiling(model, sigma)
    for scale in (0.1, 0.3, 1.0, 3.0, 10.0):
        assert (excess(model, worst(model, sigma), sigma, scale) <= ceiling).all(), f"at {scale}"


@torch.no_grad()
def test_without_the_limit_the_parabola_is_left_behind():
    """The test above can fail: the same network with its gates three times as strong grows faster than the parabola."""
    model = perturbed()
    x = worst(model, 0.1)
    model.stages[1].head.mul_(3)
    model.stages[2].head.mul_(3)
    assert lf.asymptotic_gain(model) > 1
    assert (excess(model, x, 0.1, 10.0) > excess_ceiling(model, 0.1)).all()


def worst(model, sigma):
    """Images on a sphere of 30 sigma per pixel after gradient ascent of psi - 1/2 |x|^2."""
    x = torch.randn(4, 1, 12, 13, dtype=torch.float64)
    for _ in range(40):
        x = x + 0.5 * model(x, sigma)
        x = 30 * sigma * x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * (x[0].numel() ** 0.5)
    return x


def excess(model, x, sigma, scale):
    return model.potential(scale * x, sigma) - 0.5 * (scale * x).flatten(1).square().sum(1)


def excess_ceiling(model, sigma):
    """softplus(u) <= max(u, 0) + log 2, so what psi can exceed the parabola by is the heads' sum of log 2 + b_+."""
    pixels, through, total = 15 * 16, 0.0, 0.0
    for stage in reversed(list(model.stages)[1:]):
        weight = stage.head + through
        lift = 0.7 + (stage.bias + stage.noise.max(1).values).clamp(min=0)
        total += (weight * lift).sum() * pixels
        through = weight @ stage.core.sum((2, 3))
    return sigma**2 * total


@torch.no_grad()
def test_a_constant_added_to_the_image_is_added_to_the_result():
    model = perturbed(size=0.2, kernel=3, gates=((1, 1, 5),), alpha=0.0)
    x = torch.rand(1, 1, 30, 31, dtype=torch.float64)
    shifted = model(x + 0.3, 0.05) - model(x, 0.05)
    interior = shifted[..., 8:-8, 8:-8]
    assert (interior - LIMIT * 0.3).abs().max() <= 2e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_untrained_it_denoises(channels):
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, channels, 8, 8), size=48, mode="bicubic")
    y = x + 0.1 * torch.randn_like(x)
    model = lf.FrameLPN(channels, kernel=5).eval()
    gain = lf.metrics.psnr(model(y, 0.1), x) - lf.metrics.psnr(y, x)
    assert (gain > 4).all()


def test_gradients_move_only_what_the_projection_leaves_free():
    """Steps of a basis are rotations, and the loss falls as the gradient says though `project_` resets h."""
    model = perturbed(size=0.01)  # no h at zero, where the limit acts
    x = torch.rand(2, 1, 11, 12, dtype=torch.float64)

    def loss():
        return (model(x, 0.1) - 0.5).square().mean()

    loss().backward()
    model.project_gradients_()
    basis = model.stages[0].skip.flatten(1) * model.stages[0].skip.shape[-1]
    rotation = model.stages[0].skip.grad.flatten(1) @ basis.T
    assert torch.allclose(rotation, -rotation.T, atol=1e-12), "tangent vectors of orthonormal bases are rotations"
    before, slope, step = loss().item(), 0.0, 1e-6
    with torch.no_grad():
        for name in ("core", "head"):
            gates = getattr(model.stages[1], name)
            slope += (gates.grad.square() * (gates > 0)).sum().item()
            gates.sub_(step * gates.grad * (gates > 0))
        model.project_()
    assert loss().item() - before == pytest.approx(-step * slope, rel=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel": 1}, "kernel must be between 2 and 15, got 1"),
        ({"gates": ((2, 1, 4),)}, r"a gate must be .* got \(2, 1, 4\)"),
        ({"gates": ((3, 3, 4),)}, r"a gate must be .* got \(3, 3, 4\)"),
        ({"sigma_conditional": False}, "sigma_conditional must be True"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        lf.FrameLPN(1, **arguments)


def test_steps_are_scaled_to_the_size_of_each_parameter():
    model = lf.FrameLPN(1, kernel=3)
    scales = model.step_scales()
    assert set(scales) == {name for name, _ in model.named_parameters()}
    assert all(scale > 0 for scale in scales.values())
    assert scales == lf.FrameLPN(1, kernel=3).step_scales(), "a function of the architecture, not of the weights"
