"""Image quality against scikit-image, an independent implementation."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lpn_fast.metrics import psnr, ssim


def make_pair(channels, height=21, width=16, samples=3, data_range=1.0):
    generator = torch.Generator().manual_seed(channels)
    reference = torch.rand(samples, channels, height, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    levels = torch.linspace(0.02, 0.3, samples, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return data_range * (reference + levels * noise), data_range * reference


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_scikit_image(channels, data_range):
    x, reference = make_pair(channels, data_range=data_range)
    ours = psnr(x, reference, data_range)
    for i in range(len(x)):
        theirs = peak_signal_noise_ratio(reference[i].numpy(), x[i].numpy(), data_range=data_range)
        assert ours[i].item() == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_is_that_of_scikit_image(channels, window, data_range):
    x, reference = make_pair(channels, data_range=data_range)
    options = {"channel_axis": 0, "data_range": data_range}
    if window == "gaussian":
        options |= {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ours = ssim(x, reference, data_range, window)
    for i in range(len(x)):
        theirs = structural_similarity(x[i].numpy(), reference[i].numpy(), **options)
        assert ours[i].item() == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_float32_images_are_judged_in_float64(window):
    x, reference = (v.float() for v in make_pair(1))
    assert torch.equal(ssim(x, reference, window=window), ssim(x.double(), reference.double(), window=window))
    assert psnr(x, reference).dtype == torch.float64


def test_an_image_equals_itself():
    _, reference = make_pair(3)
    assert torch.allclose(ssim(reference, reference), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert torch.isinf(psnr(reference, reference)).all()


def test_samples_are_judged_alone():
    x, reference = make_pair(2)
    for metric in (psnr, ssim):
        alone = torch.cat([metric(x[i : i + 1], reference[i : i + 1]) for i in range(len(x))])
        assert torch.allclose(metric(x, reference), alone, rtol=1e-13)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_arguments_out_of_contract_are_named(metric):
    image = torch.zeros(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\).*, got \(1, 16, 16\)"):
        metric(image[0], image[0])
    with pytest.raises(ValueError, match="reference must have the shape of x"):
        metric(image, image[:1])
    with pytest.raises(ValueError, match="data_range must be positive, got 0"):
        metric(image, image, data_range=0)


def test_a_window_must_exist_and_fit():
    small = torch.zeros(1, 1, 8, 10)
    with pytest.raises(ValueError, match="x must be at least 11 pixels"):
        ssim(small, small, window="gaussian")
    with pytest.raises(ValueError, match="window must be 'uniform' or 'gaussian', got 'box'"):
        ssim(small, small, window="box")
