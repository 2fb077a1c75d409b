"""Every Triton kernel under the interpreter against float64; run by test_triton_kernels.py in a process of its own.

Sizes are odd, batches 1 and 3, tiles smaller than the images: borders are where index arithmetic goes wrong. Outputs
are filled with NaN first. Planted bugs (the last tests) show that these comparisons would see one.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import Case, relative
from planted import mutant

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.resize import resize, resize_adjoint
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.kernels.triton.interpreter import mend

mend()
from lpn_fast.kernels.triton import activations, assemble, correlate, elementwise, gradient, tiles, units  # noqa: E402
from lpn_fast.kernels.triton.launch import Config, Geometry  # noqa: E402

STORAGE = {"fp32": torch.float32, "fp16": torch.float16}
TOLERANCE = {"fp32": 2e-6, "fp16": 6e-4}  # relative L2: one rounding of the result, products summed in float32
BETA = 7.0
SMALL = Config(pixels=16, channels=16, depth=16, columns=16, warps=4, stages=2)


GUARD = 4096  # elements around every operand: a planted bug must not reach other memory


def guarded(t):
    """A contiguous copy with NaN before and after it."""
    room = torch.full((t.numel() + 2 * GUARD,), float("nan"), dtype=t.dtype)
    copy = room[GUARD : GUARD + t.numel()].view(t.shape)
    return copy.copy_(t)


def nan_like(shape, dtype):
    return guarded(torch.full(shape, float("nan"), dtype=dtype))


def nhwc(t):
    return guarded(t.permute(0, 2, 3, 1))


def rounded(shape, precision, positive=False):
    """Random values that `precision` represents exactly, as float64."""
    t = torch.randn(shape, dtype=torch.float64)
    return (t.abs() if positive else t).to(STORAGE[precision]).double()


def relaid(weight, precision):
    """[H, K, k, k] -> [k, k, K, H] in storage."""
    return guarded(weight.permute(2, 3, 1, 0).to(STORAGE[precision]))


# kernel, stride, padding, height, width, batch, channels in, channels out
CORES = [(3, 1, 1, 5, 7, 2, 20, 9), (3, 2, 1, 7, 6, 3, 16, 17), (5, 2, 2, 9, 8, 1, 8, 5), (4, 1, 0, 6, 5, 2, 3, 4)]
EACH = [("fp32", core) for core in CORES] + [("fp16", CORES[1])]


def forward_error(module, precision, core, config=SMALL, resized=2):
    kernel, stride, padding, h, w, batch, c_in, c_out = core
    torch.manual_seed(0)
    z, weight = rounded((batch, c_in, h, w), precision, True), rounded((c_out, c_in, kernel, kernel), precision, True)
    weight /= 64
    u = F.conv2d(z, weight, None, stride, padding)
    out_h, out_w = u.shape[2:]
    image = torch.randn(batch, 3, out_h * resized - 1, out_w * resized - 1, dtype=torch.float64).float()  # odd
    skip = rounded((c_out, 3, 3, 3), precision)
    bias = torch.randn(batch, c_out)
    u = u + F.conv2d(resize(image.double(), resized), skip, None, 1, 1) + bias.double()[..., None, None]
    truth = F.softplus(u, BETA, threshold=1e3)
    out = nan_like((batch, out_h, out_w, c_out), STORAGE[precision])
    module.correlate(
        out, nhwc(z.to(out.dtype)), relaid(weight, precision), Geometry(kernel, stride, padding), "forward", config,
        precision, image=image, skip=relaid(skip, precision), reading=Geometry(3, 1, 1, resized), bias=bias, beta=BETA,
    )  # fmt: skip
    return relative(out.permute(0, 3, 1, 2), truth)


def transposed_error(module, precision, core, config=SMALL):
    kernel, stride, padding, h, w, batch, c_in, c_out = core
    torch.manual_seed(1)
    z, weight = rounded((batch, c_in, h, w), precision, True), rounded((c_out, c_in, kernel, kernel), precision, True)
    z /= 16
    out_h, out_w = F.conv2d(z, weight, None, stride, padding).shape[2:]
    e = rounded((batch, c_out, out_h, out_w), precision)
    head, squared = torch.rand(c_in), torch.rand(c_in)
    a = torch.nn.grad.conv2d_input(z.shape, weight, e, stride, padding)
    a = a + head.double()[:, None, None] + 2 * squared.double()[:, None, None] * z
    truth = a * -torch.expm1(-BETA * z)
    out = nan_like((batch, h, w, c_in), STORAGE[precision])
    module.correlate(
        out, nhwc(e.to(out.dtype)), relaid(weight, precision), Geometry(kernel, stride, padding), "slope", config,
        precision, True, z=nhwc(z.to(out.dtype)), head=head, head_squared=squared, beta=BETA,
    )  # fmt: skip
    return relative(out.permute(0, 3, 1, 2), truth)


def gradient_error(module, precision, core, config=SMALL, processors=4):
    kernel, stride, padding, h, w, batch, c_in, c_out = core
    torch.manual_seed(2)
    z, dz = rounded((batch, c_in, h, w), precision), rounded((batch, c_in, h, w), precision)
    out_h, out_w = F.conv2d(z, torch.zeros(1, c_in, kernel, kernel).double(), None, stride, padding).shape[2:]
    d, e = rounded((batch, c_out, out_h, out_w), precision), rounded((batch, c_out, out_h, out_w), precision)
    shape = (c_out, c_in, kernel, kernel)
    truth = torch.nn.grad.conv2d_weight(z, shape, d, stride, padding)
    truth = truth + torch.nn.grad.conv2d_weight(dz, shape, e, stride, padding)
    d, z, e, dz = (nhwc(t.to(STORAGE[precision])) for t in (d, z, e, dz))
    result = module.gradient([(d, z), (e, dz)], Geometry(kernel, stride, padding), config, precision, False, processors)
    return relative(result.permute(3, 2, 0, 1), truth)


@pytest.mark.parametrize("precision, core", EACH)
def test_the_forward_correlation_with_skip_bias_and_softplus_is_that_of_float64(precision, core):
    assert forward_error(correlate, precision, core) < TOLERANCE[precision]


@pytest.mark.parametrize("precision, core", EACH)
def test_the_transposed_correlation_with_heads_and_slope_is_that_of_float64(precision, core):
    assert transposed_error(correlate, precision, core) < TOLERANCE[precision]


def projected_error(module, precision, core, config=SMALL, assembled=assemble):
    """f += A^T s (W^T e + w) by the step that stores nothing else, channels in two parts."""
    kernel, stride, padding, h, w, batch, c_in, c_out = core
    torch.manual_seed(6)
    z, weight = rounded((batch, c_in, h, w), precision, True), rounded((c_out, c_in, kernel, kernel), precision, True)
    z, skip = z / 16, rounded((c_in, 3, 3, 3), precision)
    out_h, out_w = F.conv2d(z, weight, None, stride, padding).shape[2:]
    e, head = rounded((batch, c_out, out_h, out_w), precision), torch.rand(c_in)
    a = torch.nn.grad.conv2d_input(z.shape, weight, e, stride, padding) + head.double()[:, None, None]
    truth = torch.nn.grad.conv2d_input((batch, 3, h, w), skip, a * -torch.expm1(-BETA * z), 1, 1)
    z = nhwc(z.to(STORAGE[precision]))
    products = module.correlate(
        z, nhwc(e.to(z.dtype)), relaid(weight, precision), Geometry(kernel, stride, padding), "slope", config,
        precision, True, z=z, head=head, beta=BETA, projection=relaid(skip, precision),
    )  # fmt: skip
    assert len(products) == -(-c_in // config.channels)
    f = torch.zeros(batch, 3, h, w)
    assembled.assemble(f, products, Geometry(3, 1, 1))
    return relative(f, truth)


@pytest.mark.parametrize("precision, core", EACH)
def test_a_step_that_projects_gives_what_two_kernels_give(precision, core):
    assert projected_error(correlate, precision, core) < TOLERANCE[precision]


def product_errors(module, gradients, precision, core, config=SMALL, same=False, gain=2.0):
    """Errors of a correlation and a weight gradient whose operand is gain t t', formed when read; t' = t if `same`."""
    kernel, stride, padding, h, w, batch, c_in, c_out = core
    torch.manual_seed(8)
    t, other = rounded((batch, c_in, h, w), precision), rounded((batch, c_in, h, w), precision)
    other = t if same else other
    z, weight = gain * t * other, rounded((c_out, c_in, kernel, kernel), precision)
    u = F.conv2d(z, weight, None, stride, padding)
    e = rounded(u.shape, precision)
    out = nan_like((batch, *u.shape[2:], c_out), STORAGE[precision])
    t, e = nhwc(t.to(out.dtype)), nhwc(e.to(out.dtype))
    other = t if same else nhwc(other.to(out.dtype))
    geometry = Geometry(kernel, stride, padding)
    module.correlate(
        out, t, relaid(weight, precision), geometry, "plain", config, precision, other=other, gain=gain
    )  # fmt: skip
    found = gradients.gradient(
        [(e, t), (e, other)], geometry, config, precision, processors=2, others=(other, None), gains=(gain, 1.0)
    )  # fmt: skip
    e, z = e.double().permute(0, 3, 1, 2), z + other.double().permute(0, 3, 1, 2)
    truth = torch.nn.grad.conv2d_weight(z, weight.shape, e, stride, padding)
    return relative(out.permute(0, 3, 1, 2), u), relative(found.permute(3, 2, 0, 1), truth)


@pytest.mark.parametrize("same", [True, False])
def test_an_operand_may_be_a_square_or_a_product_that_is_never_stored(same):
    assert max(product_errors(correlate, gradient, "fp32", CORES[1], same=same)) < TOLERANCE["fp32"]
    tma = Config(32, 16, 16, 16, 4, 2, tma=True)
    errors = product_errors(correlate, gradient, "fp16", (3, 2, 1, 6, 4, 2, 16, 16), tma, same)
    assert max(errors) < TOLERANCE["fp16"]


@pytest.mark.parametrize("precision, core", EACH)
def test_the_weight_gradient_is_that_of_float64(precision, core):
    assert gradient_error(gradient, precision, core) < TOLERANCE[precision]


@pytest.mark.parametrize("stride", [1, 2])
def test_what_the_copy_engine_fetches_gives_the_same_results(stride):
    core = (3, stride, 1, 6, 4, 2, 16, 16)
    tma = Config(32, 16, 16, 16, 4, 2, tma=True)
    assert forward_error(correlate, "fp16", core, tma) < TOLERANCE["fp16"]
    assert transposed_error(correlate, "fp16", core, tma) < TOLERANCE["fp16"]
    assert gradient_error(gradient, "fp16", core, tma) < TOLERANCE["fp16"]


@pytest.mark.parametrize("resized", [1, 2, 4])
def test_the_skip_gradient_gathers_resized_patches(resized):
    torch.manual_seed(3)
    d, x = torch.randn(2, 4, 3, 4), torch.randn(2, 2, 3 * resized - (resized > 1), 4 * resized)
    truth = torch.nn.grad.conv2d_weight(resize(x.double(), resized), (4, 2, 3, 3), d.double(), 1, 1)
    result = gradient.gradient([(nhwc(d), x)], Geometry(3, 1, 1, resized), SMALL, "fp32", image=True)
    assert relative(result.permute(3, 2, 0, 1), truth) < TOLERANCE["fp32"]


def assemble_error(module, resized, stride):
    torch.manual_seed(4)
    h, w = 5 * resized - (resized > 1), 6 * resized - (resized // 2)
    size = (-(-h // resized), -(-w // resized))
    out = tuple((n + 2 - 3) // stride + 1 for n in size)
    products = torch.randn(2, *out, 3, 3, 2, dtype=torch.float64)
    # A^T with one channel per (tap, c): the adjoint of taking patches
    columns = products.permute(0, 5, 3, 4, 1, 2).reshape(2, 2 * 9, -1)
    truth = resize_adjoint(F.fold(columns, size, 3, padding=1, stride=stride), resized, h, w) + 1.0
    f = torch.ones(2, 2, h, w)
    module.assemble(f, products.float().flatten(3).contiguous(), Geometry(3, stride, 1, resized))
    return relative(f, truth)


@pytest.mark.parametrize("resized, stride", [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_the_assembly_is_the_adjoint_of_patches_and_resizing(resized, stride):
    assert assemble_error(assemble, resized, stride) < TOLERANCE["fp32"]


def test_softplus_slope_and_curvature_keep_their_digits_where_z_is_small():
    u = torch.cat([torch.linspace(-14, 3, 200), torch.tensor([0.0, -40.0])]).double()[:, None].repeat(1, 4)
    z = F.softplus(u, BETA, threshold=1e3)
    out = nan_like(u.shape, torch.float32)
    elementwise.elementwise(out, u.float(), "forward", BETA)
    argument = 2e-7 * BETA * u.abs()  # exp2's argument is rounded: relative error of the result
    assert ((out.double() - z).abs() <= (2e-6 + argument) * z + 1e-37).all()
    z = out.clone()
    e, dz = (torch.rand(2, *u.shape) * -torch.expm1(-BETA * z.double())).float()  # as the sweeps leave them: with z
    q = torch.where(z > 0, BETA / torch.expm1(BETA * z.double()), 0.0)
    elementwise.elementwise(out, u.float(), "adjoint", BETA, z=z, e=e, dz=dz)
    truth = u * -torch.expm1(-BETA * z.double()) + e.double() * dz.double() * q
    assert ((out.double() - truth).abs() <= 4e-6 * truth.abs() + 1e-6).all()


def test_nan_passes_through_every_step():
    nan = torch.full((3, 4), float("nan"))
    for step in ("forward", "tangent", "slope", "adjoint"):
        out = torch.zeros(3, 4)
        elementwise.elementwise(out, nan, step, BETA, z=torch.ones(3, 4), e=torch.ones(3, 4), dz=torch.ones(3, 4))
        assert out.isnan().all(), step


def whole_network():
    """A last stage that covers its whole input, as the published networks have."""
    stages = (
        Stage(6, skip_kernel=3, skip_padding=1),
        Stage(5, 3, 2, 1, skip_kernel=3, skip_stride=2, skip_padding=1),
        Stage(4, 3, skip_kernel=3, resize=2, heads=("linear",)),
    )
    return lf.LPN(Spec("conv", 1, stages, 5.0, 0.1, constant=True, image_size=(6, 6)))


def networks():
    torch.manual_seed(5)
    yield "whole", whole_network(), torch.randn(3, 1, 6, 6), None
    case = Case("conv-mixed", torch.float32, batch=1)
    yield "mixed", case.model, case.x[..., :5, :7].contiguous(), case.sigma
    model = lf.ConvLPN(1, hidden=3, strides=(1, 2), skip_kernel=3, beta=10.0, sigma_conditional=True)
    yield "conditional", model, torch.randn(2, 1, 5, 4), torch.tensor([0.05, 0.2])
    yield "frame", lf.FrameLPN(1, kernel=2, gates=((1, 1, 5), (3, 2, 3))), 2 * torch.randn(2, 1, 4, 3), torch.ones(2)
    stages = (Stage(3, skip_kernel=2, bias=False, heads=("linear",)), Stage(4, 2, skip_kernel=0, heads=("linear",)))
    square = lf.LPN(Spec("conv", 1, stages, 3.0, 0.1, linear=True, square_first=True))
    yield "square, whole", square, torch.randn(2, 1, 3, 3), None
    alone = lf.LPN(Spec("conv", 1, stages[:1], 3.0, square_first=True))
    yield "square, alone", alone, torch.randn(2, 1, 4, 3), None


@pytest.mark.parametrize("precision", STORAGE)
@pytest.mark.parametrize("network", list(networks()), ids=lambda n: n[0])
def test_a_network_has_its_potential_prox_hessian_and_gradients(network, precision):
    _, model, x, sigma = network
    model.precision = precision
    v, p = torch.randn_like(x), torch.randn(len(x))
    features = model._checked(x, sigma)[1]
    packed = model.packed().detach()
    from lpn_fast.ops.backends.triton import TritonBackend

    call = (model.spec, x, packed, features)
    truth = (model.spec, x.double(), packed.double(), None if features is None else features.double())
    backend = TritonBackend()
    first, second = (1e-5, 1e-5) if precision == "fp32" else (1e-3, 4e-3)
    psi, f, tape = backend.evaluate(*call, True, True, precision)
    assert relative(psi, reference.potential(*truth)) < first
    assert relative(f, reference.prox(*truth)) < first
    assert relative(backend.evaluate(*call, False, False, precision)[1], f.double()) < first  # nothing kept
    hv = backend.hvp(*call, v, tape, precision)
    assert relative(hv, reference.hvp(*truth, v.double())) < second
    if precision == "fp16":  # a cotangent below fp16's smallest number, and the tape computed anew
        p, v, tape = None, 1e-8 * v, []
    gx, gP = backend.vjp(*call, p, v, tape, precision)
    tx, tP = reference.vjp(*truth, None if p is None else p.double(), v.double())
    assert relative(gx, tx) < second and relative(gP, tP) < second


def faint_network():
    """Cores and heads so small that e is far below half precision's smallest number, 6e-8, as in a published start."""
    torch.manual_seed(7)
    model = lf.ConvLPN(1, hidden=3, strides=(1, 2), skip_kernel=3, beta=10.0, alpha=0.0, squared_head=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("core", "head")):
                parameter.copy_(torch.rand_like(parameter) * (1e-4 if name.endswith("core") else 1e-9))
    return model, torch.randn(1, 1, 5, 4)


