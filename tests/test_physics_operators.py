"""Inpainting, downsampling, MRI and compressed sensing: what each one is, beyond what holds for all."""

import hashlib

import pytest
import torch
from physics_cases import dense, largest_singular_value, make_coils, rand, randn

from lpn_fast.physics import (
    MRI,
    Blur,
    CompressedSensing,
    Downsampling,
    Inpainting,
    adjoint_mismatch,
    operator_norm_bound,
    prox_l2_by_cg,
)

# ---------------------------------------------------------------- inpainting


def test_inpainting_is_a_product_with_its_mask():
    mask, x = rand(7, 9) > 0.5, randn(2, 3, 7, 9)
    assert torch.equal(Inpainting(mask).A(x), x * mask)


@pytest.mark.parametrize("seen", [0.1, 0.5, 1.0])
def test_random_masks_see_the_wanted_fraction_and_are_reproducible(seen):
    masks = [Inpainting.random((20, 15), seen, seed=s).mask for s in (3, 3, 4)]
    assert [int(m.sum()) for m in masks] == [round(300 * seen)] * 3
    assert torch.equal(masks[0], masks[1]) and (seen == 1.0 or not torch.equal(masks[0], masks[2]))


def test_masks_per_channel_and_per_sample_follow_their_samples():
    x = randn(4, 3, 5, 6)
    assert torch.equal(Inpainting(rand(3, 5, 6)).A(x), x * rand(3, 5, 6))
    masks = rand(4, 1, 5, 6)
    physics = Inpainting(masks)
    assert torch.equal(physics.A(x), x * masks)
    for some in (torch.tensor([3, 1]), torch.tensor([True, False, False, True])):
        assert torch.equal(physics.select(some).A(x[some]), (x * masks)[some])
    with pytest.raises(ValueError, match=r"x must have shape \(4, C, 5, 6\), got \(2, 3, 5, 6\)"):
        physics.A(x[:2])
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3, 5, 6\), got \(4, 1, 5, 6\)"):
        Inpainting(rand(3, 5, 6)).A(x[:, :1])


# ---------------------------------------------------------------- downsampling


def test_decimation_keeps_every_third_pixel_and_average_takes_blocks():
    x = randn(2, 1, 9, 12)
    assert torch.allclose(Downsampling(3).A(x), x[..., ::3, ::3], atol=1e-14)
    assert torch.allclose(Downsampling.average(3).A(x), torch.nn.functional.avg_pool2d(x, 3), atol=1e-14)


def test_downsampling_is_blur_then_decimation():
    kernel, x = randn(4, 5, seed=3), randn(2, 3, 9, 12)
    assert torch.allclose(Downsampling(3, kernel).A(x), Blur(kernel).A(x)[..., ::3, ::3], atol=1e-12)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_closed_form_prox_of_downsampling_is_that_of_conjugate_gradients(factor):
    physics = Downsampling(factor, randn(5, 5, seed=3))
    z = randn(2, 3, 16, 12)
    y = randn(*physics.A(z).shape, seed=2)
    iterated = prox_l2_by_cg(physics, z, y, 0.7, max_iter=400)
    assert torch.allclose(physics.prox_l2(z, y, 0.7), iterated, atol=1e-9)


@pytest.mark.parametrize("factor", [2, 3])
def test_norm_of_gaussian_downsampling_is_attained(factor):
    physics = Downsampling.gaussian(factor)
    largest = largest_singular_value(physics, (1, 6 * factor, 5 * factor))
    assert largest == pytest.approx(physics.norm(), rel=1e-10) and largest < 0.8


def test_sides_that_are_not_multiples_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 1, 9, 8\); crop to x\[..., :8, :8\]"):
        Downsampling(4).A(torch.zeros(1, 1, 9, 8))
    with pytest.raises(TypeError, match="factor must be an integer, got 2.0"):
        Downsampling(2.0)
    with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
        Downsampling.gaussian(0)


# ---------------------------------------------------------------- MRI


def test_mri_measures_the_unitary_transform():
    x = randn(2, 1, 7, 9)
    y = MRI(torch.ones(7, 9)).A(x)
    expected = torch.fft.fft2(x, norm="ortho")
    assert torch.allclose(torch.complex(y[:, :, 0], y[:, :, 1]), expected, atol=1e-13)
    assert y.norm().item() == pytest.approx(x.norm().item())
    assert torch.allclose(MRI(torch.ones(7, 9)).A_adjoint(y), x, atol=1e-13)


def test_coils_see_the_image_through_their_sensitivities():
    mask, coils, x = rand(6, 5) > 0.5, make_coils(3, 6, 5), randn(2, 2, 6, 5)
    y = MRI(mask, coils).A(x)
    assert y.shape == (2, 2, 3, 2, 6, 5)
    for c in range(3):
        expected = mask * torch.fft.fft2(coils[c] * x, norm="ortho")
        assert torch.allclose(torch.view_as_complex(y[:, :, c].movedim(2, -1).contiguous()), expected, atol=1e-13)


@pytest.mark.parametrize(("size", "acceleration"), [((8, 16), 4), ((9, 15), 3)])
def test_sampled_lines_hold_the_centre(size, acceleration):
    physics = MRI.lines(size, acceleration, centre=0.1)
    columns = physics.mask.sum(0)
    assert int((columns == size[0]).sum()) == round(size[1] / acceleration) and set(columns.tolist()) == {0, size[0]}
    assert columns[0] == size[0]  # frequency zero
    assert physics.norm() == 1 and torch.equal(physics.mask, MRI.lines(size, acceleration, centre=0.1).mask)


