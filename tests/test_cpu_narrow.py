"""Correlations of few input channels against direct ones in float64, alone and fused with their stages."""

import pytest
import torch
import torch.nn.functional as F
from cases import on_threads, relative

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.ops.backends.cpu import maps as cpu_maps
from lpn_fast.ops.backends.cpu import narrow

# (kernel, stride, padding, channels, (H, W), units); rows of more than narrow_pixels = 96 pixels, blocks of 16 rows,
# and units that leave a vector partly empty included
CASES = [
    (3, 1, 1, 1, (5, 7), 48),
    (3, 2, 1, 3, (9, 8), 48),
    (7, 1, 3, 1, (35, 101), 48),
    (9, 1, 4, 3, (12, 10), 1),
    (5, 2, 2, 2, (33, 16), 37),
    (4, 4, 0, 1, (8, 12), 196),
    (5, 1, 0, 1, (5, 5), 48),
    (7, 1, 6, 1, (11, 100), 20),
]
TOLERANCE = {torch.float32: 5e-7, torch.bfloat16: 4e-3}  # relative to what is stored: a rounding of bfloat16 is 2^-9


def problem(kernel, stride, padding, channels, size, units=48, images=3):
    torch.manual_seed(kernel + size[0])
    x, weight = torch.randn(images, channels, *size), torch.randn(units, channels, kernel, kernel)
    Ax = F.conv2d(x.double(), weight.double(), stride=stride, padding=padding)
    return x, weight, Ax, narrow.NarrowSkip(weight, stride, padding)


def channels_last(t, dtype=torch.float32):
    return t.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_a_stage_is_the_softplus_of_the_whole_sum(isa, case, storage):
    x, _, Ax, skip = problem(*case)
    product = skip.product(narrow.padded(x, case[2]))
    core, bias = channels_last(torch.randn_like(Ax), storage), torch.randn(len(x), case[-1])
    true = F.softplus(Ax + core.double() + bias.double()[..., None, None], 3.0)
    assert relative(product.softplus(core.clone(), bias, 3.0, storage), true) < TOLERANCE[storage]
    assert (
        relative(product.softplus(None, bias[:1], 3.0, storage)[0], F.softplus(Ax + bias[0, :, None, None], 3.0)[0])
        < (TOLERANCE[storage])
    )
    assert relative(product.softplus(None, None, 3.0, storage), F.softplus(Ax, 3.0)) < TOLERANCE[storage]


@pytest.mark.parametrize("beta", [1.0, 10.0, 100.0])
def test_softplus_of_a_stage_is_right_to_three_units_in_the_last_place(isa, beta):
    """Beside what a rounding of beta and one of beta u make, half a unit each: u s / z times as much in z."""
    u = torch.cat([torch.linspace(-85, 85, 4001), torch.logspace(-30, 2, 1000), -torch.logspace(-30, 1.9, 1000)]) / beta
    core = channels_last(u.expand(1, 33, -1)[:, :, None])  # two vectors and a single lane
    skip = narrow.NarrowSkip(torch.zeros(33, 1, 1, 1), 1, 0)
    z = skip.product(narrow.padded(torch.ones(1, 1, 1, len(u)), 0)).softplus(core.clone(), None, beta, torch.float32)
    t = beta * core.double()
    true = (t.clamp_min(0) + torch.log1p(torch.exp(-t.abs()))) / beta
    carried = (t * torch.sigmoid(t) / (beta * true)).abs()
    error = (z.double() - true).abs() / true / 2.0**-23
    assert (error - carried).max() <= 3


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_a_tangent_is_the_whole_sum_times_the_slope(isa, case, storage):
    x, _, Ax, skip = problem(*case)
    product = skip.product(narrow.padded(x, case[2]))
    core, z = (channels_last(torch.rand_like(Ax), storage) for _ in range(2))
    slope = -torch.expm1(-3.0 * z.double())
    assert relative(product.tangent(core.clone(), z, 3.0), (Ax + core.double()) * slope) < TOLERANCE[storage]
    assert relative(product.tangent(None, z, 3.0), Ax * slope) < TOLERANCE[storage]


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_adjoint_and_gradient_are_those_of_the_direct_one(isa, case, storage):
    kernel, stride, padding, _, size, _ = case
    x, weight, Ax, skip = problem(*case)
    e = channels_last(torch.randn_like(Ax), storage)
    x64, w64 = x.double().requires_grad_(), weight.double().requires_grad_()
    loss = (F.conv2d(x64, w64, stride=stride, padding=padding) * e.double()).sum()
    true_adjoint, true_gradient = torch.autograd.grad(loss, [x64, w64])
    assert relative(skip.adjoint(e, size), true_adjoint) < 1e-6  # e is what it is: nothing is rounded to bfloat16
    assert relative(skip.gradient(e, narrow.padded(x, padding)), true_gradient) < 1e-6


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads_do_not_change_a_bit(threads):
    x, _, Ax, skip = problem(7, 1, 3, 1, (50, 40), images=2)
    image, e = narrow.padded(x, 3), channels_last(torch.randn_like(Ax))

    def all_of_them():
        return (
            skip.product(image).softplus(None, None, 1.0, torch.float32),
            skip.adjoint(e, (50, 40)),
            skip.gradient(e, image),
        )

    with on_threads(1):
        expected = all_of_them()
    with on_threads(threads):
        found = all_of_them()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_an_empty_batch_gives_empty_results():
    x, weight, _, skip = problem(3, 1, 1, 2, (6, 5), images=0)
    image, e = narrow.padded(x, 1), torch.empty(0, 48, 6, 5)
    assert skip.product(image).softplus(None, None, 1.0, torch.float32).shape == (0, 48, 6, 5)
    assert skip.adjoint(e, (6, 5)).shape == x.shape
    assert not skip.gradient(e, image).any() and skip.gradient(e, image).shape == weight.shape


