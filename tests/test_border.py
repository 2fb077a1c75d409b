"""Frames under gates of single pixels whose images go on mirrored: exact at every size, and better at the border."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import gain_limit, perturbed, relative

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import unpack
from lpn_fast.algebra.spec import Spec, Stage, from_dict, to_dict
from lpn_fast.ops.backends import pointwise
from lpn_fast.ops.plain_torch import Eager

SIZES = [(11, 14), (7, 7), (5, 12), (1, 9), (2, 3), (1, 1)]  # sides above, at and below the side of a patch


def frame(channels=1, kernel=5, gates=((1, 1, 9),), border="mirror", size=0.3):
    return perturbed(lf.FrameLPN(channels, kernel, gates, alpha=0.01, border=border).double(), size).eval()


def mixture(channels=1, kernel=5, experts=7, border="mirror", size=0.3):
    return perturbed(lf.MixtureLPN(channels, kernel, experts, alpha=0.01, border=border).double(), size).eval()


NETWORKS = {
    "frame": frame,
    "two stages": lambda **more: frame(2, 3, ((1, 1, 6), (1, 1, 4)), **more),
    "no gates": lambda **more: frame(3, 2, (), **more),
    "mixture": mixture,
    "colour mixture": lambda **more: mixture(3, 3, 4, **more),
}


@pytest.fixture(params=NETWORKS)
def build(request):
    return NETWORKS[request.param]


def images(model, size, count=2):
    torch.manual_seed(sum(size))
    return torch.rand(count, model.spec.channels, *size, dtype=torch.float64)


def packed_arguments(model, x, sigma):
    """(spec, x in units of the noise, P, features) as operators take them."""
    x, features, _ = model._checked(x, sigma)
    return model.spec, x / torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1), model.packed().detach(), features


def weights_of(side, k):
    """w along an axis, by counting."""
    pixels = np.pad(np.arange(side), k - 1, mode="symmetric")
    weights = np.array([1.0 if 0 <= p <= side - k else 0.5 for p in range(1 - k, side)])
    seen = sum(w * np.bincount(pixels[at : at + k], minlength=side) for at, w in enumerate(weights))
    period = [p % (2 * side) for p in range(1 - k, side)]
    count = np.bincount(period, weights, minlength=2 * side)
    twice = [count[p] + count[(-k - p) % (2 * side)] for p in range(2 * side)]  # a position and its mirror image
    return weights / max(1.0, seen.max() / k, *twice)


def potential_by_patches(spec, x, packed, features):
    """psi, patch by patch."""
    first, *gates = unpack(spec, packed).stages
    k, psi = spec.stages[0].skip_kernel, 0.5 * spec.alpha * x.square().sum((1, 2, 3))
    continued = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (k - 1,) * 2, (k - 1,) * 2), mode="symmetric"))
    for i, down in enumerate(weights_of(x.shape[2], k)):
        for j, across in enumerate(weights_of(x.shape[3], k)):
            z = (continued[..., i : i + k, j : j + k].flatten(1) @ first.skip.flatten(1).T).square()
            part = z @ first.head
            for gate, stage in zip(gates, spec.stages[1:], strict=True):
                u = z @ gate.core.flatten(1).T + gate.bias + features @ gate.noise.T
                z = u.logsumexp(1, keepdim=True) if stage.competing else F.softplus(u, spec.beta, 40.0)
                part = part + z @ gate.head
            psi = psi + down * across * part
    return psi


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_specification_is_a_sum_over_all_patches(build, size):
    model = build()
    arguments = packed_arguments(model, images(model, size), 0.1)
    assert relative(reference.potential(*arguments), potential_by_patches(*arguments)) < 1e-13


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_what_the_specification_says(build, size):
    """Sweeps with and without a tape, and the few passes of pointwise.py, in float64."""
    model = build()
    x, sigma = images(model, size, 3), torch.tensor([0.03, 0.1, 0.25], dtype=torch.float64)
    spec, at, packed, features = packed_arguments(model, x, sigma)
    true_psi, true_f = reference.potential(spec, at, packed, features), reference.prox(spec, at, packed, features)
    torch.manual_seed(1)
    p, v = torch.randn(3, dtype=torch.float64), torch.randn_like(at)
    true_gx, true_gP = reference.vjp(spec, at, packed, features, p, v)
    backend = lf.ops.backends.torch.TorchBackend()
    for kept in (False, True):
        psi, f, tape = backend.evaluate(spec, at, packed, features, True, kept, "fp32")
        gx, gP = backend.vjp(spec, at, packed, features, p, v, tape, "fp32")
        hv = backend.hvp(spec, at, packed, features, v, tape, "fp32")
        assert relative(psi, true_psi) < 1e-13 and relative(f, true_f) < 1e-13
        assert relative(gx, true_gx) < 1e-12 and relative(gP, true_gP) < 1e-12
        assert relative(hv, true_gx - p.view(-1, 1, 1, 1) * true_f) < 1e-11
    assert relative(pointwise.value_prox(spec, at, packed, features, False)[1], true_f) < 1e-13


def test_the_plain_module_is_the_same_function(build):
    """The baseline of benchmarks and admission, which reads x in units of the noise."""
    model = build()
    x, v = images(model, (6, 9)), images(model, (9, 6)).mT
    plain = Eager(model)
    psi, f = model.potential_and_prox(x, 1.0)
    assert relative(plain.value(x), psi) < 1e-12 and relative(plain.prox(x), f) < 1e-12
    assert relative(plain.hvp(x, v), model.hvp(x, v, 1.0)) < 1e-12


def test_gradients_are_those_of_finite_differences():
    for model in (frame(kernel=3, gates=((1, 1, 3),)), mixture(kernel=3, experts=3)):
        x = images(model, (4, 2), 1).requires_grad_()
        with lf.use_backend("torch"):
            assert torch.autograd.gradcheck(lambda t, model=model: model.potential_and_prox(t, 0.2), x)


@pytest.mark.parametrize("size", [(6, 7), (2, 3)])
@torch.no_grad()
def test_the_hessian_is_symmetric_and_positive(build, size):
    model = build()
    x = images(model, size, 1)
    basis = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape[1:])
    hessian = model.hvp(x.expand(len(basis), -1, -1, -1).contiguous(), basis, 0.1).flatten(1)
    assert (hessian - hessian.T).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(hessian)[0] >= model.alpha * (1 - 1e-9)


def test_it_is_an_exact_prox_and_its_prior_has_no_doubt(build):
    model = build()
    assert lf.verify(model, images(model, (9, 8)), 0.1).all_hold
    y = images(model, (9, 8))
    inversion = lf.invert(model, model(y, 0.1).detach(), sigma=0.1, tol=1e-10)
    assert inversion.converged.all() and relative(inversion.preimage, y) < 1e-7, "alpha > 0: there is one preimage"


# ---- the certificate


@pytest.mark.parametrize("size", [(23, 17), (6, 6), (5, 5), (4, 3), (1, 1), (2, 9)])
@torch.no_grad()
def test_the_gain_is_bounded_at_every_size(build, size):
    """psi grows as limit / 2 |x|^2 at most: also where an image is smaller than its patches."""
    model = build()
    limit = gain_limit(model)
    assert lf.asymptotic_gain(model) <= limit * (1 + 1e-9)
    x = 1e6 * (images(model, size, 20) - 0.5)
    assert (2 * model.potential(x, 0.1) / x.square().sum((1, 2, 3)) <= limit * (1 + 1e-5)).all()


@torch.no_grad()
def test_without_gates_the_frame_is_tight():
    """Every coefficient passes: f(x) = limit x up to and including the border, which is where E and w come in."""
    for kernel, size in ((4, (9, 5)), (2, (1, 2)), (7, (6, 6))):
        model = frame(2, kernel, ())
        x = images(model, size)
        assert relative(model(x, 0.1), gain_limit(model) * x) < 1e-12


@torch.no_grad()
def test_the_gain_bounds_filters_that_are_no_frame():
    torch.manual_seed(3)
    stages = (
        Stage(5, skip_kernel=3, skip_padding=2, bias=False, heads=("linear",)),
        Stage(4, 1, skip_kernel=0, heads=("linear",)),
    )
    model = lf.LPN(Spec("conv", 2, stages, 3.0, 0.1, square_first=True, border="mirror")).double()
    for parameter in model.parameters():
        parameter.copy_(torch.rand_like(parameter) - 0.3)
    model.project_()
    bound = lf.asymptotic_gain(model)
    for size in ((8, 7), (2, 2), (1, 4)):
        x = 1e6 * torch.randn(1, 2, *size, dtype=torch.float64)
        basis = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape[1:])
        hessian = model.hvp(x.expand(len(basis), -1, -1, -1).contiguous(), basis).flatten(1)
        largest = torch.linalg.eigvalsh(hessian)[-1]
        assert 0.3 * bound < largest <= bound * (1 + 1e-9)


# ---- what it is for


@torch.no_grad()
def test_far_from_the_border_nothing_changes(build):
    model = build()
    x, k = images(model, (23, 21)), model.spec.stages[0].skip_kernel
    inside = (..., slice(k - 1, 1 - k), slice(k - 1, 1 - k))
    mirrored, zero = model(x, 0.1), model.with_border("zero")(x, 0.1)
    assert relative(mirrored[inside], zero[inside]) < 1e-13
    assert model.spec.stages[1:] == () or relative(mirrored, zero) > 1e-4


@torch.no_grad()
def test_constants_are_added_to_the_result_up_to_the_border(build):
    """f(x + c) = f(x) + limit c: the patches of a constant are means, which pass. By zeros they are edges."""
    model = build()
    x = images(model, (12, 9))
    c = torch.rand(len(x), model.spec.channels, 1, 1, dtype=torch.float64)
    assert relative(model(x + c, 0.1) - model(x, 0.1), (gain_limit(model) * c).expand_as(x)) < 1e-10


@torch.no_grad()
def test_samples_do_not_see_each_other(build):
    model = build()
    x, sigma = images(model, (6, 11), 3), torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64)
    psi, f = model.potential_and_prox(x, sigma)
    for n in range(3):
        own = model.potential_and_prox(x[n : n + 1], sigma[n].item())
        assert relative(own[0], psi[n : n + 1]) < 1e-13 and relative(own[1], f[n : n + 1]) < 1e-13


@pytest.mark.parametrize("name", ["frame-gray", "fast-gray"])
@torch.no_grad()
def test_at_the_border_of_a_smooth_image_a_mirrored_one_is_better(name):
    """The same weights, without training: a shipped model, whose own border is of zeros."""
    model = lf.pretrained(name)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing="ij")
    clean = (0.3 + 0.4 * rows + 0.2 * torch.sin(3 * columns))[None, None]
    torch.manual_seed(0)
    noisy = clean + 0.1 * torch.randn(8, *clean.shape[1:])
    band = torch.ones_like(clean, dtype=torch.bool)
    band[..., 6:-6, 6:-6] = False
    zero, mirrored = (
        (model.with_border(border)(noisy, 0.1) - clean).square()[band.expand_as(noisy)].mean().item()
        for border in ("zero", "mirror")
    )
    assert mirrored < 0.8 * zero


# ---- as data


def test_files_of_before_mean_zeros_and_stay_as_they_were(tmp_path):
    model = lf.FrameLPN(1, 3, ((1, 1, 4),))
    assert "border" not in to_dict(model.spec) and from_dict(to_dict(model.spec)).border == "zero"
    lf.save(model.with_border("mirror"), tmp_path / "mirrored.safetensors")
    loaded = lf.load(tmp_path / "mirrored.safetensors")
    assert type(loaded) is lf.FrameLPN and loaded.spec.border == "mirror"
    assert "border=mirror" in repr(loaded) and "border" not in repr(model)
    assert json.loads(loaded.spec.encoded)["border"] == "mirror"
    x = torch.rand(1, 1, 7, 6)
    assert torch.equal(loaded(x, 0.1), model.with_border("mirror")(x, 0.1))
    assert torch.equal(loaded.with_border("zero")(x, 0.1), model(x, 0.1))


def test_a_copy_shares_no_weights():
    model = lf.MixtureLPN(1, 3, 4)
    copy = model.with_border("mirror")
    with torch.no_grad():
        copy.stages[1].bias.add_(1)
    assert model.spec.border == "zero" and not torch.equal(model.stages[1].bias, copy.stages[1].bias)


@pytest.mark.parametrize(
    "build, seen",
    [
        (lambda: lf.FrameLPN(1, 3, ((3, 1, 4),), border="mirror"), r"gates of \[\(3, 1\)\]"),
        (lambda: lf.FrameLPN(1, 3, ((1, 1, 4), (1, 2, 3)), border="mirror"), r"gates of \[\(1, 1\), \(1, 2\)\]"),
        (lambda: lf.MLPLPN(2).with_border("mirror"), "a dense network"),
        (lambda: lf.ConvLPN(1, hidden=2, ndim=3).with_border("mirror"), "one of volumes"),
        (lambda: lf.RidgeLPN(1).with_border("mirror"), "no frame"),
    ],
)
def test_other_networks_refuse_it_by_name(build, seen):
    with pytest.raises(ValueError, match=f"border 'mirror' requires .*{seen}"):
        build()


def test_other_borders_are_refused():
    with pytest.raises(ValueError, match="border must be one of .*got 'periodic'"):
        lf.FrameLPN(1, 3, border="periodic")