def faint_errors():
    """Relative errors of f, H v and the gradient in fp16."""
    from lpn_fast.ops.backends.triton import TritonBackend

    model, x = faint_network()
    v, packed, backend = torch.randn_like(x), model.packed().detach(), TritonBackend()
    call, truth = (model.spec, x, packed, None), (model.spec, x.double(), packed.double(), None)
    _, f, _ = backend.evaluate(*call, False, False, "fp16")
    hv = backend.hvp(*call, v, [], "fp16")
    gx, gP = backend.vjp(*call, None, v, [], "fp16")
    _, want = reference.vjp(*truth, None, v.double())
    c = reference.prox(*truth)
    return relative(f, c), relative(hv, reference.hvp(*truth, v.double())), relative(gP, want)


def test_half_precision_reaches_below_its_smallest_number(monkeypatch):
    assert all(error < 4e-3 for error in faint_errors())
    # without units everything is lost
    from lpn_fast.kernels.triton import units
    from lpn_fast.ops.backends.triton.device import launchers

    def plain(cores, heads, squared, scale, square_first):
        ones = torch.ones(3, len(cores), units.WIDE)
        ones[1] /= scale
        return ones

    monkeypatch.setattr(launchers(), "units_of", plain)
    assert max(faint_errors()) > 0.1


