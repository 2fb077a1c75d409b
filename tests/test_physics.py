"""What holds for every measurement operator, against independent answers; conjugate gradients; bad input."""

import copy

import pytest
import torch
from physics_cases import DEVICES, DOT_TOL, OPERATORS, dense, largest_singular_value, make_blur, randn

from lpn_fast.physics import (
    CompressedSensing,
    Denoising,
    Physics,
    adjoint_mismatch,
    conjugate_gradient,
    operator_norm,
    operator_norm_bound,
    prox_l2_by_cg,
)


class Identity(Physics):
    """An operator that relies on every general method of the base class."""

    def A(self, x):
        return x

    def A_adjoint(self, y):
        return y

    def norm(self):
        return 1.0


@pytest.fixture(params=OPERATORS)
def operator(request):
    """(physics, (H, W)) of every kind."""
    build, size = OPERATORS[request.param]
    return build(), size


# ---------------------------------------------------------------- every operator


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DOT_TOL, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_adjoint_is_matched(operator, channels, dtype, device):
    physics, size = operator
    x = randn(4, channels, *size, dtype=dtype, device=device)
    measured = physics.A(x)
    y = randn(*measured.shape, seed=2, dtype=dtype, device=device)
    assert measured.dtype == dtype and physics.A_adjoint(y).shape == x.shape
    assert (adjoint_mismatch(physics, x, y) <= DOT_TOL[dtype]).all()


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_and_channels_are_independent(operator, batch, channels):
    physics, size = operator
    x = randn(batch, channels, *size)
    y = physics.A(x)
    assert tuple(y.shape) == tuple(physics.measurement_shape(x.shape))
    assert physics.A_adjoint(y).shape == x.shape
    for n in range(batch):
        for c in range(channels):
            alone = physics.A(x[n : n + 1, c : c + 1])
            assert torch.allclose(y[n, c], alone[0, 0], atol=1e-12)
            assert torch.allclose(physics.A_adjoint(y)[n, c], physics.A_adjoint(alone)[0, 0], atol=1e-12)


def test_float32_agrees_with_float64(operator):
    physics, size = operator
    x = randn(2, 1, *size)
    y = physics.A(x)
    assert (physics.A(x.float()) - y).norm() <= 1e-6 * y.norm()
    assert (physics.A_adjoint(y.float()) - physics.A_adjoint(y)).norm() <= 1e-6 * physics.A_adjoint(y).norm()


def test_derivatives_pass_gradcheck(operator):
    physics, size = operator
    x = randn(2, 1, *size).requires_grad_()
    y = randn(*physics.A(x).shape, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(physics.A, x, fast_mode=True)
    assert torch.autograd.gradcheck(physics.A_adjoint, y, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: physics.A(x).square(), x, fast_mode=True)


def test_operators_can_be_differentiated_after_inference_mode(operator):
    physics, size = operator
    with torch.inference_mode():
        physics.A_adjoint(physics.A(torch.zeros(1, 1, *size)))
    x = randn(1, 1, *size, dtype=torch.float32).requires_grad_()
    v = randn(*physics.A(x).shape, dtype=torch.float32, seed=3)
    (gradient,) = torch.autograd.grad((physics.A(x) * v).sum(), x)
    assert torch.allclose(gradient, physics.A_adjoint(v), atol=1e-5)


def test_norm_bounds_the_largest_singular_value(operator):
    physics, size = operator
    assert largest_singular_value(physics, (1, *size)) <= physics.norm() * (1 + 1e-12)


@pytest.mark.parametrize("gamma", [0.1, 3.0, torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)], ids=str)
def test_prox_solves_its_linear_system(operator, gamma):
    physics, size = operator
    _check_prox(physics, size, gamma)


def test_general_prox_solves_its_linear_system():
    _check_prox(Identity(), (6, 7), 0.7)


def _check_prox(physics, size, gamma):
    z = randn(3, 1, *size)
    y = randn(*physics.A(z).shape, seed=2)
    matrix = dense(physics, (1, *size))
    weights = gamma if isinstance(gamma, torch.Tensor) else torch.full((3,), gamma, dtype=torch.float64)
    x = physics.prox_l2(z, y, gamma)
    for n in range(3):
        system = torch.eye(z[n].numel(), dtype=torch.float64) + weights[n] * matrix.T @ matrix
        expected = torch.linalg.solve(system, z[n].flatten() + weights[n] * matrix.T @ y[n].flatten())
        assert torch.allclose(x[n].flatten(), expected, atol=1e-9)
    # and without the matrix: the gradient of the objective is zero
    slope = x - z + weights[:, None, None, None] * physics.A_adjoint(physics.A(x) - y)
    assert slope.abs().max() <= 1e-9


def test_prox_in_float32_is_that_in_float64(operator):
    physics, size = operator
    z = randn(2, 1, *size)
    y = randn(*physics.A(z).shape, seed=2)
    exact = physics.prox_l2(z, y, 0.7)
    assert (physics.prox_l2(z.float(), y.float(), 0.7) - exact).norm() <= 1e-5 * exact.norm()


def test_operators_say_what_they_are_and_can_be_copied(operator):
    physics, size = operator
    x = randn(1, 1, *size)
    assert type(physics).__name__ in repr(physics) and "object at" not in repr(physics)
    assert torch.equal(copy.deepcopy(physics).A(x), physics.A(x))
    assert physics.select(torch.tensor([0])).A(x).equal(physics.A(x))


