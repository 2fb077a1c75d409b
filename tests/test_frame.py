"""FrameLPN: an orthonormal frame, means that pass, lifts that give back no more than was taken, R bounded below."""

import pytest
import torch

import lpn_fast as lf
from lpn_fast.networks.frame import LIMIT


def perturbed(channels=1, kernel=3, gates=((1, 1, 5), (3, 2, 4)), size=0.5, **arguments) -> lf.FrameLPN:
    """A projected network far from its start, float64."""
    torch.manual_seed(0)
    model = lf.FrameLPN(channels, kernel, gates, **arguments).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model.project_()


@pytest.mark.parametrize("channels, kernel", [(1, 3), (1, 4), (3, 3)])
def test_projection_keeps_the_frame_orthonormal_and_is_idempotent(channels, kernel):
    model = perturbed(channels, kernel)
    n = channels * kernel**2
    basis = model._basis()
    assert torch.allclose(basis @ basis.T, torch.eye(n, dtype=basis.dtype), atol=1e-10)
    first = model.stages[0]
    assert torch.equal(first.skip[::2], -first.skip[1::2])
    assert (first.bias <= 0).all() and (first.noise <= 0).all()
    assert lf.asymptotic_gain(model) <= 1
    before = model.packed().detach().clone()
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9, atol=1e-12), "projecting twice changes nothing"


@pytest.mark.parametrize("channels", [1, 3])
def test_lifts_stay_within_what_the_thresholds_took(channels):
    model = perturbed(channels)
    taken = 2 * model.stages[0].head_squared * -(model.stages[0].bias + model.stages[0].noise.max(1).values)
    assert (model.lifts() <= taken.view(model._grid).sum(1) * (1 + 1e-9)).all()
    assert (model.lifts() > 0).any(), "the bound is not met by switching everything off"


@pytest.mark.parametrize("sigma", [0.02, 0.2])
@torch.no_grad()
def test_potential_never_exceeds_the_parabola_by_more_than_a_constant(sigma):
    """psi(x) - 1/2 |x|^2 stays bounded along rays, in directions that many steps of ascent made as bad as possible."""
    model = perturbed()
    x = torch.randn(4, 1, 12, 13, dtype=torch.float64)
    for _ in range(40):  # gradient ascent of psi - 1/2 |x|^2 on the sphere of radius 30 sigma
        x = x + 0.5 * model(x, sigma)
        x = 30 * sigma * x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * (x[0].numel() ** 0.5)

    def excess(scale):
        return model.potential(scale * x, sigma) - 0.5 * (scale * x).flatten(1).square().sum(1)

    units = sum(stage.width for stage in model.spec.stages) * 15 * 16
    ceiling = sigma**2 * units * 0.5
    for scale in (0.1, 0.3, 1.0, 3.0, 10.0):
        assert (excess(scale) <= ceiling).all(), f"at {scale}"


@torch.no_grad()
def test_without_the_limit_on_lifts_the_parabola_is_left_behind():
    """The test above can fail: the same network with ten times its lifts grows linearly above the parabola."""
    model = perturbed()
    model.stages[0].head.mul_(30)
    model.stages[1].core.mul_(30)
    x = torch.randn(1, 1, 12, 13, dtype=torch.float64)
    near, far = (model.potential(s * x, 0.1) - 0.5 * (s * x).square().sum() for s in (1.0, 10.0))
    assert far > 5 * near > 0


@torch.no_grad()
def test_a_constant_added_to_the_image_is_added_to_the_result():
    model = perturbed(size=0.2, kernel=3, gates=((1, 1, 5),), alpha=0.0)
    x = torch.rand(1, 1, 30, 31, dtype=torch.float64)
    shifted = model(x + 0.3, 0.05) - model(x, 0.05)
    interior = shifted[..., 8:-8, 8:-8]
    assert (interior - LIMIT * 0.3).abs().max() <= 2e-3


def test_untrained_it_denoises():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 1, 8, 8), size=48, mode="bicubic")
    y = x + 0.1 * torch.randn_like(x)
    model = lf.FrameLPN(1, kernel=7).eval()
    gain = lf.metrics.psnr(model(y, 0.1), x) - lf.metrics.psnr(y, x)
    assert (gain > 4).all()


def test_gradients_move_only_what_the_projection_leaves_free():
    """A small step along projected gradients is undone by the projection to second order only."""
    model = perturbed(size=0.1)
    x = torch.rand(2, 1, 11, 12, dtype=torch.float64)
    model(x, 0.1).square().mean().backward()
    model.project_gradients_()
    first = model.stages[0]
    n, m, _ = model._grid
    g = first.skip.grad.view(n, m, 2, n)
    assert torch.equal(g[:, :1, :1].expand_as(g) * torch.tensor([1.0, -1.0])[:, None], g)
    rotation = g[:, 0, 0] @ model._basis().T
    assert torch.allclose(rotation, -rotation.T, atol=1e-12), "tangent vectors of orthonormal bases are rotations"
    shares = first.head_squared.grad.view(model._grid)
    assert torch.allclose(shares.sum(1), torch.zeros(n, 2, dtype=shares.dtype), atol=1e-14)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel": 1}, "kernel must be between 2 and 9, got 1"),
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
    assert all(0 < scale <= 1 for scale in scales.values())
    assert scales == lf.FrameLPN(1, kernel=3).step_scales(), "a function of the architecture, not of the weights"
