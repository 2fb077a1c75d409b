"""The prior: inverses, values and proxes of adjustable strength, against closed forms, brute force and scipy."""

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.ops.solve import EQUATION_METHODS, Equation, Verdict, linear
from lpn_fast.ops.solve.linear import conjugate_gradient

# the fixed-point iteration is for well-conditioned equations, and has tests of its own in test_prior_fixed_point.py
EVERY_METHOD = pytest.mark.parametrize("method", [name for name in EQUATION_METHODS if name != "fixed-point"])
BETA = 10.0

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")


def make_sigmoid(alpha=0.0, dim=1):
    """f(u) = sigmoid(beta u) + alpha u, per coordinate, so that for alpha = 0 everything is known:

    range (0, 1),  f^-1(x) = log(x / (1 - x)) / beta,  R(x) = (x log x + (1 - x) log(1 - x)) / beta - x^2 / 2.
    R'' = 1 / (beta x (1 - x)) - 1 is negative around 1/2 for beta > 4.
    """
    model = lf.LPN(Spec("dense", dim, (Stage(dim, heads=("linear",)),), BETA, alpha)).double()
    with torch.no_grad():
        model.stages[0].skip.copy_(torch.eye(dim))
        model.stages[0].bias.zero_()
        model.stages[0].head.fill_(1.0)
    return model.requires_grad_(False)


def make_mlp(dtype=torch.float64):
    return lf.MLPLPN(3, hidden=12, layers=2, alpha=0.1).to(dtype)


def make_conv(alpha=1e-2, dtype=torch.float64, **options):
    return lf.ConvLPN(1, hidden=6, strides=(1, 2), beta=20.0, alpha=alpha, squared_head=True, **options).to(dtype)


def logit(x):
    return torch.log(x / (1 - x)) / BETA


def entropy_prior(x):
    return (x * x.log() + (1 - x) * (1 - x).log()) / BETA - x * x / 2


# ---- inversion


@EVERY_METHOD
def test_inverse_of_a_sigmoid_is_the_logit(method):
    x = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None]
    result = lf.invert(make_sigmoid(), x, method=method, tol=1e-11)
    assert result.converged.all() and result.error_bound is None
    assert torch.allclose(result.preimage, logit(x), atol=1e-8)


