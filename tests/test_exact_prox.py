"""The promise: f is the gradient of a convex function, hence the proximal operator of R, for any weights."""

import numpy as np
import pytest
import torch
from cases import FAMILIES, TOLERANCE, Case

import lpn_fast as lf

DTYPES = [torch.float64, torch.float32]


def inner(a, b):
    """<a_n, b_n> in float64, (N,)."""
    return (a.double() * b.double()).flatten(1).sum(1)


def length(a):
    return inner(a, a).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_jacobian_is_symmetric_and_positive(name, dtype):
    case = Case(name, dtype)
    hv, hw = (case.model.hvp(case.x, t, case.sigma) for t in (case.v, case.w))
    asymmetry = (inner(case.w, hv) - inner(case.v, hw)).abs()
    scale = length(hv) * length(case.w) + length(hw) * length(case.v)
    assert (asymmetry <= TOLERANCE[dtype]["symmetry"] * scale).all()
    assert (inner(case.v, hv) >= -TOLERANCE[dtype]["symmetry"] * length(case.v) * length(hv)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prox_is_monotone_at_every_distance(name, dtype):
    case = Case(name, dtype)
    eps = torch.finfo(dtype).eps
    for step in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        y = case.x + step * case.v
        df = case.model(case.x, case.sigma).double() - case.model(y, case.sigma).double()
        dx = case.x.double() - y.double()
        slack = 4 * eps * length(case.model(case.x, case.sigma)) * length(dx)
        assert (inner(df, dx) >= -slack).all(), f"at distance {step}"


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_potential_is_convex_on_segments(name):
    case = Case(name)
    ends = [case.model.potential(t, case.sigma) for t in (case.x, case.v)]
    for t in (0.1, 0.37, 0.5, 0.8):
        middle = case.model.potential((1 - t) * case.x + t * case.v, case.sigma)
        chord = (1 - t) * ends[0] + t * ends[1]
        assert (middle <= chord + 1e-12 * chord.abs()).all()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prox_is_conservative(name):
    """Integrals of f along segments are differences of psi, and vanish around triangles."""
    case = Case(name)
    corners = [case.x, case.x + 0.02 * case.v, case.x + 0.02 * case.w]
    total = 0
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        integral = line_integral(lambda x: case.model(x, case.sigma), a, b)
        difference = case.model.potential(b, case.sigma) - case.model.potential(a, case.sigma)
        assert (integral - difference).abs().max() <= 1e-8 * (1 + difference.abs().max())
        total = total + integral
    assert total.abs().max() <= 1e-8


def line_integral(f, a, b, panels=16, order=8):
    """Integral of <f(x), dx> from a_n to b_n, (N,). Panels are shorter than the 1/beta within which f bends."""
    nodes, weights = np.polynomial.legendre.leggauss(order)  # on [-1, 1]
    total = 0
    for panel in range(panels):
        for node, weight in zip(nodes, weights, strict=True):
            place = (panel + (node + 1) / 2) / panels
            total = total + weight / (2 * panels) * inner(f(a + place * (b - a)), b - a)
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_prox_beats_every_competitor(name, dtype):
    """1/2 |f(u) - u|^2 + R(f(u)) <= 1/2 |x - u|^2 + R(x) for x in the range of f, where R is known."""
    case = Case(name, dtype)
    x_star, prior_star = case.model.prox_and_prior(case.x, sigma=case.sigma)
    best = 0.5 * length(x_star - case.x) ** 2 + prior_star
    slack = 20 * torch.finfo(dtype).eps * (1 + length(case.x) ** 2 + prior_star.abs())
    for scale in (1e-3, 0.1, 1.0, 3.0):
        competitor, prior = case.model.prox_and_prior(case.x + scale * case.v, sigma=case.sigma)
        value = 0.5 * length(competitor - case.x) ** 2 + prior
        assert (best <= value + slack).all(), f"beaten at distance {scale}"


@pytest.mark.parametrize(
    "name", ["conv", "conv-odd", "conv-conditional", "conv-mixed", "volume", "volume-conditional", "volume-mixed"]
)
def test_image_borders_keep_the_jacobian_symmetric(name):
    """The full Jacobian, entry by entry, at an odd size: borders included."""
    case = Case(name)
    x, sigma = case.x[:1, :, :7, :5], None if case.sigma is None else case.sigma[:1]
    x = x[..., :5]  # cuts the last axis of volumes
    jacobian = torch.autograd.functional.jacobian(lambda t: case.model(t, sigma), x)
    n = x.numel()
    matrix = jacobian.reshape(n, n)
    assert (matrix - matrix.T).abs().max() <= 1e-12 * matrix.abs().max()
    assert torch.linalg.eigvalsh(matrix).min() >= -1e-12


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 64), (31, 33), (64, 64), (1, 1, 1), (2, 5, 3), (1, 16, 9)])
def test_every_image_size_is_accepted(size):
    x = torch.rand(2, 1, *size)
    assert lf.ConvLPN(1, hidden=4, ndim=len(size))(x).shape == x.shape


def test_circulation_of_a_rotation_is_seen():
    """The check can fail: a rotation field is no gradient, its circulation is twice the enclosed area."""
    a, b, c = (torch.tensor([p], dtype=torch.float64) for p in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    rotate = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    around = sum(line_integral(lambda x: x @ rotate, s, t) for s, t in ((a, b), (b, c), (c, a)))
    assert torch.allclose(around, torch.ones(1, dtype=torch.float64))


def test_uneven_patch_averaging_is_not_a_prox():
    """The check can fail: overlapping patches with unequal counts break symmetry at the borders."""
    case = Case("conv")
    x = case.x[:1, :, :8, :12]

    def patched(t):
        out, count = torch.zeros_like(t), torch.zeros_like(t)
        for left in (0, 4):
            out[..., left : left + 8] = out[..., left : left + 8] + case.model(t[..., left : left + 8])
            count[..., left : left + 8] += 1
        return out / count

    matrix = torch.autograd.functional.jacobian(patched, x).reshape(x.numel(), x.numel())
    assert (matrix - matrix.T).abs().max() > 1e-6 * matrix.abs().max()


def test_any_weight_rounding_is_still_a_prox():
    case = Case("dense")
    for parameter in case.model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())
    hv, hw = (case.model.hvp(case.x, t) for t in (case.v, case.w))
    assert (inner(case.w, hv) - inner(case.v, hw)).abs().max() <= 1e-12
