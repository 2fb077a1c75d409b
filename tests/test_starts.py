"""Good first pictures in any unit, norms that bound, and measurements that were never made."""

import math

import pytest
import torch
from physics_cases import OPERATORS, dense, rand, randn
from solver_cases import SOLVERS, QuadraticPrior

from lpn_fast import physics as P
from lpn_fast.metrics import psnr
from lpn_fast.solvers import estimate_noise, fista

EVERY_OPERATOR = pytest.mark.parametrize("name", OPERATORS)


class Foreign:
    """Somebody's operator: the two methods, in a unit of its own."""

    def __init__(self, physics, gain=1.0):
        self.physics, self.gain = physics, gain

    def A(self, x):
        return self.gain * self.physics.A(x)

    def A_adjoint(self, y):
        return self.gain * self.physics.A_adjoint(y)


def blobs(height, width):
    """A smooth picture, (1, 1, H, W), between 0 and 1."""
    u, v = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    return (0.5 + 0.4 * (u * v).sin() * (2 * u - v).cos())[None, None].double()


@EVERY_OPERATOR
@pytest.mark.parametrize("gain", [1e-3, 50.0])
def test_a_start_does_not_depend_on_the_unit_of_the_measurements(name, gain):
    make, size = OPERATORS[name]
    physics = make()
    y = physics.A(randn(2, 1, *size))
    expected = P.start(Foreign(physics), y)
    assert torch.allclose(P.start(Foreign(physics, gain), gain * y), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(P.start(physics, gain * y), gain * P.start(physics, y), rtol=1e-9, atol=1e-12)  # the picture


@pytest.mark.parametrize("solver", SOLVERS)
@EVERY_OPERATOR
def test_a_reconstruction_does_not_depend_on_the_unit_of_the_measurements(name, solver):
    make, size = OPERATORS[name]
    physics, gain = make(), 37.0
    x = randn(2, 1, *size)
    y = physics.A(x) + 0.1 * randn(*physics.A(x).shape, seed=7)
    plain = SOLVERS[solver](y, Foreign(physics), QuadraticPrior(q=0.3), max_iter=6, tol=0.0)
    scaled = SOLVERS[solver](gain * y, Foreign(physics, gain), QuadraticPrior(q=0.3), max_iter=6, tol=0.0)
    assert torch.allclose(scaled.x, plain.x, rtol=1e-6, atol=1e-8)


@EVERY_OPERATOR
def test_seen_are_the_rows_that_are_not_zero(name):
    make, size = OPERATORS[name]
    physics = make()
    rows = dense(physics, (1, *size)).norm(dim=1) > 0
    y = physics.A(randn(2, 1, *size))
    for seen in (P.seen(physics, y), P.seen(Foreign(physics), y)):
        assert seen.shape == y.shape and seen.dtype == torch.bool
        assert torch.equal(seen.flatten(1), rows.expand(2, -1))


def test_starts_are_pictures():
    x = blobs(66, 48)
    least = {  # dB, of what is exactly known but for the sampling
        P.Blur.gaussian(1.0, boundary="full"): 25,
        P.Blur.gaussian(1.0): 30,
        P.Inpainting.random((66, 48), 0.5): 30,
        P.Downsampling.average(2): 33,
        P.Downsampling.gaussian(3): 28,
        P.ParallelBeamCT((66, 48), 60): 25,
        P.MRI.lines((66, 48), acceleration=2): 22,
    }
    for physics, decibels in least.items():
        reached = psnr(physics.start(physics.A(x)), x).item()
        assert reached >= decibels, f"{physics}: {reached:.1f} dB"
        assert reached > psnr(physics.A_adjoint(physics.A(x)), x).item() - 1e-9 if reached < 100 else True


def test_bicubic_starts_lie_where_the_pixels_were_taken():
    """A ramp comes back; torch's cubic bends it by a tenth of a pixel, a wrong centre would shift it by a half."""
    ramp = torch.arange(24.0, dtype=torch.float64).expand(1, 1, 24, 24)
    for physics in (
        P.Downsampling(2),
        P.Downsampling.average(2),
        P.Downsampling.average(3),
        P.Downsampling.gaussian(2),
    ):
        inside = (..., slice(8, 16), slice(8, 16))
        assert torch.allclose(physics.start(physics.A(ramp))[inside], ramp[inside], atol=0.15), physics


def test_what_coils_do_not_hear_is_not_blown_up():
    coils = torch.complex(rand(3, 16, 16), rand(3, 16, 16, seed=2))
    coils[..., :8] *= 1e-3
    physics = P.MRI(torch.ones(16, 16), coils)
    y = physics.A(blobs(16, 16))
    noisy = y + 0.01 * randn(*y.shape, seed=3)
    assert physics.start(noisy).abs().max() < 3


def test_one_hot_pixel_does_not_escape_the_norm():
    """Gain 2 at one pixel of 128 x 128: power iteration stops on the plateau of ones, and 0.95 / 1.05^2 diverges."""
    weights = torch.ones(128, 128)
    weights[40, 50] = 2
    hot = Foreign(P.Inpainting(weights))
    result = fista(hot.A(blobs(128, 128).float()), hot, QuadraticPrior(q=0.1), max_iter=60)
    step = result.conditions["step size"]
    assert step.holds and float(step.actual) < 1 / 4
    assert (result.objective.diff(dim=0) <= 1e-6 * result.objective[0]).all() and result.x.abs().max() < 2


def test_measurements_that_were_never_made_do_not_count():
    """Half of the rows are zero in A and in y: misfit and estimated noise are those of the other half."""
    x = blobs(64, 64).repeat(2, 1, 1, 1)
    mask = torch.ones(64, 64)
    mask[::4] = mask[1::4] = 0
    physics = P.Inpainting(mask).with_noise(P.GaussianNoise(0.05))
    y = physics.simulate(x, generator=0)
    assert (y[:, :, mask == 0] == 0).all()
    assert estimate_noise(y, physics).tolist() == pytest.approx([0.05, 0.05], rel=0.1)
    result = fista(y, physics, QuadraticPrior(q=1e-9), x0=x, step_size=1e-9, strength=1.0, max_iter=1)
    assert result.misfit.tolist() == pytest.approx([1, 1], rel=0.05)
    assert torch.equal(P.seen(physics, y), (mask != 0).expand_as(y))


def test_noise_cannot_be_estimated_where_no_block_was_seen():
    mask = torch.zeros(32, 32)
    mask[::2, ::2] = 1
    y = P.Inpainting(mask).A(blobs(32, 32))
    with pytest.raises(ValueError, match="give noise="):
        estimate_noise(y, P.Inpainting(mask))


def test_the_detector_beside_the_object_is_not_seen():
    physics = P.ParallelBeamCT(16, 12, 40, extent=20.0)
    seen = physics.seen(torch.zeros(1, 1, 12, 40))
    assert not seen[..., 0].any() and seen[..., 20].all()
    assert 0.5 < seen.double().mean() < 1 and math.isfinite(physics.norm())
