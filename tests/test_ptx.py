"""What Triton compiled for sm_80, run on a model of a block: fused kernels against float64, and planted faults seen."""

import os
import re

import pytest
import torch
from cases import relative

pytest.importorskip("triton", reason="Triton is not installed")

import ptx_model
import triton
from ptx_memory import Fault
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.spec import BORDERS
from lpn_fast.kernels.triton import (
    assemble,
    correlate,
    elementwise,
    explicit,
    explicit_gradient,
    frame,
    frame_gradient,
    gradient,
    special,
)
from lpn_fast.kernels.triton.launch import Config, Geometry
from lpn_fast.ops.backends.triton import TritonBackend, fused
from lpn_fast.ops.backends.triton import explicit as prior
from lpn_fast.ops.explicit import plain
from lpn_fast.ops.explicit.level import Level

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter"
)
ELEMENT = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int32: "*i32"}


class OnModel:
    """A kernel whose launches compile for sm_80, as Triton's own launcher would have it, and run on the model."""

    compiled: dict = {}

    def __init__(self, kernel, edit=lambda ptx: ptx):
        self.kernel, self.edit = kernel, edit

    def __getitem__(self, grid):
        def launch(*values, num_warps=4, num_stages=3, **constants):
            signature, attributes, arguments = {}, {}, []
            given = dict(zip(self.kernel.arg_names, values, strict=False)) | constants
            for index, name in enumerate(self.kernel.arg_names):
                value = given[name]
                if name in constants or value is None or (isinstance(value, int) and value == 1):
                    signature[name], constants[name] = "constexpr", value
                    continue
                arguments.append(value)
                aligned = value.data_ptr() % 16 == 0 if isinstance(value, torch.Tensor) else value % 16 == 0
                if isinstance(value, torch.Tensor):
                    signature[name] = ELEMENT[value.dtype]
                else:
                    signature[name] = "fp32" if isinstance(value, float) else "i32"
                if aligned and not isinstance(value, float):
                    attributes[index,] = [["tt.divisibility", 16]]
            key = (self.kernel, str(signature), str(attributes), str(constants), num_warps)
            if key not in self.compiled:
                places = {(self.kernel.arg_names.index(name),): value for name, value in constants.items()}
                source = ASTSource(self.kernel, signature, places, attributes)
                options = {"num_warps": num_warps, "num_stages": num_stages}
                self.compiled[key] = triton.compile(source, GPUTarget("cuda", 80, 32), options)
            made = self.compiled[key]
            ptx_model.launch(self.edit(made.asm["ptx"]), made.metadata.shared, num_warps, grid, [*arguments, 0, 0])

        return launch


@pytest.fixture
def on_model(monkeypatch):
    """Puts the fused kernels onto the model, their PTX edited on request."""
    real = {"frame": frame.frame_kernel, "explicit": explicit.explicit_kernel, "fold": frame.fold_kernel}

    sums = {frame_gradient: "frame_gradient_kernel", explicit_gradient: "explicit_gradient_kernel"}
    sums = {module: (name, getattr(module, name)) for module, name in sums.items()}
    product = gradient.gradient_kernel

    def put(edit=lambda ptx: ptx):
        monkeypatch.setattr(gradient, "gradient_kernel", OnModel(product))
        for module, (name, kernel) in sums.items():
            monkeypatch.setattr(module, name, OnModel(kernel, edit))
        monkeypatch.setattr(frame, "frame_kernel", OnModel(real["frame"], edit))
        monkeypatch.setattr(explicit, "explicit_kernel", OnModel(real["explicit"], edit))
        for module in (frame, explicit):
            monkeypatch.setattr(module, "fold_kernel", OnModel(real["fold"]))

    put()
    return put


def error(precision="fp32", hessian=False, size=(1, 3, 25), border="zero"):
    """Relative error of a small mixture's f, or H v."""
    torch.manual_seed(1)
    spec = (model := lf.MixtureLPN(1, kernel=3, experts=19, border=border)).spec
    x, v = 4 * torch.randn(2, size[0], 1, *size[1:])
    features = torch.rand(size[0], len(spec.noise_levels))
    packed = model.packed().detach()
    packed = packed.half().float() if precision == "fp16" else packed
    wide = spec, x.double(), packed.double(), features.double()
    if hessian:
        return relative(fused.hvp(spec, x, packed, features, v, precision), reference.hvp(*wide, v.double()))
    psi, f = fused.value_prox(spec, x, packed, features, True, precision)
    return max(relative(psi, reference.potential(*wide)), relative(f, reference.prox(*wide)))


@pytest.mark.parametrize("precision, most", [("fp32", 2e-6), ("fp16", 4e-4)])
def test_the_compiled_kernel_of_a_mixture_is_right(on_model, precision, most):
    assert error(precision) < most


def test_its_hessian_products_are_right(on_model):
    assert error(hessian=True) < 1e-5


def test_it_is_right_where_the_border_is_mirrored(on_model):
    assert error(border="mirror") < 2e-6
    assert error(border="mirror", hessian=True) < 1e-5