@EVERY_METHOD
@pytest.mark.parametrize("make", [make_mlp, make_conv])
def test_inverse_undoes_the_network(make, method):
    model = make(dtype=torch.float32)
    u = torch.randn(6, 3) if model.spec.is_dense else torch.rand(6, 1, 9, 14)
    x = model(u).detach()
    result = lf.invert(model, x, method=method)
    residual = (model(result.preimage) - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert result.converged.all()
    assert torch.allclose(residual.double(), result.residual, rtol=0.1, atol=1e-6) and (residual <= 1.2e-5).all()
    distance = (result.preimage - u).flatten(1).norm(dim=1)
    assert (distance <= 1.1 * result.error_bound + 1e-5).all()


def test_inverse_agrees_with_scipy():
    model = make_conv()
    x = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    packed = model.packed().detach()

    def phi(flat):
        u = torch.from_numpy(flat).reshape(x.shape)
        psi = reference.potential(model.spec, u, packed)[0]
        return float(psi - (u * x).sum()), (reference.prox(model.spec, u, packed) - x).flatten().numpy()

    theirs = scipy.optimize.minimize(phi, x.flatten().numpy(), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    ours = lf.invert(model, x, tol=1e-11).preimage.detach().flatten().numpy()
    assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()


@EVERY_METHOD
def test_companions_do_not_change_a_sample(method):
    model = make_conv()
    x = torch.rand(5, 1, 10, 10, dtype=torch.float64)
    x[3] *= 30  # a companion that takes longer
    together = lf.invert(model, x, method=method, tol=1e-9).preimage
    alone = torch.cat([lf.invert(model, x[i : i + 1], method=method, tol=1e-9).preimage for i in range(5)])
    assert ((together - alone).abs() <= 1e-6 * alone.abs().amax(dim=(1, 2, 3), keepdim=True)).all()


def test_one_hard_sample_among_500_easy_ones(monkeypatch):
    evaluated = []
    at = Equation.at
    monkeypatch.setattr(Equation, "at", lambda self, u: evaluated.append(len(u)) or at(self, u))
    model = make_sigmoid()
    x = 0.5 + 0.01 * torch.rand(501, 1, dtype=torch.float64)
    x[77] = 1 - 1e-10  # f' is 1e-9 there
    result = lf.invert(model, x, tol=1e-13)
    assert result.converged.all()
    assert result.preimage[77, 0] == pytest.approx(float(logit(x[77])), rel=1e-4)
    easy = torch.arange(501) != 77
    assert result.iterations[77] > 2 * result.iterations[easy].max()
    assert sum(evaluated) < 2 * float(result.iterations[easy].sum() + 501)  # the easy ones were let go


@EVERY_METHOD
@pytest.mark.parametrize("x", [-0.5, 1.5, 40.0])
def test_points_outside_the_range_are_found_out(method, x):
    batch = torch.tensor([[0.3], [x], [0.6]], dtype=torch.float64)
    result = lf.invert(make_sigmoid(), batch, method=method)
    assert result.converged.tolist() == [True, False, True]
    assert result.verdict[1] in (Verdict.OUTSIDE, Verdict.STALLED)
    if method != "gradient":
        assert result.verdict[1] == Verdict.OUTSIDE
        assert result.iterations[1] < 30
    assert "2 converged" in str(result)


@EVERY_METHOD
def test_outside_is_claimed_only_where_it_is_true(method):
    """alpha > 0: every x has a preimage, here 2000 from x, however far the claim is allowed to reach."""
    model, x = make_sigmoid(alpha=1e-3), torch.tensor([[3.0], [-2.0]], dtype=torch.float64)
    distance, claims = torch.tensor([1997.0, 1998.0], dtype=torch.float64), 0
    for radius in (1.0, 10.0, 600.0, 700.0, 1e4):
        result = lf.invert(model, x, method=method, radius=radius, tol=1e-9)
        claimed = result.verdict == Verdict.OUTSIDE
        assert (distance[claimed] > radius * x[claimed, 0].abs()).all()
        assert torch.allclose(result.preimage[result.converged].abs(), torch.tensor(2000.0).double(), rtol=1e-5)
        claims += int(claimed.sum())
    assert claims > 0
    assert result.converged.all()


def test_the_inverse_at_zero_may_be_far_from_zero():
    """f(u) = sigmoid(10 (u - 1)) - sigmoid(-9.9): the preimage of 1e-9 is near 0.01, ten million times larger."""
    model = lf.LPN(Spec("dense", 1, (Stage(1, heads=("linear",)),), BETA, linear=True)).double()
    with torch.no_grad():
        model.stages[0].skip.fill_(1.0)
        model.stages[0].bias.fill_(-1.0)
        model.stages[0].head.fill_(1.0)
        model.linear.fill_(-torch.sigmoid(torch.tensor(-9.9, dtype=torch.float64)))
    x = torch.tensor([[1e-9]], dtype=torch.float64)
    result = lf.invert(model, x)
    assert result.converged.all() and result.preimage.item() == pytest.approx(0.01, abs=1e-3)


def test_a_start_far_outside_the_radius_proves_nothing():
    x = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    model = make_sigmoid(alpha=0.1)
    far = lf.invert(model, x, x0=1e6 * torch.ones_like(x), radius=100.0, tol=1e-9)
    assert far.converged.all() and torch.allclose(far.preimage, lf.invert(model, x, tol=1e-9).preimage, rtol=1e-6)


@EVERY_METHOD
def test_nan_and_infinity_stay_with_their_sample(method):
    model = make_mlp()
    x = model(torch.randn(4, 3, dtype=torch.float64)).detach()
    clean = lf.invert(model, x, method=method)
    x[1, 0], x[2, 2] = math.nan, math.inf
    result = lf.invert(model, x, method=method)
    assert result.verdict.tolist() == [Verdict.CONVERGED, Verdict.INVALID, Verdict.INVALID, Verdict.CONVERGED]
    assert torch.allclose(result.preimage[[0, 3]], clean.preimage[[0, 3]], rtol=1e-6)
    assert not lf.prior(model, x, method=method).value[1:3].isfinite().any()


def test_float32_stalls_at_its_floor_and_float64_goes_on():
    model = make_mlp(dtype=torch.float32)
    x = model(torch.randn(20, 3)).detach()
    rough = lf.invert(model, x, tol=1e-12, homotopy=False)
    assert (rough.verdict == Verdict.STALLED).any() and not (rough.verdict == Verdict.ITERATIONS).any()
    assert (rough.residual < 1e-6).all()
    fine = lf.invert(model, x, tol=1e-12, dtype=torch.float64)
    assert fine.converged.all() and fine.preimage.dtype == torch.float64
    exact = model.double()(fine.preimage)
    assert ((exact - x).norm(dim=1) / x.norm(dim=1) <= 1.1e-12).all()


def test_homotopy_rescues_samples_that_fail():
    model, x = make_sigmoid(), torch.tensor([[0.999], [0.5]], dtype=torch.float64)
    short = {"method": "newton-cg", "max_iter": 3, "tol": 1e-8, "x0": torch.full((2, 1), -1.5, dtype=torch.float64)}
    assert not lf.invert(model, x, homotopy=False, **short).converged.all()
    assert lf.invert(model, x, homotopy=True, **short | {"max_iter": 9}).converged.all()


def test_a_warm_start_at_the_solution_takes_no_step():
    model = make_conv()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    first = lf.invert(model, x)
    again = lf.invert(model, x, x0=first.preimage)
    assert (again.iterations == 0).all() and torch.equal(again.preimage, first.preimage)


def test_chunks_and_empty_batches():
    model = make_conv()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    whole, pieces = lf.prior(model, x, tol=1e-9), lf.prior(model, x, tol=1e-9, batch_size=2)
    assert torch.allclose(whole.value, pieces.value, rtol=1e-9)
    assert lf.prior(model, x[:0]).value.shape == (0,)


def test_noise_conditional_networks_are_inverted_at_their_own_level():
    model = make_conv(sigma_conditional=(0.01, 0.1))
    with torch.no_grad():
        for stage in model.stages:
            stage.noise.normal_(std=0.3)
    sigma = torch.tensor([0.01, 0.03, 0.1], dtype=torch.float64)
    x = model(torch.rand(3, 1, 8, 8, dtype=torch.float64), sigma).detach()
    result = lf.invert(model, x, sigma=sigma, batch_size=2)
    assert torch.allclose(model(result.preimage, sigma), x, atol=1e-4)
    z = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    one_by_one = [model.prox(z[i : i + 1], 0.4, sigma=float(sigma[i])) for i in range(3)]
    assert torch.allclose(model.prox(z, 0.4, sigma=sigma), torch.cat(one_by_one), atol=1e-9)


@pytest.mark.parametrize(
    "bad",
    [{"method": "adam"}, {"tol": 0.0}, {"radius": -1}, {"max_iter": 0}, {"batch_size": 1.5}, {"dtype": torch.half}],
)
def test_wrong_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        lf.invert(make_mlp(), torch.zeros(2, 3, dtype=torch.float64), **bad)
    with pytest.raises(ValueError, match="x0"):
        lf.invert(make_mlp(), torch.zeros(2, 3, dtype=torch.float64), x0=torch.zeros(1, 3))


# ---- values


def test_prior_of_a_sigmoid_is_the_entropy():
    x = torch.linspace(0.03, 0.97, 40, dtype=torch.float64).view(10, 4)
    result = lf.prior(make_sigmoid(dim=4), x, tol=1e-8)
    assert torch.allclose(result.value, entropy_prior(x).sum(1), atol=1e-13)
    assert torch.allclose(result.gradient, logit(x) - x, atol=1e-6)


def test_value_is_a_lower_bound_within_its_certificate():
    model = make_conv()
    x, free = model.prox_and_prior(torch.rand(6, 1, 10, 10, dtype=torch.float64))
    for tol in (1e-1, 1e-2, 1e-4):
        result = lf.prior(model, x, tol=tol, x0=torch.zeros_like(x))
        missing = free - result.value
        assert (missing >= -1e-12 * free.abs()).all() and (missing <= result.value_bound + 1e-12 * free.abs()).all()
        distance = (model(result.preimage) - x).flatten(1).norm(dim=1)
        assert torch.allclose(result.residual, distance / x.flatten(1).norm(dim=1), rtol=1e-9)


def test_value_in_float32_is_accumulated_in_float64():
    model = make_conv(dtype=torch.float32)
    x = model(torch.rand(2, 1, 48, 48)).detach()
    value = lf.prior(model, x, tol=3e-6).value
    exact = lf.prior(model.double(), x.double(), tol=1e-12).value
    assert value.dtype == torch.float64
    assert torch.allclose(value, exact, rtol=1e-8)


def test_envelope_is_the_minimum_over_all_points():
    model = make_sigmoid()
    u = torch.linspace(-0.8, 0.9, 13, dtype=torch.float64)[:, None]
    grid = torch.linspace(1e-5, 1 - 1e-5, 20001, dtype=torch.float64)[None]
    brute = (0.5 * (grid - u) ** 2 + entropy_prior(grid)).min(dim=1).values
    envelope = lf.moreau_envelope(model, u)
    assert torch.allclose(envelope.value, brute, atol=1e-6)
    assert torch.allclose(envelope.gradient, u - model(u))


def test_envelope_is_taken_at_the_noise_level_of_each_sample():
    model, sigma = make_conv(sigma_conditional=True), torch.tensor([0.02, 0.2], dtype=torch.float64)
    u = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    value, gradient = lf.moreau_envelope(model, u, sigma=sigma)
    for n, level in enumerate(sigma):
        psi, f = model.potential_and_prox(u[n : n + 1], level)
        assert torch.allclose(gradient[n], u[n] - f[0], rtol=1e-10)
        assert torch.allclose(value[n], 0.5 * u[n].square().sum() - psi[0], rtol=1e-10)


# ---- strength


@pytest.mark.parametrize("t", [1.0, 0.7, 0.3, 0.1])
def test_prox_of_strength_minimises_by_brute_force_even_where_R_is_not_convex(t):
    z = torch.linspace(-0.5, 1.5, 41, dtype=torch.float64)[:, None]
    grid = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)[None]
    prior = entropy_prior(grid)
    assert (prior[:, 2:] - 2 * prior[:, 1:-1] + prior[:, :-2]).min() < 0  # R is not convex
    brute = torch.stack([grid[0, (0.5 * (grid[0] - p) ** 2 + t * prior[0]).argmin()] for p in z])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every sample converges, z = 0 too
        x, value = make_sigmoid().prox_and_prior(z, strength=t)
    assert (x - brute).abs().max() <= 1e-5
    assert torch.allclose(value, entropy_prior(x.clamp(1e-12, 1 - 1e-12))[:, 0], atol=1e-9)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
def test_prox_of_strength_keeps_to_its_tolerance_and_its_error_to_the_bound(tol):
    """|t u + (1 - t) f(u) - z| <= tol max(|z|, |f(z)|), and u is off by at most that residual over t."""
    model, z = make_conv(), torch.rand(32, 1, 9, 9, dtype=torch.float64)
    t = torch.linspace(0.02, 0.98, 32, dtype=torch.float64)
    *_, u = model.prox_and_prior(z, t, tol=tol, return_preimage=True)
    *_, exact = model.prox_and_prior(z, t, tol=1e-13, return_preimage=True)
    weight = t.view(-1, 1, 1, 1)
    residual = (weight * u + (1 - weight) * model(u) - z).flatten(1).norm(dim=1)
    scale = torch.maximum(z.flatten(1).norm(dim=1), model(z).flatten(1).norm(dim=1))
    assert (residual <= tol * scale * (1 + 1e-9)).all()
    assert ((u - exact).flatten(1).norm(dim=1) <= residual / t + 1e-10).all()


def test_every_sample_has_its_own_strength():
    model = make_conv()
    z = torch.rand(4, 1, 9, 9, dtype=torch.float64)
    t = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    together = model.prox(z, strength=t)
    alone = torch.cat([model.prox(z[i : i + 1], strength=float(t[i])) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-9)
    assert torch.allclose(together[0], model(z)[0], atol=1e-12)
    assert (together[3] - z[3]).norm() < (together[1] - z[1]).norm()


@pytest.mark.parametrize("t", [0.0, -0.5, 1.01, math.nan, torch.tensor([0.5, 1.5]), torch.tensor([0.5, 0.5, 0.5])])
def test_strength_outside_its_interval_is_refused(t):
    with pytest.raises(ValueError, match="strength"):
        make_mlp().prox(torch.zeros(2, 3, dtype=torch.float64), strength=t)


def test_prox_of_nan_is_nan_and_short_of_steps_warns():
    model, z = make_mlp(), torch.randn(3, 3, dtype=torch.float64)
    z[1] = math.nan
    assert model.prox(z, 0.5).isfinite().all(1).tolist() == [True, False, True]
    with pytest.warns(RuntimeWarning, match="2 of 3 samples"):
        model.prox(z, 0.01, max_iter=1)


# ---- gradients


def test_prox_has_the_gradients_of_the_implicit_function():
    model = make_mlp()
    z = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: model.prox(z, t), (z, t), atol=1e-6)

    names, values = zip(*model.named_parameters(), strict=True)
    values = tuple((v.detach().abs() + 0.01).requires_grad_() for v in values)  # away from the projection's kink

    class Prox(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, z):
            return self.inner.prox(z, t.detach())

    def at(*weights):
        renamed = {f"inner.{name}": w for name, w in zip(names, weights, strict=True)}
        return torch.func.functional_call(Prox(), renamed, (z.detach(),))

    assert torch.autograd.gradcheck(at, values, atol=1e-5, fast_mode=True)


@EVERY_METHOD
def test_preimage_and_prior_have_their_gradients(method):
    model = make_conv().requires_grad_(False)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    options = {"method": method, "tol": 1e-13}
    assert torch.autograd.gradcheck(lambda x: lf.invert(model, x, **options).preimage, x, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: lf.prior(model, x, **options).value, x, atol=1e-6, fast_mode=True)
    result = lf.prior(model, x, **options)
    (slope,) = torch.autograd.grad(result.value.sum(), x, retain_graph=True)
    assert torch.allclose(slope, result.gradient)


def test_second_derivatives_of_the_value_are_refused_not_wrong():
    model = make_mlp()
    x = model(torch.randn(2, 3, dtype=torch.float64)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(lf.prior(model, x).value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(slope.sum(), x)


def test_prior_has_the_gradient_of_its_parameters():
    model = make_mlp()
    x = model(torch.randn(4, 3, dtype=torch.float64)).detach()
    weight, step = model.stages[1].bias, 1e-6
    (slope,) = torch.autograd.grad(lf.prior(model, x, tol=1e-12).value.sum(), weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0] += sign * step
        values.append(lf.prior(model, x, tol=1e-12).value.sum().item())
        with torch.no_grad():
            weight[0] -= sign * step
    assert slope[0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_no_graph_is_kept_where_none_is_required():
    model = make_mlp().requires_grad_(False)
    x = torch.randn(2, 3, dtype=torch.float64)
    assert not lf.invert(model, x).preimage.requires_grad and not model.prox(x, 0.5).requires_grad


# ---- linear systems


class Dense:
    """v -> M v with a matrix per sample."""

    def __init__(self, matrices):
        self.matrices = matrices

    def __call__(self, v):
        return torch.einsum("nij,nj->ni", self.matrices, v)

    def select(self, rows):
        return Dense(self.matrices[rows])


def test_conjugate_gradients_solve_every_system_and_drop_the_finished():
    a = torch.randn(40, 12, 12, dtype=torch.float64)
    matrices = a @ a.mT + torch.logspace(-3, 2, 40, dtype=torch.float64)[:, None, None] * torch.eye(12)
    b = torch.randn(40, 12, dtype=torch.float64)
    b[5] = 0
    sizes = []
    x = conjugate_gradient(Dense(matrices), b, 1e-12, 400, observe=sizes.append)
    assert torch.allclose(x, torch.linalg.solve(matrices, b), rtol=1e-6, atol=1e-8)
    assert sizes[0] == 40 and sizes[-1] < linear.COMPACT_FRACTION * 40
