"""What FrameLPN and MixtureLPN share: an orthonormal frame, means that pass, scaled steps, R bounded below."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import gain_limit, perturbed

import lpn_fast as lf
from lpn_fast.networks.gain import quadratic_heads

NETWORKS = {
    "frame": lambda channels=1, kernel=3: lf.FrameLPN(channels, kernel, gates=((1, 1, 5), (3, 2, 4))),
    "mixture": lambda channels=1, kernel=3: lf.MixtureLPN(channels, kernel, experts=5),
}


@pytest.fixture(params=NETWORKS)
def build(request):
    return NETWORKS[request.param]


def rotation(model, filters):
    """Filters [units, C, k, k] in the basis of the frame."""
    return filters.flatten(1) @ (model.stages[0].skip.flatten(1) * model.stages[0].skip.shape[-1]).T


@pytest.mark.parametrize("channels, kernel", [(1, 3), (1, 4), (3, 3)])
def test_projection_keeps_frame_means_and_gain_and_is_idempotent(build, channels, kernel):
    model = perturbed(build(channels, kernel).double())
    skip = model.stages[0].skip
    assert torch.allclose(rotation(model, kernel * skip), torch.eye(len(skip), dtype=skip.dtype), atol=1e-10)
    assert (model.stages[1].core[:, :channels] == 0).all(), "means are neither gated nor evidence"
    assert (quadratic_heads(model) <= (gain_limit(model) - model.alpha) / 2 * (1 + 1e-12)).all()
    assert lf.asymptotic_gain(model) <= 1
    before = model.packed().detach().clone()
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9, atol=1e-12), "projecting twice changes nothing"


def test_gradients_of_filters_are_tangent_vectors_of_orthonormal_bases(build):
    model = perturbed(build().double(), size=0.01)
    (model(torch.rand(2, 1, 11, 12, dtype=torch.float64), 0.1) - 0.5).square().mean().backward()
    model.project_gradients_()
    turn = rotation(model, model.stages[0].skip.grad)
    assert turn.any() and torch.allclose(turn, -turn.T, atol=1e-12), "those are rotations"
    assert (model.stages[0].head.grad == 0).all() or isinstance(model, lf.FrameLPN), "h is fixed"


def ceiling(model, sigma):
    """What psi can exceed the parabola by, on 12 x 13 pixels, as softplus(u) <= u_+ + log 2 and log sum exp u <= log M
    + max u: the heads' sum of these."""
    pixels, through, total = 15 * 16, 0.0, 0.0
    for stage in reversed(list(model.stages)[1:]):
        highest = (stage.bias + stage.noise.max(1).values).clamp(min=0)
        if isinstance(model, lf.MixtureLPN):
            return sigma**2 * stage.head * (math.log(5) + highest.amax()) * pixels
        weight = stage.head + through
        total += (weight * (0.7 + highest)).sum() * pixels
        through = weight @ stage.core.sum((2, 3))
    return sigma**2 * total


def beyond_the_limit_(model):
    if isinstance(model, lf.MixtureLPN):
        model.stages[1].core.fill_(3 * model._budget / model.stages[1].head.item())
    else:
        model.stages[1].head.mul_(3)
        model.stages[2].head.mul_(3)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2])
@torch.no_grad()
def test_potential_never_exceeds_the_parabola_by_more_than_a_constant(build, sigma):
    """psi(x) - 1/2 |x|^2 stays bounded along rays, in directions that many steps of ascent made as bad as possible.

    The test can fail: the same network beyond its limit grows faster than the parabola.
    """
    model = perturbed(build().double())
    x = torch.randn(4, 1, 12, 13, dtype=torch.float64)
    for _ in range(40):  # on a sphere of 30 sigma per pixel
        x = x + 0.5 * model(x, sigma)
        x = 30 * sigma * x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * (x[0].numel() ** 0.5)

    def excess(scale):
        return model.potential(scale * x, sigma) - 0.5 * (scale * x).flatten(1).square().sum(1)

    highest = ceiling(model, sigma)
    for scale in (0.1, 0.3, 1.0, 3.0, 10.0):
        assert (excess(scale) <= highest).all(), f"at {scale}"
    beyond_the_limit_(model)
    assert lf.asymptotic_gain(model) > 1 and (excess(10.0) > highest).all()


@pytest.mark.parametrize("family", [lf.FrameLPN, lf.MixtureLPN])
@pytest.mark.parametrize("channels", [1, 3])
def test_untrained_it_denoises(family, channels):
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(2, channels, 8, 8), size=48, mode="bicubic")
    y = x + 0.1 * torch.randn_like(x)
    model = family(channels, kernel=5).eval()
    assert (lf.metrics.psnr(model(y, 0.1), x) - lf.metrics.psnr(y, x) > 4).all()


def test_steps_are_scaled_to_the_size_of_each_parameter(build):
    model = build()
    scales = model.step_scales()
    assert set(scales) == {name for name, _ in model.named_parameters()}
    assert all(scale > 0 for scale in scales.values())
    assert scales == perturbed(build()).step_scales(), "a function of the architecture, not of the weights"


@pytest.mark.parametrize(
    "family, arguments, message",
    [
        (lf.FrameLPN, {"kernel": 1}, "kernel must be between 2 and 15, got 1"),
        (lf.FrameLPN, {"gates": ((2, 1, 4),)}, r"a gate must be .* got \(2, 1, 4\)"),
        (lf.FrameLPN, {"gates": ((3, 3, 4),)}, r"a gate must be .* got \(3, 3, 4\)"),
        (lf.FrameLPN, {"sigma_conditional": False}, "sigma_conditional must be True"),
        (lf.MixtureLPN, {"kernel": 16}, "kernel must be between 2 and 15, got 16"),
        (lf.MixtureLPN, {"experts": 1}, "experts must be at least 2, got 1"),
        (lf.MixtureLPN, {"sigma_conditional": False}, "sigma_conditional must be True"),
    ],
)
def test_bad_arguments_are_named(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        family(1, **arguments)
