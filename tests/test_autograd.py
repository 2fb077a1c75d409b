"""The module composes: autograd to third order, torch.func, torch.compile, copies, inference and autocast."""

import copy
import pickle

import pytest
import torch
from cases import Case, relative
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import lpn_fast as lf
from lpn_fast.ops import functions
from lpn_fast.ops.backends.cpu import backend as cpu_backend

SMALL = ["dense", "conv-conditional", "conv-mixed", "volume-mixed"]


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = lf.MLPLPN(3, hidden=8, layers=2).double()
    return model, torch.randn(5, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_first_and_second_derivatives(name):
    case = Case(name)
    spec, x, packed, features = case.reference_arguments
    x, packed = x[:2].requires_grad_(), packed.requires_grad_()
    if x.dim() > 2:
        x = x.detach()[..., :4, :5].requires_grad_()
    features = None if features is None else features[:2]

    def both(x, packed):
        return functions.evaluate(spec, x, packed, features, True)

    assert gradcheck(both, (x, packed), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(both, (x, packed), atol=1e-4, fast_mode=True)


def test_third_order_through_hvp(small):
    model, x = small
    v = torch.randn_like(x)
    assert gradcheck(model.hvp, (x.requires_grad_(), v.requires_grad_()), check_forward_ad=True)


def test_jacobians_by_every_mode_agree(small):
    model, x = small

    def single(t):
        return model(t[None])[0]

    backward, forward = vmap(jacrev(single))(x), vmap(jacfwd(single))(x)
    curvature = vmap(hessian(lambda t: model.potential(t[None])[0]))(x)
    assert torch.allclose(backward, forward) and torch.allclose(backward, curvature)
    assert torch.allclose(backward, backward.mT)


def test_vmap_folds_samples_and_loops_over_parameters(small):
    model, x = small
    assert torch.allclose(vmap(model)(x[:, None])[:, 0], model(x))
    ensemble = {name: torch.stack([p, 1.1 * p]).detach() for name, p in model.named_parameters()}
    out = vmap(lambda parameters: functional_call(model, parameters, (x,)))(ensemble)
    assert torch.allclose(out[0], model(x)) and not torch.allclose(out[1], out[0])


def test_per_sample_gradients_add_up(small):
    model, x = small
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, t):
        return functional_call(model, parameters, (t[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    together = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for (name, per_sample), total in zip(each.items(), together, strict=True):
        assert relative(per_sample.sum(0), total) <= 1e-12, name


def test_forward_over_reverse_and_reverse_over_forward():
    case = Case("conv")
    x, v, model = case.x[..., :8, :9], case.v[..., :8, :9], case.model

    def energy(t):
        return model(t).square().sum()

    t = x.clone().requires_grad_()
    gradient = torch.autograd.grad(energy(t), t, create_graph=True)[0]
    expected = torch.autograd.grad((gradient * v).sum(), t)[0]
    assert torch.allclose(jvp(grad(energy), (x,), (v,))[1], expected)
    reverse = grad(lambda t: jvp(model, (t,), (v,))[1].square().sum())(x)
    assert torch.allclose(reverse, grad(lambda t: model.hvp(t, v).square().sum())(x))


@pytest.mark.parametrize("name", ["dense", "conv", "conv-conditional", "volume"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_forward_and_backward(name, dynamic):
    case = Case(name, torch.float32)
    compiled = torch.compile(case.model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for model in (compiled, case.model):
        x = case.x.clone().requires_grad_()
        case.model.zero_grad()
        out = model(x, case.sigma)
        out.square().sum().backward()
        results.append([out, x.grad, *[p.grad.clone() for p in case.model.parameters()]])
    for a, b in zip(*results, strict=True):
        assert relative(a, b) <= 1e-5


def test_compiles_with_inductor():
    case = Case("dense", torch.float32)
    compiled = torch.compile(lambda x: case.model(x).square().sum(), fullgraph=True)
    assert torch.allclose(compiled(case.x), case.model(case.x).square().sum(), rtol=1e-5)


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("family", ["dense", "conv"])
def test_backward_may_run_on_another_backend_than_forward(family, limit, monkeypatch):
    case = Case(family, torch.float32)
    if limit is not None:
        monkeypatch.setattr(cpu_backend, "TAPE_BYTES", limit)
    results = []
    for forward in ("cpu", "torch"):
        for backward in ("cpu", "torch"):
            case.model.zero_grad()
            with lf.use_backend(forward):
                psi, f = case.model.potential_and_prox(case.x, case.sigma)
            with lf.use_backend(backward):
                ((case.p * psi).sum() + (case.v * f).sum()).backward()
            results.append([p.grad.clone() for p in case.model.parameters()])
    for gradients in results[1:]:
        for mine, first in zip(gradients, results[0], strict=True):
            assert relative(mine, first) <= 1e-5


@pytest.mark.parametrize("family", ["dense", "conv-conditional", "volume-conditional"])
def test_operators_pass_opcheck(family):
    case = Case(family, torch.float32)
    model = case.model
    features = model._checked(case.x, case.sigma)[1]
    packed, spec = model.packed().detach(), model.spec.encoded
    ops = torch.ops.lpn_fast
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.evaluate, (case.x, packed, features, spec, "fp32", True, True), test_utils=utilities)
    torch.library.opcheck(ops.hvp, (case.x, packed, features, case.v, [], spec, "fp32"), test_utils=utilities)
    torch.library.opcheck(ops.vjp, (case.x, packed, features, case.p, case.v, [], spec, "fp32"), test_utils=utilities)


def test_copies_and_state_dicts_compute_the_same(case):
    model, x, sigma = case.model, case.x, case.sigma
    expected = model(x, sigma)
    assert torch.equal(copy.deepcopy(model)(x, sigma), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x, sigma), expected)
    fresh = Case.__new__(Case)
    fresh.model = lf.LPN(model.spec).double()
    fresh.model.load_state_dict(model.state_dict())
    assert torch.equal(fresh.model(x, sigma), expected)


def test_inference_mode_and_no_grad_keep_no_graph(small):
    model, x = small
    expected = model(x)
    assert expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    with torch.no_grad():
        assert not model(x).requires_grad


def test_caller_tensors_are_left_alone(small):
    model, x = small
    before = x.clone()
    model(x)
    model.hvp(x, x)
    assert torch.equal(x, before) and not x.requires_grad


@pytest.mark.parametrize("name", ["dense", "conv", "ridge", "mnist"])
def test_autocast_computes_in_the_models_dtype(name):
    """Values, derivatives and gradients of parameters are those of outside, bit for bit."""
    case = Case(name, torch.float32)
    x = case.x.bfloat16().float()

    def everything(x):
        case.model.zero_grad()
        psi, f = case.model.potential_and_prox(x, case.sigma)
        (f.square().sum() + psi.sum()).backward()
        return [psi, f, case.model.hvp(case.x, case.x, case.sigma), *(p.grad.clone() for p in case.model.parameters())]

    wanted = everything(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.linear(x, torch.eye(x.shape[-1])).dtype == torch.bfloat16
        got = everything(x.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