def test_squares_and_gates_beyond_the_range_of_half_precision_leave_the_prox_as_it_is():
    """400 standard deviations of the noise: c^2 and, at the border, z of the gates are larger than 65504."""
    from lpn_fast.ops.backends.triton import TritonBackend

    torch.manual_seed(10)
    model = lf.FrameLPN(1, kernel=2, gates=((1, 1, 4),))
    x, v = torch.randn(2, 1, 1, 4, 3)
    x = x + 400
    packed, features = model.packed().detach(), model._checked(x, 1.0)[1]
    call = (model.spec, x, packed, features)
    truth = (model.spec, x.double(), packed.double(), features.double())
    assert relative(TritonBackend().evaluate(*call, False, False, "fp16")[1], reference.prox(*truth)) < 1e-3
    assert relative(TritonBackend().hvp(*call, v, [], "fp16"), reference.hvp(*truth, v.double())) < 4e-3


def test_the_hessian_is_symmetric_and_an_empty_batch_is_empty():
    model = whole_network()
    x, u, v = torch.randn(3, 2, 1, 6, 6)
    with lf.use_backend("triton"), torch.no_grad():
        hu, hv = model.hvp(x, u), model.hvp(x, v)
        assert "triton: runs this call" in lf.explain(model, x)
        assert model(x[:0]).shape == (0, 1, 6, 6)
    gap = ((u * hv - v * hu).flatten(1).sum(1)).abs() / (u.flatten(1).norm(dim=1) * hv.flatten(1).norm(dim=1))
    assert (gap < 1e-6).all()


