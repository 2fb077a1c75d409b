"""Measurement operators: adjoints, norms and data proxes against independent answers."""

import pytest
import torch
from scipy.signal import convolve2d

from lpn_fast.physics import (
    Blur,
    Denoising,
    Physics,
    adjoint_mismatch,
    conjugate_gradient,
    operator_norm,
    prox_l2_by_cg,
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
KERNEL_SIZES = [(1, 1), (3, 3), (4, 4), (5, 2), (2, 7)]
IMAGE_SIZES = [(16, 16), (13, 17), (1, 9)]
# Sums of a few hundred terms, normalised by the norms of both factors.
DOT_TOL = {torch.float32: 1e-6, torch.float64: 1e-12}


def make_blur(kernel_size, boundary, seed=0):
    """A blur without any symmetry, so that a flipped or shifted kernel cannot go unnoticed."""
    return Blur(torch.randn(kernel_size, generator=torch.Generator().manual_seed(seed)), boundary)


def randn(*shape, seed=1, dtype=torch.float64, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def dense(physics, image_shape):
    """The matrix of a physics, column by column."""
    basis = torch.eye(torch.Size(image_shape).numel(), dtype=torch.float64).reshape(-1, *image_shape)
    return physics.A(basis).flatten(1).T  # (data, image)


class Identity(Physics):
    """An operator that relies on every general method of the base class."""

    def A(self, x):
        return x

    def A_adjoint(self, y):
        return y

    def norm(self):
        return 1.0


# ---------------------------------------------------------------- adjoint


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DOT_TOL, ids=str)
@pytest.mark.parametrize("boundary", ["circular", "full"])
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
@pytest.mark.parametrize("image_size", IMAGE_SIZES, ids=str)
def test_adjoint_of_blur_is_matched(kernel_size, image_size, boundary, dtype, device):
    blur = make_blur(kernel_size, boundary)
    x = randn(3, 2, *image_size, dtype=dtype, device=device)
    y = randn(*blur.A(x).shape, seed=2, dtype=dtype, device=device)
    assert blur.A_adjoint(y).shape == x.shape
    assert (adjoint_mismatch(blur, x, y) <= DOT_TOL[dtype]).all()


@pytest.mark.parametrize("boundary", ["circular", "full"])
def test_dot_test_sees_an_unflipped_adjoint(boundary):
    blur = make_blur((3, 3), boundary)

    class Unflipped(Blur):
        def A_adjoint(self, y):  # the classical mistake: convolve again where the adjoint correlates
            flipped = Blur(self.kernel.flip(0, 1), self.boundary)
            return flipped.A_adjoint(y)

    x = randn(4, 1, 12, 12)
    y = randn(*blur.A(x).shape, seed=2)
    assert (adjoint_mismatch(Unflipped(blur.kernel, boundary), x, y) > 1e-3).all()


# ---------------------------------------------------------------- the convolution itself


@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
def test_full_blur_is_full_convolution(kernel_size):
    blur, x = make_blur(kernel_size, "full"), randn(2, 2, 13, 17)
    y = blur.A(x)
    for n in range(2):
        for c in range(2):
            expected = torch.from_numpy(convolve2d(x[n, c].numpy(), blur.kernel.numpy(), mode="full"))
            assert torch.allclose(y[n, c], expected, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [*KERNEL_SIZES, (9, 11)], ids=str)
def test_circular_blur_wraps_around_its_centre(kernel_size):
    """(A x)[i] = sum_j k[j] x[i - j + c], written as shifts; (9, 11) is larger than the image."""
    blur, x = make_blur(kernel_size, "circular"), randn(1, 1, 8, 7)
    kh, kw = kernel_size
    expected = sum(
        blur.kernel[a, b] * x.roll((a - kh // 2, b - kw // 2), dims=(2, 3)) for a in range(kh) for b in range(kw)
    )
    assert torch.allclose(blur.A(x), expected, atol=1e-12)


def test_circular_blur_of_a_delta_is_the_kernel_at_its_place():
    blur = make_blur((3, 3), "circular")
    delta = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    delta[0, 0, 4, 4] = 1
    assert torch.allclose(blur.A(delta)[0, 0, 3:6, 3:6], blur.kernel, atol=1e-14)


@pytest.mark.parametrize(("sigma", "side"), [(0.5, 5), (1.0, 5), (2.0, 7), (3.0, 9), (4.0, 13)])
def test_gaussian_has_the_published_size_and_unit_sum(sigma, side):
    kernel = Blur.gaussian(sigma).kernel
    assert kernel.shape == (side, side)
    assert kernel.sum().item() == pytest.approx(1)
    assert torch.allclose(kernel, kernel.flip(0, 1)) and kernel.argmax() == kernel.numel() // 2
    assert (kernel[side // 2, side // 2 + 1] / kernel.max()).log().item() == pytest.approx(-0.5 / sigma**2)


def test_blur_can_be_differentiated_after_inference_mode():
    blur = Blur.gaussian(1.0)
    with torch.inference_mode():
        blur.A(torch.zeros(1, 1, 8, 8))
    x, v = (
        randn(1, 1, 8, 8, dtype=torch.float32).requires_grad_(),
        randn(1, 1, 8, 8, dtype=torch.float32, seed=3),
    )
    (gradient,) = torch.autograd.grad((blur.A(x) * v).sum(), x)
    assert torch.allclose(gradient, blur.A_adjoint(v), atol=1e-6)


# ---------------------------------------------------------------- norm


@pytest.mark.parametrize("boundary", ["circular", "full"])
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
def test_norm_bounds_the_largest_singular_value(kernel_size, boundary):
    blur = make_blur(kernel_size, boundary)
    largest = torch.linalg.matrix_norm(dense(blur, (1, 6, 7)), ord=2).item()
    assert largest <= blur.norm() * (1 + 1e-12)


def test_norm_of_a_positive_circular_blur_is_attained():
    blur = Blur.gaussian(1.5)
    largest = torch.linalg.matrix_norm(dense(blur, (1, 8, 9)), ord=2).item()
    assert largest == pytest.approx(blur.norm(), rel=1e-12)


@pytest.mark.parametrize("boundary", ["circular", "full"])
@pytest.mark.parametrize("seed", range(5))
def test_power_iteration_with_its_margin_covers_the_norm(boundary, seed):
    blur = make_blur((3, 3), boundary, seed)
    x = randn(2, 1, 8, 8)
    largest = torch.linalg.matrix_norm(dense(blur, (1, 8, 8)), ord=2).item()
    assert operator_norm(blur, x, margin=1.0) <= largest * (1 + 1e-12)
    assert largest <= operator_norm(blur, x) <= 1.06 * largest


# ---------------------------------------------------------------- data prox


@pytest.mark.parametrize("physics", [make_blur((3, 4), "circular"), make_blur((3, 4), "full"), Denoising(), Identity()])
@pytest.mark.parametrize("gamma", [0.1, 3.0, torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)], ids=str)
def test_prox_solves_its_linear_system(physics, gamma):
    z = randn(3, 1, 6, 7)
    y = randn(*physics.A(z).shape, seed=2)
    matrix = dense(physics, (1, 6, 7))
    weights = gamma if isinstance(gamma, torch.Tensor) else torch.full((3,), gamma, dtype=torch.float64)
    x = physics.prox_l2(z, y, gamma)
    for n in range(3):
        system = torch.eye(42, dtype=torch.float64) + weights[n] * matrix.T @ matrix
        expected = torch.linalg.solve(system, z[n].flatten() + weights[n] * matrix.T @ y[n].flatten())
        assert torch.allclose(x[n].flatten(), expected, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("image_size", [(16, 16), (13, 17)], ids=str)
def test_closed_form_prox_is_that_of_conjugate_gradients(image_size, dtype, tolerance):
    blur = make_blur((5, 4), "circular")
    z, y = randn(2, 3, *image_size, dtype=dtype), randn(2, 3, *image_size, dtype=dtype, seed=2)
    closed, iterated = blur.prox_l2(z, y, 0.7), prox_l2_by_cg(blur, z, y, 0.7, max_iter=400)
    assert torch.linalg.vector_norm(closed - iterated) <= tolerance * torch.linalg.vector_norm(closed)


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
    with pytest.warns(RuntimeWarning, match="2 of 2 samples have relative residual"):
        prox_l2_by_cg(blur, z, blur.A(z) + 1, gamma=100.0, max_iter=2)


def test_a_zero_right_hand_side_has_the_zero_solution():
    result = conjugate_gradient(lambda x: 2 * x, torch.zeros(2, 4))
    assert result.converged.all() and not result.x.any() and not result.residual.any()


# ---------------------------------------------------------------- bad input


def test_arguments_out_of_contract_are_named():
    with pytest.raises(ValueError, match=r"kernel must have shape \(kh, kw\), got \(3,\)"):
        Blur(torch.ones(3))
    with pytest.raises(ValueError, match="kernel must be finite"):
        Blur(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match="boundary must be 'circular' or 'full', got 'valid'"):
        Blur(torch.ones(3, 3), boundary="valid")
    with pytest.raises(ValueError, match="sigma must be positive, got -1"):
        Blur.gaussian(-1)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Blur.gaussian(1.0, size=0)
    with pytest.raises(ValueError, match="margin must be at least 1, got 0.9"):
        operator_norm(Denoising(), torch.zeros(1, 2), margin=0.9)


def test_images_out_of_contract_are_named():
    circular, full = make_blur((3, 3), "circular"), make_blur((3, 3), "full")
    image = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\), got \(1, 8, 8\); add a batch axis"):
        circular.A(image[0])
    with pytest.raises(TypeError, match=r"x must be float32 or float64, got torch.float16"):
        circular.A(image.half())
    with pytest.raises(ValueError, match="y must be at least as large as the 3 x 3 kernel"):
        full.A_adjoint(image[..., :2])
    with pytest.raises(ValueError, match=r"y must have shape \(2, 1, 10, 10\) for z"):
        full.prox_l2(image, image, 1.0)
    for gamma in (-1.0, float("nan"), torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="gamma must be positive, got"):
            circular.prox_l2(image, image, gamma)
    with pytest.raises(ValueError, match=r"gamma must be a number or have shape \(2,\), got \(3,\)"):
        Denoising().prox_l2(image, image, torch.ones(3))


def test_many_image_sizes_do_not_fill_the_memory():
    blur = Blur.gaussian(1.0)
    for side in range(5, 40):
        blur.A(torch.zeros(1, 1, side, side))
    assert len(blur._transfers) <= 8