def test_bad_masks_and_sensitivities_are_named():
    with pytest.raises(ValueError, match=r"mask must have shape \(H, W\) or \(N, H, W\), got \(3,\)"):
        MRI(torch.ones(3))
    with pytest.raises(
        ValueError, match=r"sensitivities must have shape \(coils, 4, 5\) or \(N, coils, 4, 5\), got \(4, 5\)"
    ):
        MRI(torch.ones(4, 5), torch.ones(4, 5))
    with pytest.raises(ValueError, match="acceleration must be at least 1, got 0.5"):
        MRI.lines(8, 0.5)
    with pytest.raises(ValueError, match="mask must be finite"):
        Inpainting(torch.full((2, 2), torch.inf))
    with pytest.raises(ValueError, match=r"seen must lie in \(0, 1\], got 0"):
        Inpainting.random(4, 0)


# ---------------------------------------------------------------- compressed sensing


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=str)
def test_compressed_sensing_is_the_published_formula(size):
    """y = Re(ifft(fft(s x) . fft(a)))[rows] with unitary transforms: (1 / sqrt N) a convolved with s x."""
    physics = CompressedSensing(size, 1 / 4)
    pixels = size[0] * size[1]
    a = torch.fft.irfft(physics._spectrum, n=pixels, norm="ortho")
    x = randn(2, 3, *size)
    spectrum = torch.fft.fft(a.to(torch.cdouble), norm="ortho")
    product = torch.fft.fft(physics._signs * x.flatten(2), norm="ortho") * spectrum
    expected = torch.fft.ifft(product, norm="ortho").real[..., physics._rows]
    assert physics.A(x).shape == (2, 3, pixels // 4)
    assert torch.allclose(physics.A(x), expected, atol=1e-12)


def test_random_parts_have_the_published_distributions():
    physics = CompressedSensing(128, 1 / 16)
    taps = torch.fft.irfft(physics._spectrum, n=128 * 128, norm="ortho")
    assert physics._signs.abs().eq(1).all() and abs(physics._signs.mean()) < 0.04
    assert abs(taps.mean()) < 0.04 and abs(taps.std() - 1) < 0.03 and 3 < taps.abs().max() < 6
    assert abs((taps.abs() < 0.6745).double().mean() - 0.5) < 0.02  # the quartiles of the normal distribution
    assert len(physics._rows.unique()) == 1024 and physics._rows.double().mean() == pytest.approx(8192, rel=0.1)


def test_the_same_seed_gives_the_same_operator_everywhere():
    """Integers are compared exactly; the taps, which pass through log and cos, to rounding."""
    physics = CompressedSensing(32, 1 / 16, seed=7)
    exact = physics._signs.numpy().astype("i1").tobytes() + physics._rows.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(exact).hexdigest()[:16] == "ff7ef639951cfb72"
    taps = torch.fft.irfft(physics._spectrum, n=1024, norm="ortho")
    assert taps[:3].tolist() == pytest.approx([0.2672262885893, 1.673554718516, 0.1821908641653], rel=1e-11)
    assert not torch.equal(CompressedSensing(32, 1 / 16, seed=8)._rows, physics._rows)


def test_norm_is_exact_with_all_rows_and_a_bound_with_some():
    whole = CompressedSensing((6, 7), 1.0)
    assert largest_singular_value(whole, (1, 6, 7)) == pytest.approx(whole.norm(), rel=1e-9)
    some = CompressedSensing(64, 1 / 16)
    probable = operator_norm_bound(some, (1, 64, 64))
    assert probable < 0.7 * some.norm()  # about 1.3 sqrt(1.05) against about 3


def test_the_probable_norm_is_a_bound_and_says_how_sure_it_is():
    some = CompressedSensing((12, 11), 1 / 4, seed=3)
    bound, probability = some.probable_norm()
    true = largest_singular_value(some, (1, 12, 11))
    assert true <= bound < 1.2 * true < some.norm() and probability == 1e-9
    flat = CompressedSensing((12, 11), 1 / 4, flat=True)
    assert flat.probable_norm() == (flat.norm(), 0.0)


def test_flat_spectrum_gives_orthonormal_rows():
    matrix = dense(CompressedSensing((6, 7), 1 / 3, flat=True), (1, 6, 7))
    assert torch.allclose(matrix @ matrix.T, torch.eye(14, dtype=torch.float64), atol=1e-12)


def test_bad_sizes_and_ratios_are_named():
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 1\], got 1.5"):
        CompressedSensing(8, 1.5)
    with pytest.raises(ValueError, match="ratio must give at least one of 16 measurements, got 0.01"):
        CompressedSensing(4, 0.01)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        CompressedSensing((0, 4))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        CompressedSensing(4, seed=-1)
    with pytest.raises(ValueError, match=r"y must have shape \(N, C, 16\), got \(1, 1, 8\)"):
        CompressedSensing(8, 1 / 4).A_adjoint(torch.zeros(1, 1, 8))


# ---------------------------------------------------------------- the dot test itself


def test_dot_test_sees_a_transposed_mask_and_a_missing_conjugate():
    class Conjugated(MRI):
        def A_adjoint(self, y):
            return super().A_adjoint(y * torch.tensor([1.0, -1.0])[:, None, None])

    x = randn(3, 1, 7, 9)
    physics = Conjugated(rand(7, 9) > 0.4)
    assert (adjoint_mismatch(physics, x, randn(*physics.A(x).shape, seed=2)) > 1e-3).all()
