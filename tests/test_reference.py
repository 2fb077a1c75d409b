"""Every backend computes what algebra/reference.py defines."""

import pytest
import torch
from cases import FAMILIES, TOLERANCE, Case, everything, relative

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout
from lpn_fast.algebra.resize import resize, resize_adjoint
from lpn_fast.ops import registry

PATHS = [("torch", torch.float64), ("torch", torch.float32), ("cpu", torch.float32)]


def run(case: Case, dtype: torch.dtype):
    """psi, f, H v, and the gradients of sum p psi + <v, f> in x and P, through the public names."""
    x, v, p = (t.to(dtype) for t in (case.x, case.v, case.p))
    return everything(case.model.to(dtype), x, p, v, None if case.sigma is None else case.sigma.to(dtype))


@pytest.mark.parametrize("backend, dtype", PATHS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batch", [None, 1])
def test_backend_agrees_with_the_definition(name, backend, dtype, batch):
    case = Case(name, batch=batch)
    with lf.use_backend(backend):
        reason = registry.reasons(case.model.spec, case.x.to(dtype))[backend]
        if reason:
            pytest.skip(f"{backend} does not cover this: {reason}")
        psi, f, hv, gx, gP = run(case, dtype)
    spec, x, packed, features = case.reference_arguments
    tolerance = TOLERANCE[dtype]
    # psi is a sum over pixels of terms of both signs: its error is measured against their size
    scale = reference.potential(spec, x, packed, features).abs() + x.flatten(1).square().sum(1)
    assert ((psi.double() - reference.potential(spec, x, packed, features)).abs() <= tolerance["prox"] * scale).all()
    assert relative(f, reference.prox(spec, x, packed, features)) <= tolerance["prox"]
    assert relative(hv, reference.hvp(spec, x, packed, features, case.v.double())) <= tolerance["second_order"]
    true_gx, true_gP = reference.vjp(spec, x, packed, features, case.p.double(), case.v.double())
    assert relative(gx, true_gx) <= tolerance["second_order"]
    for slot in layout(spec):
        part = slice(slot.offset, slot.end)
        assert relative(gP[part], true_gP[part]) <= 3 * tolerance["second_order"], slot.name


@pytest.mark.parametrize("backend, dtype", PATHS)
@pytest.mark.parametrize("name", ["dense", "conv-odd", "mnist", "volume"])
def test_empty_batch_gives_empty_results(name, backend, dtype):
    case = Case(name, batch=0)
    if name == "volume" and backend == "cpu":
        pytest.skip("cpu does not cover volumes")
    with lf.use_backend(backend):
        psi, f, hv, gx, gP = run(case, dtype)
    assert psi.shape == (0,) and f.shape == hv.shape == gx.shape == case.x.shape
    assert (gP == 0).all()


@pytest.mark.parametrize("cotangent", ["p", "v"])
def test_gradients_of_potential_and_prox_alone(case, cotangent):
    model = case.model
    x = case.x.clone().requires_grad_()
    psi, f = model.potential_and_prox(x, case.sigma)
    loss = (case.p * psi).sum() if cotangent == "p" else (case.v * f).sum()
    gx = torch.autograd.grad(loss, x)[0]
    p, v = (case.p, None) if cotangent == "p" else (None, case.v)
    assert relative(gx, reference.vjp(*case.reference_arguments, p, v)[0]) <= 1e-12


def test_non_contiguous_input_gives_the_same_result(case):
    strided = torch.empty(*case.x.shape, 2, dtype=case.x.dtype)[..., 0].copy_(case.x)
    assert torch.equal(case.model(strided, case.sigma), case.model(case.x, case.sigma))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_results_do_not_depend_on_the_rest_of_the_batch(backend):
    case = Case("conv", torch.float32)
    with lf.use_backend(backend):
        together = case.model(case.x)
        alone = torch.cat([case.model(x[None]) for x in case.x])
    assert relative(together, alone) <= 1e-6


def test_negative_weights_act_as_zero_and_get_gradient_only_upwards():
    model = lf.MLPLPN(2, hidden=8, layers=1).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    core = model.stages[1].core
    with torch.no_grad():
        core[0] = -0.3
    before = model(x)
    model(x).square().sum().backward()
    assert (core.grad[0] <= 0).all(), "a clamped weight must not be pushed further down"
    assert (core.grad[1:] > 0).any() and (core.grad[1:] < 0).any()
    model.project_()
    assert (core >= 0).all() and torch.equal(model(x), before)


def test_projection_handles_minus_zero_and_shows_nan():
    model = lf.MLPLPN(2, hidden=4, layers=1)
    with torch.no_grad():
        model.stages[1].core[0, 0] = -0.0
        model.stages[1].core[0, 1] = float("nan")
    model.project_()
    assert model.stages[1].core[0, 0] == 0 and torch.isnan(model.stages[1].core[0, 1])
    assert torch.isnan(model(torch.ones(1, 2))).any()


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (7, 9), (1, 13), (8, 16, 8), (5, 9, 1)])
def test_resize_is_the_published_one_and_has_its_adjoint(factor, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    y = resize(x, factor)
    assert relative(y, reference._published_resize(x, factor)) <= 1e-15
    w = torch.randn_like(y)
    assert abs(((y * w).sum() - (x * resize_adjoint(w, factor, *size)).sum()).item()) <= 1e-12


def test_forced_backend_that_cannot_run_says_why():
    x = torch.zeros(2, 3, dtype=torch.float64)
    model = lf.MLPLPN(3).double()
    with lf.use_backend("cpu"), pytest.raises(RuntimeError, match="float64.*float32"):
        model(x)
    with lf.use_backend("triton"), pytest.raises(RuntimeError, match="triton"):
        model(x)
    with pytest.raises(ValueError, match="must be one of.*'metal'"):
        lf.use_backend("metal")
    assert "torch" in lf.explain(model, x) and "float32" in lf.explain(model, x)
