"""Networks that read x in units of the noise: f_sigma(x) = sigma f(x / sigma), an exact prox at every sigma."""

from dataclasses import replace

import pytest
import torch
from cases import TOLERANCE, Case, everything, relative

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.noise import noise_features
from lpn_fast.ops.packing import constrained


@pytest.fixture(params=["cpu", "torch"])
def backend(request):
    with lf.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_potential_prox_and_hessian_scale_with_the_noise(dtype):
    case = Case("frame", dtype)
    spec, x, sigma = case.model.spec, case.x.double(), case.sigma.double()
    unit = sigma.view(-1, 1, 1, 1)
    arguments = spec, x / unit, case.model.packed().detach().double(), noise_features(sigma, spec.noise_levels)
    psi, f = case.model.potential_and_prox(case.x, case.sigma)
    assert relative(psi, sigma**2 * reference.potential(*arguments)) <= TOLERANCE[dtype]["prox"]
    assert relative(f, unit * reference.prox(*arguments)) <= TOLERANCE[dtype]["prox"]
    hv = case.model.hvp(case.x, case.v, case.sigma)
    assert relative(hv, reference.hvp(*arguments, case.v.double())) <= TOLERANCE[dtype]["second_order"]


def test_gradients_are_those_of_the_scaled_potential(backend):
    case = Case("frame", torch.float32 if backend == "cpu" else torch.float64)
    *_, gx, gP = everything(case.model, case.x, case.p, case.v, case.sigma)
    spec, sigma = case.model.spec, case.sigma.double()
    unit = sigma.view(-1, 1, 1, 1)
    packed = case.model.packed().detach().double()
    scaled = reference.vjp(
        spec, case.x.double() / unit, packed, noise_features(sigma, spec.noise_levels),
        case.p.double() * sigma**2, case.v.double() * unit,
    )  # fmt: skip
    assert relative(gx, scaled[0] / unit) <= TOLERANCE[gx.dtype]["second_order"]
    wanted = scaled[1].masked_fill(constrained(spec) & (packed <= 0) & (scaled[1] >= 0), 0)  # weights held at zero stay
    assert relative(gP, wanted) <= TOLERANCE[gx.dtype]["second_order"]


def test_prox_of_any_strength_solves_its_equation(backend):
    case = Case("frame", torch.float32 if backend == "cpu" else torch.float64)
    x, _, u = case.model.prox_and_prior(case.x, 0.4, case.sigma, return_preimage=True)
    z = 0.4 * u + 0.6 * case.model(u, case.sigma)
    assert relative(z, case.x) <= 1e-5
    assert relative(case.model.prox(case.x, 0.4, case.sigma), x) <= 1e-6
    again = case.model.prox(case.x, 0.4, case.sigma, start=u)
    assert relative(again, x) <= 1e-5


def test_prior_by_inversion_is_the_prior_that_comes_free():
    case = Case("frame")
    x, free = case.model.prox_and_prior(case.x, sigma=case.sigma)
    value = lf.prior(case.model, x, sigma=case.sigma, tol=1e-10)
    assert value.converged.all()
    assert torch.allclose(value.value, free, rtol=1e-7, atol=1e-9)
    assert (value.residual <= 1e-9).all()


def test_noise_units_require_noise_levels():
    spec = Case("frame").model.spec
    without = replace(spec, noise_units=False, noise_levels=())
    with pytest.raises(ValueError, match="noise_units needs noise_levels, got none"):
        replace(without, noise_units=True)


def test_the_scale_of_the_noise_is_felt():
    """The check can fail: without units the same parameters give another f."""
    case = Case("frame")
    plain = lf.LPN(replace(case.model.spec, noise_units=False)).double()
    plain.load_state_dict(case.model.state_dict())
    assert relative(plain(case.x, case.sigma), case.model(case.x, case.sigma)) > 1e-2