def test_stages_by_the_library_give_the_same_and_explain_says_so(monkeypatch):
    from lpn_fast.kernels.triton import choices

    model = lf.ConvLPN(2, hidden=3, strides=(1, 2), skip_kernel=3, beta=10.0)
    x, v = torch.randn(2, 1, 2, 6, 5)
    with lf.use_backend("triton"), torch.no_grad():
        assert "stage 1: forward, back, second order: ours, not measured on the interpreter" in lf.explain(model, x)
        ours = model(x), model.hvp(x, v)
        spec = model.spec
        rows = tuple(
            {
                "device": "the interpreter", "role": f"{sweep}_{stage.stride}", "c_in": "3", "c_out": "3",
                "precision": "fp32", "pixels": "15", "ours_us": "9.0", "library_us": "6.0",
            }
            for stage in spec.stages[1:] for sweep in ("forward", "transposed", "adjoint")
        )  # fmt: skip
        monkeypatch.setattr(choices, "rows", lambda: rows)
        assert "library, the library was measured at 1.50 times our speed" in lf.explain(model, x)
        called = []
        monkeypatch.setattr(F, "conv2d", lambda *a, conv2d=F.conv2d: called.append(1) or conv2d(*a))
        theirs = model(x), model.hvp(x, v)
    assert called
    assert all(relative(a, b.double()) < 1e-5 for a, b in zip(theirs, ours, strict=True))


