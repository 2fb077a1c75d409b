"""The circulant preconditioner of data proxes: right where it must be, of use where it can be, harmless elsewhere."""

import pytest
import torch
from physics_cases import randn

from lpn_fast import physics as P
from lpn_fast.physics.cg import conjugate_gradient
from lpn_fast.physics.circulant import circulant_preconditioner, gram_spectrum

SIDE = 32


def steps(physics, gamma, preconditioned):
    """Conjugate gradient steps of a data prox in float32."""
    z = randn(2, 1, SIDE, SIDE).float()
    b = z + gamma * physics.A_adjoint(physics.A(randn(2, 1, SIDE, SIDE, seed=2).float()))
    precondition = circulant_preconditioner(physics, z, gamma) if preconditioned else None
    result = conjugate_gradient(
        lambda x: x + gamma * physics.A_adjoint(physics.A(x)), b, max_iter=500, precondition=precondition
    )
    assert result.converged.all()
    return int(result.iterations.max())


@pytest.mark.parametrize("samples", [None, 3])
def test_of_a_circular_blur_the_spectrum_is_exact(samples):
    kernel = randn(5, 4).abs() if samples is None else randn(samples, 5, 4).abs()
    kernel = kernel / kernel.sum((-2, -1), keepdim=True)
    like = randn(3, 2, 10, 9)
    exact = torch.fft.rfft2(kernel, s=(10, 9)).abs().square()
    exact = exact.expand(1, 2, -1, -1) if samples is None else exact[:, None].expand(-1, 2, -1, -1)
    assert torch.allclose(gram_spectrum(P.Blur(kernel), like), exact, atol=1e-12)


@pytest.mark.parametrize(
    ("physics", "gain"),
    [
        (P.ParallelBeamCT(SIDE, 48, 48), 0.7),
        (P.Blur.gaussian(1.5, boundary="full"), 0.6),
        (P.Blur.gaussian(1.5, boundary="reflective"), 0.8),
    ],
    ids=["ct", "full", "reflective"],
)
def test_it_saves_steps_where_the_operator_is_nearly_a_convolution(physics, gain):
    gamma = 100 / physics.norm() ** 2
    assert steps(physics, gamma, True) <= gain * steps(physics, gamma, False)


@pytest.mark.parametrize(
    "physics",
    [P.Inpainting.random(SIDE, seen=0.4), P.CompressedSensing(SIDE, ratio=1 / 4)],
    ids=["mask", "random rows"],
)
def test_operators_without_a_spectrum_are_left_alone(physics):
    spectrum = gram_spectrum(physics, randn(1, 1, SIDE, SIDE).float())
    assert torch.allclose(spectrum, spectrum.mean().expand_as(spectrum))
    assert steps(physics, 100.0, True) == steps(physics, 100.0, False)


def test_a_prox_may_end_early_by_the_error_asked_for_and_start_nearby():
    physics = P.ParallelBeamCT(SIDE, 48, 48)
    z, gamma = randn(2, 1, SIDE, SIDE), 100 / physics.norm() ** 2
    y = physics.A(randn(2, 1, SIDE, SIDE, seed=2))
    exact = P.prox_l2_by_cg(physics, z, y, gamma)
    calls = []

    class Counted:
        def A(self, x):
            calls.append(1)
            return physics.A(x)

        A_adjoint = staticmethod(physics.A_adjoint)

    counted, spent = Counted(), []
    gram_spectrum(counted, z)
    for options in ({}, {"error": 0.1}, {"error": 0.1, "x0": exact}):
        calls.clear()
        found = P.prox_l2_by_cg(counted, z, y, gamma, **options)
        assert ((found - exact).flatten(1).norm(dim=1) <= 0.1).all()
        spent.append(len(calls))
    assert spent[2] == 1 < spent[1] < spent[0] / 2


def test_the_operator_behind_a_noise_model_is_probed_once():
    blur = P.Blur.gaussian(1.0, boundary="full")
    like = randn(1, 1, SIDE, SIDE)
    assert gram_spectrum(blur.with_noise(P.GaussianNoise(0.1)), like) is gram_spectrum(blur, like)
