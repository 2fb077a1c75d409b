"""What the tests with deepinv share, or why they are skipped: small networks, pictures, and a blur of deepinv's."""

import pytest
import torch

import lpn_fast as lf

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed (tests/interop.txt)")

SIGMA = 0.05


def network(channels=1, gain=0.8, **options):
    """A small network, f scaled so that prices of its prior are of the size of data terms."""
    torch.manual_seed(0)
    model = lf.ConvLPN(channels, hidden=4, strides=(1, 2), alpha=0.1, beta=10.0, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name:
                parameter.mul_(gain)
    return model.requires_grad_(False)


def images(batch, channels=1, size=(12, 13)):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(batch))


def problem(size=(12, 13), batch=2, blurred=1.0):
    """A blur of deepinv's, whose kernel is the identity for `blurred` 0 and a Gaussian for 1, and measurements."""
    kernel = blurred * deepinv.physics.functional.blur.gaussian_blur(sigma=1.0)
    kernel[..., kernel.shape[-2] // 2, kernel.shape[-1] // 2] += 1 - blurred
    physics = deepinv.physics.BlurFFT((1, *size), filter=kernel)
    truth = images(batch, size=size)
    noise = 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(9))
    return physics, physics.A(truth) + noise