def test_results_are_the_same_bits_every_time_and_backward_runs_through_autograd():
    model = whole_network()
    x = torch.randn(2, 1, 6, 6)
    with lf.use_backend("triton"):
        gradients = []
        for _ in range(2):
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


BUGS = {
    "wrong tap": ("first_w + CLASSES * b", "first_w + CLASSES * a"),
    "wrong parity": ("first_h, first_w = (class_h + PADDING) % CLASSES", "first_h, first_w = class_h % CLASSES"),
    "wrong shift": ("shift_h + a * STEP", "shift_h + a"),
    "missing mask of the result": ("(out_col < out_w)", "(out_col < out_w + 1)"),
    "projection of the wrong channel": (
        "projection + column[None, :] * C_OUT + channel[:, None]",
        "projection + column[None, :] * C_OUT + (C_OUT - 1 - channel)[:, None]",
    ),
    "head of the wrong channel": ("head + channel % HEAD", "head + (channel + 1) % HEAD"),
}


def elementwise_error(module):
    torch.manual_seed(9)
    product, z, e, dz = torch.randn(4, 3, 5, 4).abs()
    bias, head = torch.randn(3, 4), torch.rand(4)
    out = nan_like(product.shape, torch.float32)
    module.elementwise(out, product, "adjoint", BETA, z=z, e=e, dz=dz, bias=bias, head_squared=head)
    s, q = -torch.expm1(-BETA * z.double()), BETA / torch.expm1(BETA * z.double())
    return relative(out, s * (product.double() + bias[:, None] + 2 * head * dz) + e * dz * q)


