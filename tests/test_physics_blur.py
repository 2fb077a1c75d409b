"""Blur: the convolution itself at every boundary, kernels, per-sample kernels, norms, closed-form prox."""

import numpy as np
import pytest
import torch
from physics_cases import DEVICES, DOT_TOL, dense, largest_singular_value, make_blur, randn
from PIL import Image
from scipy.ndimage import convolve
from scipy.signal import convolve2d

from lpn_fast.physics import Blur, adjoint_mismatch, load_kernels, prox_l2_by_cg, shake_kernel
from lpn_fast.physics.boundaries import fold, reflect

BOUNDARIES = ["circular", "reflective", "full", "valid"]
KERNEL_SIZES = [(1, 1), (3, 3), (4, 4), (5, 2), (2, 7)]
IMAGE_SIZES = [(16, 16), (13, 17), (5, 9)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DOT_TOL, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
@pytest.mark.parametrize("image_size", IMAGE_SIZES, ids=str)
def test_adjoint_of_blur_is_matched(kernel_size, image_size, boundary, dtype, device):
    blur = make_blur(kernel_size, boundary)
    x = randn(3, 2, *image_size, dtype=dtype, device=device)
    y = randn(*blur.A(x).shape, seed=2, dtype=dtype, device=device)
    assert blur.A_adjoint(y).shape == x.shape
    assert (adjoint_mismatch(blur, x, y) <= DOT_TOL[dtype]).all()


@pytest.mark.parametrize("boundary", BOUNDARIES)
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


@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
@pytest.mark.parametrize("size", [(13, 17), (4, 4)], ids=str)
def test_reflective_blur_is_scipy_convolution_with_reflection(kernel_size, size):
    blur, x = make_blur(kernel_size, "reflective"), randn(2, 1, *size)
    for n in range(2):
        expected = convolve(x[n, 0].numpy(), blur.kernel.numpy(), mode="reflect")
        assert torch.allclose(blur.A(x)[n, 0], torch.from_numpy(expected), atol=1e-12)


@pytest.mark.parametrize("kernel_size", [*KERNEL_SIZES, (9, 11)], ids=str)
def test_circular_blur_wraps_around_its_centre(kernel_size):
    """(A x)[i] = sum_j k[j] x[i - j + c], written as shifts; (9, 11) is larger than the image."""
    blur, x = make_blur(kernel_size, "circular"), randn(1, 1, 8, 7)
    kh, kw = kernel_size
    expected = sum(
        blur.kernel[a, b] * x.roll((a - kh // 2, b - kw // 2), dims=(2, 3)) for a in range(kh) for b in range(kw)
    )
    assert torch.allclose(blur.A(x), expected, atol=1e-12)


@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
def test_valid_blur_is_the_frame_of_a_larger_scene(kernel_size):
    """scipy's valid convolution, and, cropped to the same place, what every other boundary has in the middle."""
    blur, x = make_blur(kernel_size, "valid"), randn(2, 2, 13, 17)
    y = blur.A(x)
    expected = torch.from_numpy(convolve2d(x[1, 0].numpy(), blur.kernel.numpy(), mode="valid"))
    assert torch.allclose(y[1, 0], expected, atol=1e-12)
    assert torch.allclose(blur.crop(make_blur(kernel_size, "circular").A(x)), y, atol=1e-12)
    assert blur.crop(x).shape == y.shape and make_blur(kernel_size, "full").crop(x) is x


def test_the_start_of_a_valid_blur_continues_the_border():
    blur = Blur.gaussian(1.0, "valid")
    y = torch.arange(20.0)[None, None, None].expand(1, 1, 12, 20)
    start = blur.start(y)
    assert start.shape == (1, 1, 20, 28) and torch.equal(blur.crop(start), y)
    assert (start[..., :4] == 0).all() and (start[..., -4:] == 19).all()


@pytest.mark.parametrize("boundary", ["circular", "reflective"])
def test_blur_of_a_delta_is_the_kernel_at_its_place(boundary):
    blur = make_blur((3, 3), boundary)
    delta = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    delta[0, 0, 4, 4] = 1
    assert torch.allclose(blur.A(delta)[0, 0, 3:6, 3:6], blur.kernel, atol=1e-14)


def test_reflection_keeps_constants_and_its_transpose_folds():
    blur = Blur.gaussian(2.0, "reflective")
    assert torch.allclose(blur.A(torch.ones(1, 1, 8, 9).double()), torch.ones(1, 1, 8, 9).double(), atol=1e-12)
    x = torch.arange(3.0).reshape(1, 3)
    assert reflect(x, (0, 2), (1, 3)).tolist() == [[1, 0, 0, 1, 2, 2, 1, 0], [1, 0, 0, 1, 2, 2, 1, 0]]
    assert fold(torch.ones(2, 8), (0, 2), (1, 3)).tolist() == [[2 * 3, 2 * 3, 2 * 2]]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_per_sample_kernels_blur_each_sample_alone(boundary):
    kernels = randn(3, 5, 4)
    together = Blur(kernels, boundary)
    x = randn(3, 2, 9, 8)
    y, z = together.A(x), randn(3, 2, 9, 8, seed=7)
    prox = together.prox_l2(z, y, 0.7)
    for n in range(3):
        alone = Blur(kernels[n], boundary)
        assert torch.allclose(y[n : n + 1], alone.A(x[n : n + 1]), atol=1e-12)
        assert torch.allclose(together.A_adjoint(y)[n : n + 1], alone.A_adjoint(y[n : n + 1]), atol=1e-12)
        assert torch.allclose(prox[n : n + 1], alone.prox_l2(z[n : n + 1], y[n : n + 1], 0.7), atol=1e-9)
        assert alone.norm() <= together.norm()
    assert (adjoint_mismatch(together, x, randn(*y.shape, seed=2)) <= 1e-12).all()
    for some in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        assert torch.allclose(together.select(some).A(x[some]), y[some], atol=1e-12)


def test_blur_of_another_number_of_samples_than_kernels_is_refused():
    blur = Blur(randn(3, 5, 5))
    for method in (blur.A, blur.A_adjoint, lambda x: blur.prox_l2(x, x, 1.0)):
        with pytest.raises(ValueError, match=r"must hold 3 samples, one per kernel, got \(2, 1, 8, 8\)"):
            method(torch.zeros(2, 1, 8, 8))


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize(("sigma", "side"), [(0.5, 5), (1.0, 5), (2.0, 7), (3.0, 9), (4.0, 13)])
def test_gaussian_has_the_published_size_and_unit_sum(sigma, side):
    kernel = Blur.gaussian(sigma, size="published").kernel
    assert kernel.shape == (side, side)
    assert kernel.sum().item() == pytest.approx(1)
    assert torch.allclose(kernel, kernel.flip(0, 1)) and kernel.argmax() == kernel.numel() // 2
    assert (kernel[side // 2, side // 2 + 1] / kernel.max()).log().item() == pytest.approx(-0.5 / sigma**2)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.6, 5.0])
def test_a_gaussian_is_as_wide_as_asked(sigma):
    """Its second moment: the published cut-off of 1.6 pixels leaves 1.22."""
    kernel = Blur.gaussian(sigma).kernel
    offsets = torch.arange(len(kernel)) - len(kernel) // 2
    width = (kernel.sum(1) * offsets**2).sum().sqrt().item()
    assert width == pytest.approx(sigma, rel=0.002 if sigma >= 1 else 0.02)
    cut = Blur.gaussian(1.6, size="published").kernel
    assert (cut.sum(1) * (torch.arange(5) - 2) ** 2).sum().sqrt().item() == pytest.approx(1.22, abs=0.01)


def test_a_kernel_that_scales_images_is_noticed():
    with pytest.warns(UserWarning, match="kernel sums to 9, not 1"):
        Blur(torch.ones(3, 3))


@pytest.mark.parametrize("side", [3, 8, 15])
def test_shakes_are_centred_paths_of_unit_sum(side):
    generator = torch.Generator().manual_seed(0)
    shakes = torch.stack([shake_kernel(side, generator) for _ in range(50)])
    assert (shakes >= 0).all() and torch.allclose(shakes.sum((1, 2)), torch.ones(50, dtype=torch.float64))
    assert len(shakes.unique(dim=0)) == 50
    assert torch.equal(shakes[0], shake_kernel(side, torch.Generator().manual_seed(0)))
    for shake in shakes:
        rows, columns = (shake.sum(d).nonzero().flatten() for d in (1, 0))
        longest = max(rows[-1] - rows[0], columns[-1] - columns[0])
        assert 0.4 * (side - 1) <= longest < 0.9 * (side - 1) + 2  # the path and the pixels that its ends share
        for taken in (rows, columns):  # the middle of what is covered, to the nearest pixel
            assert abs(float(taken[0] + taken[-1]) / 2 - (side - 1) / 2) <= 0.5


def test_shakes_say_what_is_wrong():
    with pytest.raises(ValueError, match="side must be at least 3, got 2"):
        shake_kernel(2)


def test_kernels_are_read_from_files(tmp_path):
    shakes = {"a": np.ones((3, 5)), "b": np.eye(4, dtype=np.float32)}
    np.savez(tmp_path / "k.npz", **shakes)
    np.save(tmp_path / "stack.npy", np.ones((2, 3, 3), dtype=np.int64))
    loaded = load_kernels(tmp_path / "k.npz")
    assert list(loaded) == ["a", "b"]
    assert torch.allclose(loaded["a"], torch.full((3, 5), 1 / 15, dtype=torch.float64))
    assert torch.equal(load_kernels(tmp_path / "k.npz", unit_sum=False)["b"], torch.eye(4, dtype=torch.float64))
    stack = load_kernels(tmp_path / "stack.npy")
    assert list(stack) == ["0", "1"] and stack["1"].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_measured_kernel_is_read_from_a_picture_as_it_is_stored(tmp_path, suffix):
    counts = np.array([[0, 500, 0], [1000, 40000, 1000], [0, 500, 0]], dtype=np.uint16)
    Image.fromarray(counts).save(tmp_path / f"psf.{suffix}")
    with pytest.warns(UserWarning, match="kernel divided by its sum, 43000"):
        (kernel,) = load_kernels(tmp_path / f"psf.{suffix}").values()
    assert torch.allclose(kernel, torch.from_numpy(counts / 43000.0))
    Image.fromarray(np.zeros((3, 3, 3), dtype=np.uint8)).save(tmp_path / f"colour.{suffix}")
    with pytest.raises(ValueError, match=r"a kernel must be numbers of shape \(kh, kw\), got uint8 \(3, 3, 3\)"):
        load_kernels(tmp_path / f"colour.{suffix}")
    (tmp_path / f"broken.{suffix}").write_bytes(b"II*\0nothing")
    with pytest.raises(ValueError, match="must be one gray picture"):
        load_kernels(tmp_path / f"broken.{suffix}")


def test_files_without_kernels_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_kernels(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"text.npz must be an .npz or .npy file of numbers"):
        load_kernels(tmp_path / "text.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects.npy must be an"):
        load_kernels(tmp_path / "objects.npy")
    for name, array, message in (
        ("line", np.ones(3), r"line: a kernel must be numbers of shape \(kh, kw\), got float64 \(3,\)"),
        ("nan", np.full((2, 2), np.nan), "nan: a kernel must be finite"),
        ("zero", np.zeros((2, 2)), "zero: a kernel needs a positive sum to be normalised, got 0.0"),
    ):
        np.savez(tmp_path / "bad.npz", **{name: array})
        with pytest.raises(ValueError, match=message):
            load_kernels(tmp_path / "bad.npz")


# ---------------------------------------------------------------- norm


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_norm_bounds_the_largest_singular_value(kernel_size, boundary, seed):
    blur = make_blur(kernel_size, boundary, seed)
    assert largest_singular_value(blur, (1, 6, 7)) <= blur.norm() * (1 + 1e-12)


@pytest.mark.parametrize("boundary", ["circular", "reflective"])
def test_norm_of_a_gaussian_is_attained(boundary):
    blur = Blur.gaussian(1.5, boundary)
    assert largest_singular_value(blur, (1, 8, 9)) == pytest.approx(blur.norm(), rel=1e-12)


def test_a_reflected_far_tap_exceeds_the_sum_of_its_kernel():
    """Why reflection needs a bound of its own: a shift of 4 reads four pixels twice along either axis."""
    kernel = torch.zeros(9, 9)
    kernel[0, 0] = 1
    blur = Blur(kernel, "reflective")
    largest = largest_singular_value(blur, (1, 6, 7))
    assert largest == pytest.approx(2) and largest <= blur.norm() * (1 + 1e-12) <= 2 + 1e-11


# ---------------------------------------------------------------- data prox


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("image_size", [(16, 16), (13, 17)], ids=str)
def test_closed_form_prox_is_that_of_conjugate_gradients(image_size, dtype, tolerance):
    blur = make_blur((5, 4), "circular")
    z, y = randn(2, 3, *image_size, dtype=dtype), randn(2, 3, *image_size, dtype=dtype, seed=2)
    closed, iterated = blur.prox_l2(z, y, 0.7), prox_l2_by_cg(blur, z, y, 0.7, max_iter=400)
    assert torch.linalg.vector_norm(closed - iterated) <= tolerance * torch.linalg.vector_norm(closed)


def test_dense_matrix_of_a_reflective_blur_has_unit_row_sums():
    assert torch.allclose(dense(Blur.gaussian(1.0, "reflective"), (1, 5, 6)).sum(1), torch.ones(30).double())


# ---------------------------------------------------------------- bad input


def test_arguments_out_of_contract_are_named():
    with pytest.raises(ValueError, match=r"kernel must have shape \(kh, kw\) or \(N, kh, kw\), got \(3,\)"):
        Blur(torch.ones(3))
    with pytest.raises(ValueError, match="kernel must be finite"):
        Blur(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match="boundary must be one of circular, reflective, full, valid, got 'same'"):
        Blur(torch.ones(3, 3) / 9, boundary="same")
    with pytest.raises(ValueError, match="x must be at least as large as the 3 x 3 kernel"):
        make_blur((3, 3), "valid").A(torch.zeros(2, 1, 8, 2))
    with pytest.raises(ValueError, match="sigma must be positive, got -1"):
        Blur.gaussian(-1)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Blur.gaussian(1.0, size=0)
    with pytest.raises(ValueError, match="y must be at least as large as the 3 x 3 kernel"):
        make_blur((3, 3), "full").A_adjoint(torch.zeros(2, 1, 8, 2))
    with pytest.raises(ValueError, match="at least half as large as the 9 x 9 kernel to be reflected, got 3 x 8"):
        make_blur((9, 9), "reflective").A(torch.zeros(2, 1, 3, 8))


def test_many_image_sizes_do_not_fill_the_memory():
    blur = Blur.gaussian(1.0)
    for side in range(5, 40):
        blur.A(torch.zeros(1, 1, side, side))
    assert len(blur._transfers) <= 8


@pytest.mark.parametrize("boundary", ["circular", "reflective", "full", "valid"])
@pytest.mark.parametrize("side", [16, 24, 32, 45, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lone_image_is_blurred_as_within_a_batch_to_the_bit(one_thread, boundary, side, dtype):
    """Small transforms of one image differ from those of several in MKL, which a job's results must not show."""
    blur = Blur.gaussian(0.8, boundary=boundary)
    x = torch.rand(5, 1, side, side, dtype=dtype)
    y = blur.A(x)
    assert torch.equal(y, torch.cat([blur.A(x[i : i + 1]) for i in range(5)]))
    assert torch.equal(blur.A_adjoint(y), torch.cat([blur.A_adjoint(y[i : i + 1]) for i in range(5)]))