def test_wide_first_stages_keep_nan_in_its_own_sample():
    x, _, _, skip = problem(7, 1, 3, 1, (12, 12))
    x[1, 0, 5, 5] = torch.nan
    z = skip.product(narrow.padded(x, 3)).softplus(None, None, 1.0, torch.bfloat16)
    assert z[1].isnan().any() and torch.isfinite(z[[0, 2]]).all()


def wide_first_stage() -> lf.LPN:
    """One wide stage of 9 x 9 filters with heads of both kinds, and a narrow core above it."""
    stages = (
        Stage(64, skip_kernel=9, skip_padding=4, heads=("linear", "squared")),
        Stage(32, 1, 1, 0, skip_kernel=5, skip_padding=2, heads=("linear",)),
    )
    return lf.LPN(Spec("conv", 1, stages, 10.0, 0.05, noise_levels=(0.1, 0.3)))


@pytest.mark.parametrize("precision, prox, second", [("fp32", 1e-5, 1e-5), ("bf16", 6e-3, 2.5e-2)])
def test_a_network_of_one_wide_stage_agrees_with_float64(precision, prox, second):
    torch.manual_seed(3)
    model = wide_first_stage()
    x, v, sigma = torch.rand(2, 1, 19, 23), torch.randn(2, 1, 19, 23), torch.tensor([0.1, 0.2])
    if lf.ops.registry.reasons(model.spec, x, precision)["cpu"]:
        pytest.skip(lf.ops.registry.reasons(model.spec, x, precision)["cpu"])
    true = wide_first_stage().double()
    true.load_state_dict(model.state_dict())
    model.precision = precision
    with lf.use_backend("cpu"):
        f, h = model(x, sigma).detach(), model.hvp(x, v, sigma).detach()
        gradients = torch.autograd.grad((v * model(x, sigma)).sum(), list(model.parameters()), allow_unused=True)
    arguments = x.double(), sigma.double()
    expected = torch.autograd.grad((v.double() * true(*arguments)).sum(), list(true.parameters()), allow_unused=True)
    assert relative(f, true(*arguments)) <= prox
    assert relative(h, true.hvp(arguments[0], v.double(), arguments[1])) <= second
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours is None or relative(ours, theirs) <= second


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("images", [0, 1, 2, 5])
@pytest.mark.parametrize("hidden", [16, 64])
def test_images_may_go_through_the_first_stage_in_slices(images, hidden, precision, monkeypatch):
    torch.manual_seed(images)
    model = lf.ConvLPN(1, hidden=hidden, strides=(1, 1, 2))
    model.precision = precision
    x, v = torch.rand(images, 1, 12, 9), torch.randn(images, 1, 12, 9)
    results = []
    with lf.use_backend("cpu"):
        for size in (1 << 30, 1):
            monkeypatch.setattr(cpu_maps, "SLICE_BYTES", size)
            model.zero_grad()
            f = model(x)
            (v * f).sum().backward()
            with torch.no_grad():
                results.append([f, model(x), model.hvp(x, v), *[p.grad for p in model.parameters()]])
    for whole, sliced in zip(*results, strict=True):
        assert not images or relative(sliced, whole) <= (1e-6 if precision == "fp32" else 1e-2)