def test_the_step_alone_is_that_of_float64():
    assert elementwise_error(elementwise) < TOLERANCE["fp32"]


STEPS = {
    "bias of another sample": ("elementwise", "at // CHANNELS // rows_per_bias", "at // CHANNELS % rows_per_bias"),
    "head of another channel": ("elementwise", "head_squared + channel", "head_squared + (channel + 1) % CHANNELS"),
    "an unmasked rest": ("elementwise", "inside = at < total", "inside = at < total - 1"),
    "no curvature": ("activations", "+ e * (dz * curvature(z, beta))", ""),
    "a slope without its series": ("activations", "t < SERIES, series, 1 - tl", "t < 1e3, t, 1 - tl"),
}


@pytest.mark.parametrize("bug", STEPS)
def test_a_planted_bug_of_the_step_alone_is_seen(bug, tmp_path):
    name, old, new = STEPS[bug]
    if name == "elementwise":
        planted = mutant(elementwise, old, new, tmp_path)
    else:
        planted = mutant(elementwise, "import triton\n", "import triton\n", tmp_path)
        planted.finish = mutant(activations, old, new, tmp_path).finish
    assert caught(lambda: elementwise_error(planted))


SQUARES = {
    "the other factor forgotten": ("tiles", "product = wide * factor.to(tl.float32)", "product = wide * wide"),
    "no gain": ("tiles", "(product * gain)", "product"),
    "a square not squared": ("tiles", "product = wide * wide", "product = wide"),
}


