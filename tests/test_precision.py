"""Named precisions: what they change, what they leave alone, and how far results may move."""

import pytest
import torch
import torch.nn.functional as F
from cases import relative

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.ops.precision import PRECISIONS

PROX = {"bf16": 6e-3, "fp16": 1e-3}  # relative to float64, the table of the tests
GRADIENT = {"bf16": 2.5e-2, "fp16": 4e-3}
SYMMETRY = {"bf16": 1e-2, "fp16": 1e-3}


def conv_model() -> lf.ConvLPN:
    torch.manual_seed(0)
    return lf.ConvLPN(1, hidden=16, strides=(1, 2, 1))


def odd_model() -> lf.LPN:
    """Widths of odd size, a skip of many taps, a head in the middle: nothing the narrow kernels were made for."""
    torch.manual_seed(1)
    stages = (
        Stage(10, skip_kernel=5, skip_padding=2, heads=("squared",)),
        Stage(21, 3, 2, 1, skip_kernel=17, skip_stride=2, skip_padding=8, heads=("linear",)),
        Stage(16, 3, 1, 1, skip_kernel=0, heads=("linear",)),
    )
    return lf.LPN(Spec("conv", 1, stages, 10.0, 0.1))


def half_precisions(backend: str, model: lf.LPN, x: torch.Tensor) -> list[str]:
    registry = lf.ops.registry
    return [p for p in ("bf16", "fp16") if registry.reasons(model.spec, x, p)[backend] is None]


def gradients(model, x, v) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of <v, f(x)>, in x and in all parameters as one vector."""
    x = x.clone().requires_grad_()
    gx, *rest = torch.autograd.grad((v * model(x)).sum(), [x, *model.parameters()], allow_unused=True)
    return gx, torch.cat([g.flatten() for g in rest if g is not None])


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("size", [(16, 16), (11, 13)])
@pytest.mark.parametrize("build", [conv_model, odd_model])
def test_half_precisions_stay_near_float64(backend, size, build):
    model = build()
    x, v = torch.rand(3, 1, *size), torch.randn(3, 1, *size)
    true_model = build().double()
    true_f, true_g = true_model(x.double()), gradients(true_model, x.double(), v.double())
    for precision in half_precisions(backend, model, x):
        model.precision = precision
        with lf.use_backend(backend):
            psi, f = model.potential_and_prox(x)
            found = gradients(model, x, v)
            h = model.hvp(x, v)
        assert f.dtype == psi.dtype == h.dtype == torch.float32
        assert relative(f, true_f) <= PROX[precision]
        assert relative(psi, true_model.potential(x.double())) <= PROX[precision]
        assert relative(h, true_model.hvp(x.double(), v.double())) <= GRADIENT[precision]
        for ours, theirs in zip(found, true_g, strict=True):
            assert relative(ours, theirs) <= GRADIENT[precision]


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_hessian_products_stay_symmetric_in_half_precisions(backend):
    model = conv_model()
    x, u, v = torch.rand(4, 1, 15, 9), torch.randn(4, 1, 15, 9), torch.randn(4, 1, 15, 9)
    for precision in half_precisions(backend, model, x):
        model.precision = precision
        with lf.use_backend(backend):
            hu, hv = model.hvp(x, u).flatten(1), model.hvp(x, v).flatten(1)
        gap = ((u.flatten(1) * hv).sum(1) - (v.flatten(1) * hu).sum(1)).abs()
        assert (gap <= SYMMETRY[precision] * u.flatten(1).norm(dim=1) * hv.norm(dim=1)).all()


def test_precision_really_changes_the_arithmetic():
    model, x = conv_model(), torch.rand(1, 1, 8, 8)
    full = model(x)
    model.precision = "bf16"
    assert not torch.equal(full, model(x))


def test_the_torch_backend_has_both_half_precisions():
    assert half_precisions("torch", conv_model(), torch.rand(1, 1, 8, 8)) == ["bf16", "fp16"]


def test_dense_networks_have_half_precisions_on_the_torch_backend():
    torch.manual_seed(0)
    model, x = lf.MLPLPN(dim=3), torch.randn(50, 3)
    full = model(x)
    for precision in ("bf16", "fp16"):
        model.precision = precision
        with lf.use_backend("torch"):
            assert 0 < relative(model(x), full) <= PROX[precision]


def test_tf32_is_refused_on_the_cpu_with_a_reason():
    model = conv_model()
    model.precision = "tf32"
    with pytest.raises(RuntimeError, match="tf32.*GPU"):
        model(torch.rand(1, 1, 8, 8))


def test_float64_tensors_take_no_named_precision():
    model = conv_model().double()
    model.precision = "bf16"
    with pytest.raises(RuntimeError, match="float32 tensors"):
        model(torch.rand(1, 1, 8, 8, dtype=torch.float64))


def test_an_unknown_precision_is_refused_by_name():
    with pytest.raises(ValueError, match="precision must be one of fp32, tf32, fp16, bf16, got 'half'"):
        conv_model().precision = "half"
    assert PRECISIONS == ("fp32", "tf32", "fp16", "bf16")


def test_solves_ignore_the_named_precision():
    model, z = conv_model(), torch.rand(2, 1, 8, 8)
    u = lf.invert(model, model(z).detach()).preimage
    model.precision = "bf16"
    model_f = model(z).detach()
    model.precision = "fp32"
    assert relative(model(z), model_f) > 1e-6
    model.precision = "bf16"
    again = lf.invert(model, conv_model()(z).detach()).preimage
    assert torch.equal(u, again)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("seed", range(4))
def test_a_stage_that_reads_a_whole_image_is_as_exact_as_autograd(backend, seed):
    """Its units sum 150,000 terms of one sign; published networks end so, with sums that the bias nearly cancels."""
    torch.manual_seed(seed)
    side = 48
    stages = (Stage(64, skip_kernel=3, skip_padding=1), Stage(32, side, skip_kernel=side, heads=("linear",)))
    model = lf.LPN(Spec("conv", 1, stages, 100.0, 1e-6, image_size=(side, side)))
    first, last = model.stages
    x = torch.rand(2, 1, side, side)
    v = torch.randn_like(x)
    eps = torch.finfo(torch.float32).eps
    with torch.no_grad(), lf.use_backend(backend):
        first.skip.normal_(std=0.3)
        core = last.core.normal_().exp_()
        core /= core.sum((1, 2, 3), keepdim=True)
        sums = model.potential(x)
        packed = model.packed()
        exact, plain = (reference.potential(model.spec, x.to(P), P) for P in (packed.double(), packed))
        assert relative(sums, exact) <= 2 * relative(plain, exact) + 2 * eps
        z = F.softplus(F.conv2d(x, first.skip, first.bias, padding=1), 100.0)
        last.bias.copy_(0.02 * torch.randn(32) - F.conv2d(z, core)[0].flatten())
    packed = model.packed().detach()
    exact, plain = (
        (reference.prox(model.spec, y, packed), reference.vjp(model.spec, y, packed, None, None, t)[1])
        for y, packed, t in ((x.double(), packed.double(), v.double()), (x, packed, v))
    )
    with lf.use_backend(backend):
        f = model(x)
        (f * v).sum().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model._in_order()])
    for ours, theirs, truth in zip((f.detach(), gradient), plain, exact, strict=True):
        assert relative(ours, truth) <= 2 * relative(theirs, truth) + 2 * eps