@pytest.mark.parametrize("border", BORDERS)
def test_its_gradients_of_the_weights_are_right(on_model, border):
    torch.manual_seed(1)
    spec = (model := lf.MixtureLPN(1, kernel=3, experts=19, border=border)).spec
    x, v = 4 * torch.randn(2, 1, 1, 3, 14)
    features, packed = torch.rand(1, len(spec.noise_levels)), model.packed().detach()
    found = fused.vjp(spec, x, packed, features, None, v, "fp32")
    want = reference.vjp(spec, x.double(), packed.double(), features.double(), None, v.double())
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, want, strict=True))


def test_the_compiled_kernel_of_an_explicit_prior_is_right(on_model):
    made = Level(1, 3, 19).trial((1, 1, 3, 25), None, "fp32", torch.device("cpu"), torch.Generator().manual_seed(0))
    truth, found = made.double().everything(plain), made.everything(prior)
    assert all(relative(found[what], truth[what]) < 1e-5 for what in truth)


def test_the_compiled_kernels_of_stages_are_right(monkeypatch):
    for module in (assemble, correlate, elementwise):
        name = f"{module.__name__.rsplit('.', 1)[-1]}_kernel"
        monkeypatch.setattr(module, name, OnModel(getattr(module, name)))
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=16, strides=(2,), skip_kernel=3)
    x, packed = torch.randn(1, 1, 5, 9), model.packed().detach()
    psi, f, _ = TritonBackend().evaluate(model.spec, x, packed, None, True, True, "fp32")
    wide = model.spec, x.double(), packed.double(), None
    assert relative(psi, reference.potential(*wide)) < 2e-6 and relative(f, reference.prox(*wide)) < 2e-6


def weight_gradients(monkeypatch, precision, dtype, edit=lambda ptx: ptx) -> float:
    """Relative error of the gradient of a small stage's weights."""
    monkeypatch.setattr(gradient, "gradient_kernel", OnModel(gradient.gradient_kernel, edit))
    torch.manual_seed(0)
    e, z = torch.randn(1, 5, 5, 16).to(dtype), torch.randn(1, 9, 10, 16).to(dtype)  # [N, h, w, H]
    config, geometry = Config(32, 16, 16, 16, 4, 3), Geometry(kernel=3, stride=2, padding=1)
    found = gradient.gradient([(e, z)], geometry, config, precision, processors=1)
    images = z.permute(0, 3, 1, 2).double(), e.permute(0, 3, 1, 2).double()
    want = torch.nn.grad.conv2d_weight(images[0], (16, 16, 3, 3), images[1], 2, 1)
    return relative(found.permute(3, 2, 0, 1), want)


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("fp16", torch.float16)])
def test_the_compiled_kernel_of_weight_gradients_is_right(monkeypatch, precision, dtype):
    assert weight_gradients(monkeypatch, precision, dtype) < 2e-6


def test_a_copy_that_is_not_waited_for_is_seen(monkeypatch):
    def one_group_less(ptx):
        assert "cp.async.wait_group" in ptx
        return re.sub(r"(cp\.async\.wait_group\s+)(\d+)", lambda found: f"{found[1]}{int(found[2]) + 1}", ptx)

    with pytest.raises(Fault, match="under way"):
        weight_gradients(monkeypatch, "fp16", torch.float16, one_group_less)


def test_the_kernel_that_measures_special_functions_counts_what_it_evaluates(monkeypatch):
    launched = OnModel(special.exponentials_kernel)
    monkeypatch.setattr(special, "exponentials_kernel", launched)
    assert special.exponentials(torch.empty(0), programs=2, chain=3) == 2 * 3 * special.BLOCK
    (made,) = (made for key, made in launched.compiled.items() if key[0] is launched.kernel)
    per_thread = special.BLOCK // (4 * 32)
    assert made.asm["ptx"].count("ex2.approx") in (per_thread, 3 * per_thread)  # a loop, or unrolled


def nth(pattern, replacement, count=1):
    """An edit of the first places of a pattern in the code."""

    def edit(ptx):
        assert re.search(pattern, ptx), f"{pattern!r} is not in the code any more: plant the fault elsewhere"
        return re.sub(pattern, replacement, ptx, count=count)

    return edit


FAULTS = {
    "a barrier too few": nth(r"\n\tbar\.sync \t0;(?=\n\tldmatrix|\n(?:[^\n]*\n){0,3}\tldmatrix)", "\n"),
    "a matrix not transposed": nth(r"\.x4\.trans\.", ".x4."),
    "another row of shared memory": nth(r"(st\.shared\.v4\.b32 \t\[%r\d+)\]", r"\1+16]"),
    "fragments in another order": nth(r"(mma\.sync[^{]*\{[^}]*\}, \{) (%r\d+), (%r\d+),", r"\1 \3, \2,"),
    "a mask forgotten": nth(r"@%p\d+ st\.global", "st.global"),
    "another lane": nth(r"(shfl\.sync\.bfly\.b32 \t%r\d+, %r\d+), 2,", r"\1, 1,"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_lowering_is_seen(on_model, fault):
    on_model(FAULTS[fault])
    try:
        found = error("fp16")
    except Fault:
        return
    assert not found < 4e-4


def test_what_the_model_does_not_know_is_no_result(on_model):
    for known, other in ((r"ex2\.approx\.ftz\.f32", "tanh.approx.f32"), (r"mul\.f32", "mul.sat.f32")):
        on_model(nth(known, other))
        with pytest.raises(Fault, match=f"not known here: {other.split('.')[0]}"):
            error("fp16")