@pytest.mark.parametrize("bug", SQUARES)
def test_a_planted_bug_of_products_is_seen_in_both_kernels(bug, tmp_path):
    load = mutant(tiles, *SQUARES[bug][1:], tmp_path).load_operand
    copies = []
    for module in (correlate, gradient):
        copies.append(mutant(module, "import triton\n", "import triton\n", tmp_path))
        copies[-1].load_operand = load
    errors = product_errors(*copies, "fp32", CORES[1], same="squared" in bug)
    assert min(errors) > TOLERANCE["fp32"]


@pytest.mark.parametrize("bug", [("l * WIDE, unit)", "l * WIDE, 2.0 * unit)"), ("WIDE, 1.0 / unit)", "WIDE, 1.0)")])
def test_a_planted_bug_of_the_units_is_seen(bug, tmp_path, monkeypatch):
    from lpn_fast.ops.backends.triton.device import launchers

    monkeypatch.setattr(launchers(), "units_of", mutant(units, *bug, tmp_path).units_of)
    assert max(faint_errors()) > 4e-3


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_of_the_correlation_is_seen(bug, tmp_path):
    planted = mutant(correlate, *BUGS[bug], tmp_path)
    error = projected_error if "projection" in bug else transposed_error
    assert caught(lambda: error(planted, "fp32", CORES[1]))


def test_a_planted_bug_of_the_tiles_is_seen(tmp_path):
    copy = mutant(correlate, "import triton\n", "import triton\n", tmp_path)
    copy.load_operand = mutant(tiles, "(h < height)", "(h < height + 1)", tmp_path).load_operand
    assert caught(lambda: forward_error(copy, "fp32", CORES[0]))
    copy = mutant(correlate, "import triton\n", "import triton\n", tmp_path)
    copy.load_columns = mutant(tiles, "first + 1, width - 1", "first, width - 1", tmp_path).load_columns
    assert caught(lambda: forward_error(copy, "fp32", CORES[0]))


def test_planted_bugs_of_gradient_and_assembly_are_seen(tmp_path):
    planted = mutant(gradient, "w0 * STRIDE + j - PADDING", "w0 * STRIDE + i - PADDING", tmp_path)
    assert caught(lambda: gradient_error(planted, "fp32", CORES[1]))
    planted = mutant(
        assemble, "reads += (tl.minimum(first + 1, height - 1) == h)", "reads += (first + 1 == h)", tmp_path
    )
    assert caught(lambda: assemble_error(planted, 2, 2))


def caught(error) -> bool:
    """Whether the error is seen: too large, NaN, or an access that the interpreter refuses."""
    try:
        value = error()
    except Exception:
        return True
    return not value < TOLERANCE["fp32"]