def test_wrong_shapes_and_types_are_named(operator):
    physics, size = operator
    if isinstance(physics, Denoising):
        pytest.skip("the identity takes images of any shape")
    x = randn(2, 1, *size)
    y = physics.A(x)
    with pytest.raises(ValueError, match=r"x must have shape .*add a batch axis with x\[None\]"):
        physics.A(x[0])
    with pytest.raises(TypeError, match=r"x must be float32 or float64, got torch.float16"):
        physics.A(x.half())
    with pytest.raises(TypeError, match="x must be a tensor, got ndarray"):
        physics.A(x.numpy())
    with pytest.raises(ValueError, match="y must"):
        physics.A_adjoint(y[0])
    with pytest.raises(TypeError, match=r"y must be float32 or float64, got torch.int64"):
        physics.A_adjoint(y.long())
    with pytest.raises(ValueError, match=r"y must have shape \(.*\) for z of shape \(2, 1"):
        physics.prox_l2(x, y[..., :-1], 1.0)
    with pytest.raises(TypeError, match="y must be torch.float64 on cpu as z is, got torch.float32 on cpu"):
        physics.prox_l2(x, y.float(), 1.0)
    for gamma in (-1.0, 0.0, float("nan"), torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="gamma must be positive, got"):
            physics.prox_l2(x, y, gamma)
    with pytest.raises(ValueError, match=r"gamma must be a number or have shape \(2,\), got \(3,\)"):
        physics.prox_l2(x, y, torch.ones(3))


# ---------------------------------------------------------------- norms by iteration


@pytest.mark.parametrize("boundary", ["circular", "full"])
@pytest.mark.parametrize("seed", range(5))
def test_power_iteration_with_its_margin_covers_the_norm(boundary, seed):
    blur = make_blur((3, 3), boundary, seed)
    largest = largest_singular_value(blur, (1, 8, 8))
    assert operator_norm(blur, randn(2, 1, 8, 8), margin=1.0) <= largest * (1 + 1e-12)
    assert largest <= operator_norm(blur, randn(2, 1, 8, 8)) <= 1.06 * largest


@pytest.mark.parametrize("seed", range(5))
def test_probable_bound_is_a_bound_near_the_norm(seed):
    physics = CompressedSensing((12, 11), 1 / 16, seed=seed)
    largest = largest_singular_value(physics, (1, 12, 11))
    bound = operator_norm_bound(physics, (1, 12, 11), seed=seed)
    assert largest <= bound <= 1.08 * largest < physics.norm()


def test_probable_bound_holds_for_any_number_of_steps():
    blur = make_blur((3, 3), "circular")
    largest = largest_singular_value(blur, (1, 8, 8))
    bounds = [operator_norm_bound(blur, (1, 8, 8), max_iter=q) for q in (1, 3, 10, 30, 100)]
    assert all(b >= largest for b in bounds)
    assert bounds == sorted(bounds, reverse=True)


def test_the_zero_operator_has_the_bound_zero():
    class Zero(Identity):
        def A(self, x):
            return 0 * x

    assert operator_norm_bound(Zero(), (1, 4, 4)) == 0


# ---------------------------------------------------------------- conjugate gradients


def make_system():
    """Three samples of very different difficulty."""
    spectrum = torch.stack([torch.ones(30), torch.linspace(1, 3, 30), torch.logspace(0, 4, 30)]).double()
    return lambda x: spectrum[: len(x)] * x, randn(3, 30), spectrum


def test_conjugate_gradients_solve_each_sample_and_count_its_steps():
    apply, b, spectrum = make_system()
    result = conjugate_gradient(apply, b, tol=1e-10, max_iter=300)
    assert result.converged.all()
    assert torch.allclose(result.x, b / spectrum, atol=1e-8)
    assert result.iterations[0] == 1 and result.iterations[0] < result.iterations[1] < result.iterations[2]


def test_a_finished_sample_does_not_change_any_more():
    apply, b, _ = make_system()
    together = conjugate_gradient(apply, b, tol=1e-6, max_iter=300)
    without_the_hard_one = conjugate_gradient(apply, b[:2], tol=1e-6, max_iter=300)
    assert torch.equal(together.x[:2], without_the_hard_one.x)
    assert torch.equal(together.iterations[:2], without_the_hard_one.iterations)


def test_a_nan_stays_in_its_sample():
    apply, b, spectrum = make_system()
    b[1, 4] = torch.nan
    result = conjugate_gradient(apply, b, tol=1e-10, max_iter=300)
    assert result.converged.tolist() == [True, False, True]
    assert torch.allclose(result.x[0::2], (b / spectrum)[0::2], atol=1e-8)


def test_running_out_of_steps_is_reported():
    blur = make_blur((5, 5), "full")
    z = randn(2, 1, 16, 16)
    with pytest.warns(RuntimeWarning, match="2 of 2 samples did not converge in 2 conjugate gradient steps"):
        prox_l2_by_cg(blur, z, blur.A(z) + 1, gamma=100.0, max_iter=2)


def test_a_zero_right_hand_side_has_the_zero_solution():
    result = conjugate_gradient(lambda x: 2 * x, torch.zeros(2, 4))
    assert result.converged.all() and not result.x.any() and not result.residual.any()


# ---------------------------------------------------------------- bad input


def test_arguments_out_of_contract_are_named():
    with pytest.raises(ValueError, match="margin must be at least 1, got 0.9"):
        operator_norm(Denoising(), torch.zeros(1, 2), margin=0.9)
    with pytest.raises(ValueError, match=r"failure_probability must lie in \(0, 1\), got 0"):
        operator_norm_bound(Denoising(), (2,), failure_probability=0)
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        operator_norm_bound(Denoising(), (2,), starts=0)
    with pytest.raises(ValueError, match=r"y must have shape \(2, 3\) for z of shape \(2, 3\), got \(2, 1\)"):
        Denoising().prox_l2(torch.zeros(2, 3), torch.zeros(2, 1), 1.0)
