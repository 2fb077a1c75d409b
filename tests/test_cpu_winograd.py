"""Correlations by minimal filtering against direct ones in float64: values, adjoints, gradients, exactness."""

import pytest
import torch
import torch.nn.functional as F
from cases import on_threads, relative

import lpn_fast as lf
from lpn_fast import _cpu
from lpn_fast.algebra.spec import Stage
from lpn_fast.ops.backends.cpu import winograd

# Adjoints and gradients sum products of the transforms' factors, up to 3.4, with both signs: 1.4e-6 was seen with
# any instruction set. The bound on whole networks is 1e-5.
TRANSPOSED = 2e-6

SIZES = [(1, 1), (1, 3), (5, 6), (8, 8), (13, 9), (16, 17)]


@pytest.fixture(params=[1, 2])
def threads(request):
    with on_threads(request.param):
        yield request.param


def problem(size, stride, channels=16, units=32, images=3):
    torch.manual_seed(size[0] * 100 + size[1])
    out_size = tuple(-(-n // stride) for n in size)
    core = torch.rand(units, channels, 3, 3)
    z = torch.rand(images, channels, *size).contiguous(memory_format=torch.channels_last)
    e = torch.rand(images, units, *out_size).contiguous(memory_format=torch.channels_last)
    return core, z, e, winograd.WinogradCore(core, size, out_size, stride, winograd.Workspace())


def direct(core, z, stride):
    return F.conv2d(z.double(), core.double(), stride=stride, padding=1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "size, channels, units",
    [(size, 16, 32) for size in SIZES] + [((6, 19), *counts) for counts in ((16, 48), (80, 32), (64, 112))],
)
def test_correlation_adjoint_and_gradient_are_the_direct_ones(isa, size, channels, units, stride):
    """Panels half full among them."""
    core, z, e, fast = problem(size, stride, channels, units)
    z64, core64 = z.double().requires_grad_(), core.double().requires_grad_()
    u = direct(core64, z64, stride)
    adjoint, gradient = torch.autograd.grad((u * e.double()).sum(), [z64, core64])
    assert relative(fast.forward(z), u) < 5e-7
    assert relative(fast.adjoint(e), adjoint) < TRANSPOSED
    assert relative(fast.gradient([(e, z), (2 * e, z)]), 3 * gradient) < TRANSPOSED


@pytest.mark.parametrize("stride", [1, 2])
def test_the_adjoint_is_the_transpose_of_the_same_rounded_map(stride):
    core, z, e, fast = problem((13, 18), stride, channels=64, units=64)
    v, w = torch.randn_like(z), torch.randn_like(e)
    left, right = fast.forward(v).double() * w.double(), v.double() * fast.adjoint(w).double()
    assert abs(left.sum() - right.sum()) <= 1e-6 * v.double().norm() * w.double().norm()


@pytest.mark.parametrize("images", [0, 1, 5, 70])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_of_tiles_give_what_single_images_give(images, stride, threads, monkeypatch):
    monkeypatch.setattr(winograd, "PLANE_FLOATS", 0)
    monkeypatch.setattr(winograd, "LEAST_TILES", 7)  # a group ends within an image, and within a pair of rows
    core, z, e, fast = problem((17, 7), stride, images=images)
    u, a, g = fast.forward(z), fast.adjoint(e), fast.gradient([(e, z)])
    assert u.shape == e.shape and a.shape == z.shape and g.shape == core.shape
    assert images or not g.any()
    for n in range(images):
        assert relative(u[n], fast.forward(z[n : n + 1])[0]) < 2e-7
        assert relative(a[n], fast.adjoint(e[n : n + 1])[0]) < 1e-6


@pytest.mark.parametrize("images", [0, 1, 3, 50])
@pytest.mark.parametrize("size", [(14, 14), (5, 20), (3, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_threads_with_planes_of_their_own_give_the_same(isa, images, size, stride, monkeypatch):
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        core, z, e, fast = problem(size, stride, images=images)
        assert fast._own_rows(images, threads)
        results.append((fast.forward(z), fast.adjoint(e)))
    monkeypatch.setattr(winograd, "OWN_FLOATS", 0)
    shared = fast.forward(z), fast.adjoint(e)
    for u, a in results:
        assert torch.equal(u, results[0][0]) and torch.equal(a, results[0][1])
        assert torch.equal(u, shared[0]) and (not images or relative(a, shared[1]) < 5e-7)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels, units", [(16, 48), (80, 32)])
def test_both_packs_hold_the_same_rounded_weights(isa, channels, units, stride):
    *_, fast = problem((4, 4), stride, channels, units)

    def unpacked(panels, columns):
        return panels.permute(0, 2, 1, 3).flatten(2)[..., :columns]  # [planes, rows, columns]

    forward = unpacked(fast.panels(transposed=False).clone(), units)  # [planes, channels, units]
    adjoint = unpacked(fast.panels(transposed=True), channels)  # [planes, units, channels]
    assert torch.equal(forward, adjoint.transpose(1, 2)) and torch.isfinite(forward).all()


def test_two_runs_are_bit_identical(threads):
    _, z, e, fast = problem((21, 22), 2, channels=64, units=48, images=6)
    for function, argument in ((fast.forward, z), (fast.adjoint, e), (fast.gradient, [(e, z)])):
        assert torch.equal(function(argument), function(argument))


def test_memory_of_another_stage_never_reaches_a_gradient():
    core, z, e, fast = problem((5, 5), 1, images=1)
    clean = fast.gradient([(e, z)])
    for which in (0, 1):
        fast.workspace.take(which, (36, 500, 32), z).fill_(torch.nan)
    assert torch.equal(fast.gradient([(e, z)]), clean)
    assert torch.isfinite(fast.forward(z)).all() and torch.isfinite(fast.adjoint(e)).all()


def test_nan_stays_in_its_own_sample():
    _, z, _, fast = problem((9, 9), 1, images=4)
    z[1, 0, 4, 4] = torch.nan
    u = fast.forward(z)
    assert u[1].isnan().any() and torch.isfinite(u[[0, 2, 3]]).all()


def test_rounding_is_smaller_than_that_of_a_direct_float32_sum():
    core, z, _, fast = problem((16, 16), 1, channels=256, units=32, images=1)
    true = direct(core, z, 1)
    plain = F.conv2d(z, core.contiguous(memory_format=torch.channels_last), padding=1)
    assert relative(fast.forward(z), true) <= relative(plain, true) + 1e-7


@pytest.mark.parametrize(
    "change", [{"kernel": 5, "padding": 2}, {"padding": 0}, {"width": 136}, {"width": 16}, {"stride": 3}]
)
def test_other_stages_are_left_to_the_library(change):
    stage = {"width": 128, "kernel": 3, "padding": 1, "stride": 1}
    for isa in _cpu.isas():
        assert winograd.supports(Stage(**stage), 128, (64, 64), isa)
        assert not winograd.supports(Stage(**(stage | change)), 128, (64, 64), isa)


def test_strides_of_two_are_filtered_where_that_was_faster():
    stage = Stage(width=128, kernel=3, padding=1, stride=2)
    assert winograd.supports(stage, 128, (64, 64), "avx2") and not winograd.supports(stage, 128, (64, 64), "avx512")
    assert winograd.supports(stage, 128, (64, 64), "avx512", gradient=True)


def test_few_channels_are_filtered_where_the_planes_stay_in_the_cache():
    stage = Stage(width=32, kernel=3, padding=1, stride=1)
    assert winograd.supports(stage, 32, (14, 14), "avx512") and not winograd.supports(stage, 32, (128, 128), "avx512")


@pytest.mark.parametrize("size", [(16, 16), (11, 13)])
def test_wide_networks_agree_with_float64_and_stay_symmetric(size, isa):
    torch.manual_seed(1)
    model = lf.ConvLPN(1, hidden=128, strides=(1, 2, 1))
    filtered = [winograd.supports(s, 128, size, isa) for s in model.spec.stages[1:]]
    assert filtered == [isa != "avx512", True]  # strides 2 and 1
    x, u, v = torch.rand(2, 1, *size), torch.randn(2, 1, *size), torch.randn(2, 1, *size)
    with lf.use_backend("cpu"):
        f, hu, hv = model(x).detach(), model.hvp(x, u).detach(), model.hvp(x, v).detach()
        gradients = torch.autograd.grad((v * model(x)).sum(), list(model.parameters()), allow_unused=True)
    true = lf.ConvLPN(1, hidden=128, strides=(1, 2, 1)).double()
    true.load_state_dict(model.state_dict())
    expected = torch.autograd.grad((v.double() * true(x.double())).sum(), list(true.parameters()), allow_unused=True)
    assert relative(f, true(x.double())) <= 1e-5
    assert relative(hu, true.hvp(x.double(), u.double())) <= 1e-5
    gap = ((u * hv).flatten(1).sum(1) - (v * hu).flatten(1).sum(1)).abs()
    assert (gap <= 1e-6 * u.flatten(1).norm(dim=1) * hv.flatten(1).norm(dim=1)).all()
    with lf.use_backend("torch"):  # what float32 itself costs: sigma(beta u) of a rounded u, summed with both signs
        plain = torch.autograd.grad((v * model(x)).sum(), list(model.parameters()), allow_unused=True)
    for ours, rounded, theirs in zip(gradients, plain, expected, strict=True):
        assert ours is None or relative(ours, theirs) <= 2 * max(relative(rounded, theirs), 1e-6)
