"""The CUDA backend above its compiled module: dispatch, autograd, solves. The CPU model stands in for the module."""

import importlib
import importlib.util

import cuda_model
import pytest
import torch
from cases import relative
from cuda_on_model import BackendOnModel, ModelModule
from no_waiting import NoWaiting

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.ops import registry
from lpn_fast.ops.backends import cuda as cuda_backend
from lpn_fast.ops.backends.cuda import CudaBackend
from lpn_fast.ops.solve import Equation, Verdict, solve

needs_model = pytest.mark.skipif(cuda_model.COMPILER is None, reason="no C++ compiler to build the model with")


@pytest.fixture
def module():
    return ModelModule(cuda_model.build())


@pytest.fixture
def on_model(module, monkeypatch):
    """The backend "cuda" runs on the model, on CPU tensors, and is forced."""
    monkeypatch.setitem(registry._backends, "cuda", BackendOnModel(module))
    monkeypatch.delitem(registry._absent, "cuda", raising=False)
    with lf.use_backend("cuda"):
        yield module


def network(dim=2, hidden=32, layers=2, **options):
    torch.manual_seed(dim)
    model = lf.MLPLPN(dim, hidden=hidden, layers=layers, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.rand_like(parameter)
    return model


@needs_model
def test_a_module_call_and_its_backward_run_in_the_kernels(on_model):
    model, x = network(alpha=0.1), torch.randn(19, 2, requires_grad=True)
    (model(x) ** 2).sum().backward()
    assert on_model.launches == ["prox", "vjp"]
    got = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    with lf.use_backend("torch"):
        (model(x) ** 2).sum().backward()
    want = [x.grad, *(p.grad for p in model.parameters())]
    assert all(relative(g, w.double()) <= 2e-5 for g, w in zip(got, want, strict=True))


@needs_model
def test_no_call_waits_for_the_device(on_model):
    model, x = network(), torch.randn(3, 2)
    with NoWaiting():
        model(x).square().sum().backward()
        model.hvp(x, x)
    assert on_model.launches == ["prox", "vjp", "hvp"]


@needs_model
def test_a_named_precision_reaches_the_kernels(on_model):
    model, x = network(), torch.randn(40, 2)
    want = reference.prox(model.spec, x.double(), model.packed().detach().double())
    errors = {}
    for model.precision in ("fp32", "fp16", "bf16"):
        errors[model.precision] = relative(model(x).detach(), want)
    assert errors["fp32"] < 2e-6 < errors["fp16"] < 1e-3 < 8 * errors["fp16"]
    assert errors["fp16"] < errors["bf16"] < 6e-3


@needs_model
def test_hvp_and_empty_batches(on_model):
    model, x, v = network(), *torch.randn(2, 5, 2)
    want = reference.hvp(model.spec, x.double(), model.packed().detach().double(), None, v.double())
    assert relative(model.hvp(x, v).detach(), want) <= 1e-5
    on_model.launches.clear()
    assert model(x[:0]).shape == (0, 2) and model.hvp(x[:0], v[:0]).shape == (0, 2)
    model(x[:0]).sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    assert on_model.launches == []


@needs_model
def test_inversion_is_one_launch(on_model):
    model = network(alpha=0.1, squared_head=True)
    y = torch.randn(37, 2)
    x = model(y).detach()
    on_model.launches.clear()
    result = lf.invert(model, x)
    assert on_model.launches == ["solve"]
    assert result.converged.all() and (result.residual <= 1e-5).all()
    assert ((result.preimage - y).norm(dim=1) <= 2 * result.error_bound + 1e-4).all()


@needs_model
def test_prox_of_smaller_strength_is_one_launch(on_model):
    model, z = network(squared_head=True), torch.randn(20, 2)
    strength = torch.linspace(0.1, 0.9, 20)
    on_model.launches.clear()
    with torch.no_grad():
        got = model.prox(z, strength=strength)
    assert on_model.launches == ["solve"]
    with lf.use_backend("torch"):
        want = model.double().prox(z.double(), strength=strength.double())
    assert relative(got, want) <= 1e-5


@needs_model
def test_a_method_asked_for_by_name_stays_itself(on_model):
    model = network(alpha=0.5)
    x = model(torch.randn(3, 2)).detach()
    on_model.launches.clear()
    assert lf.invert(model, x, method="gradient", tol=1e-4).converged.all()
    assert "solve" not in on_model.launches


@needs_model
@pytest.mark.parametrize("t, tol, radius", [(0.0, 1e-5, 1e4), (0.3, 1e-6, None)])
def test_the_launch_agrees_with_the_method_step_by_step(on_model, t, tol, radius):
    """Same verdicts, as many steps give or take one, and solutions as close as tolerances promise."""
    model = network(3, 50, 3, alpha=0.02)
    packed, z = model.packed().detach(), torch.randn(50, 3)
    strength = torch.full((50,), t)
    launched = solve(Equation(model.spec, packed, None, z, strength), z, tol=tol, radius=radius)
    with lf.use_backend("torch"):
        stepped = solve(Equation(model.spec, packed, None, z, strength), z, method="newton-cg", tol=tol, radius=radius)
    assert torch.equal(launched.verdict, stepped.verdict) and launched.converged.all()
    assert (launched.iterations - stepped.iterations).abs().max() <= 1
    modulus = t + (1 - t) * 0.02
    gap = (launched.u - stepped.u).norm(dim=1)
    assert (gap <= 2 * tol * z.norm(dim=1).clamp(min=1) / modulus).all()
    assert relative(launched.f, reference.prox(model.spec, launched.u.double(), packed.double())) <= 1e-5
    assert relative(launched.psi, reference.potential(model.spec, launched.u.double(), packed.double())) <= 1e-5


@needs_model
def test_rows_end_with_their_own_verdict(on_model):
    """Outside the range of a bounded f, NaN, out of steps, and a neighbour whom none of it concerns."""
    model = network(2, 32, 2)  # alpha = 0 and linear heads: f is bounded
    inside = model(torch.randn(1, 2)).detach()
    x = torch.cat([inside, torch.tensor([[1e3, 1e3], [torch.nan, 0.0]]), inside])
    equation = Equation(model.spec, model.packed().detach(), None, x, torch.zeros(4))
    result = solve(equation, x, tol=1e-5, radius=1e4)
    assert result.verdict[1:3].tolist() == [Verdict.OUTSIDE, Verdict.INVALID]
    assert result.verdict[0] == result.verdict[3] == Verdict.CONVERGED
    assert torch.equal(result.u[0], result.u[3])
    short = solve(equation.select(torch.tensor([0])), x[:1] + 3, tol=1e-5, radius=1e4, max_iter=1)
    assert short.verdict.tolist() == [Verdict.ITERATIONS] and short.iterations.tolist() == [1]


def test_cpu_tensors_are_refused_by_name():
    backend = CudaBackend(None)
    assert "x is on cpu" in backend.supports(lf.MLPLPN(2).spec, torch.zeros(1, 2), "fp16")


@needs_model
def test_what_is_not_covered_is_refused_by_name(module):
    from cases import dense_heads

    backend = BackendOnModel(module)
    x = torch.zeros(1, 2)
    assert "noise" in backend.supports(dense_heads().spec, x, "fp32")
    assert "float32" in backend.supports(lf.MLPLPN(2).spec, x.double(), "fp32")
    assert "dim must be 1 to 64" in backend.supports(lf.MLPLPN(65).spec, x, "fp32")
    assert "convolutional" in backend.supports(lf.ConvLPN(1).spec, x, "fp32")
    assert backend.supports(lf.MLPLPN(2).spec, x, "fp32") is None


def test_a_device_that_cannot_be_used_is_a_reason(monkeypatch):
    """A driver older than the module shows when a device is prepared: no error, and no crash at import."""

    class OldDriver:
        @staticmethod
        def mlp_prepare(device, precision):
            raise RuntimeError("CUDA kernel 'device guard': CUDA driver version is insufficient")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    backend = CudaBackend(OldDriver)
    backend._network = lambda spec: None
    assert "driver version is insufficient" in backend._unfit(lf.MLPLPN(2).spec, "fp16", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 is needed, this device has 7.5" in CudaBackend(OldDriver)._unfit(lf.MLPLPN(2).spec, "fp16", 0)


def test_a_module_that_does_not_load_is_a_reason(monkeypatch):
    def fails(name):
        raise ImportError("libcudart.so: wrong ELF class")

    monkeypatch.setattr(registry, "_absent", {})
    monkeypatch.setattr(registry, "_backends", {})
    monkeypatch.setattr(cuda_backend.importlib, "import_module", fails)
    cuda_backend.register()
    assert "wrong ELF class" in registry._absent["cuda"] and not registry._backends


@pytest.mark.skipif(importlib.util.find_spec("lpn_fast._cuda") is None, reason="no CUDA module was built")
def test_the_compiled_module_plans_as_the_model_does(module):
    cuda = importlib.import_module("lpn_fast._cuda")
    spec = lf.MLPLPN(2, hidden=64).spec
    ours = CudaBackend(cuda)._network(spec).plan("vjp", "fp16", 1000, cuda.DeviceLimits(*cuda_model.H200))
    model = cuda_model.Model(module.library, spec, torch.empty(0), cuda_model.H200).plan("vjp", "fp16", 1000)
    assert (ours.warps, ours.blocks, ours.shared_bytes) == (model["warps"], model["blocks"], model["shared"])
    assert (ours.packed_bytes, ours.partial_bytes) == (model["packed"], model["partial"])
