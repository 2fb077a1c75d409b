"""The compiled CPU kernels, called raw, against float64: formulas, and the specification of dense networks.

The parameters are float32 numbers taken exactly into float64, so every difference is the kernel's. Outputs
are filled with NaN before each call: what is not written cannot pass.
"""

import subprocess
import sys

import pytest
import torch
from cases import relative

from lpn_fast import _cpu
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.ops.packing import parameter_table

PROX_TOLERANCE = 2e-6  # relative L2, fp32
GRADIENT_TOLERANCE = 1e-5
ULP = 2.0**-23
TINY = torch.finfo(torch.float32).tiny

ROWS = [0, 1, 7, 129]
SHAPES = [(1, 50), (3, 16), (4, 16), (18, 33), (64, 64), (3, 100), (2, 256)]  # (dim, width)

pytestmark = pytest.mark.usefixtures("isa", "one_thread", "seed_zero")


def address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def unwritten(*shape):
    return torch.full(shape, float("nan"))


def relative_ulps(got, want):
    """Largest elementwise error in units of 2^-23 of the true value."""
    return ((got.double() - want).abs() / want.abs()).max().item() / ULP


# ---- activations -------------------------------------------------------------------------------------------


def _softplus(u, beta):
    return torch.logaddexp(beta * u, torch.zeros_like(u)) / beta


def _slope(z, beta):
    return -torch.expm1(-beta * z)


def _curvature_ratio(z, beta):
    return torch.where(z > 0, beta / torch.expm1(beta * z), 0.0)


def softplus(u, skip=None, bias=None, rows_per_bias=1, beta=1.0, threads=1, out=None):
    out = unwritten(*u.shape) if out is None else out
    rows, channels = u.shape
    _cpu.softplus(address(u), address(skip), address(bias), rows_per_bias, address(out), rows, channels, beta, threads)
    return out


def slope_mul(a, z, head=None, head_sq=None, beta=1.0, threads=1, out=None):
    out = unwritten(*z.shape) if out is None else out
    operands = map(address, (a, z, head, head_sq, out))
    _cpu.slope_mul(*operands, *z.shape, beta, threads)
    return out


def tangent(a, b, z, beta=1.0, threads=1, out=None):
    out = unwritten(*z.shape) if out is None else out
    _cpu.tangent(*map(address, (a, b, z, out)), *z.shape, beta, threads)
    return out


def adjoint(a, z, e, dz, head_sq=None, beta=1.0, threads=1, out=None):
    out = unwritten(*z.shape) if out is None else out
    _cpu.adjoint(*map(address, (a, z, e, dz, head_sq, out)), *z.shape, beta, threads)
    return out


ACTIVATION_SHAPES = [(0, 5), (1, 1), (7, 3), (33, 16), (129, 50), (600, 64), (12, 257)]


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("shape", ACTIVATION_SHAPES)
def test_activation_passes_follow_their_formulas(shape, threads):
    beta = 10.0
    u, skip, a, b, e, dz = torch.randn(6, *shape)
    bias, head, head_sq = torch.rand(3, shape[1])
    z = _softplus(u.double(), beta).float()
    s, q = _slope(z.double(), beta), _curvature_ratio(z.double(), beta)
    cases = [
        (softplus(u, beta=beta, threads=threads), _softplus(u.double(), beta)),
        (softplus(u, skip, beta=beta, threads=threads), _softplus(u.double() + skip, beta)),
        (
            softplus(u, skip, bias[None], max(1, shape[0]), beta, threads),
            _softplus(u.double() + skip + bias, beta),
        ),
        (slope_mul(a, z, beta=beta, threads=threads), a * s),
        (slope_mul(None, z, head, beta=beta, threads=threads), head * s),
        (slope_mul(a, z, head, head_sq, beta, threads), (a + head + 2.0 * head_sq * z.double()) * s),
        (slope_mul(None, z, None, head_sq, beta, threads), 2.0 * head_sq * z.double() * s),
        (tangent(a, None, z, beta, threads), a * s),
        (tangent(a, b, z, beta, threads), (a.double() + b) * s),
        (adjoint(None, z, e, dz, None, beta, threads), e.double() * dz * q),
        (adjoint(a, z, e, dz, None, beta, threads), a * s + e.double() * dz * q),
        (
            adjoint(a, z, e, dz, head_sq, beta, threads),
            (a + 2.0 * head_sq * dz.double()) * s + e.double() * dz * q,
        ),
    ]
    for index, (got, want) in enumerate(cases):
        assert relative(got, want) <= PROX_TOLERANCE, f"case {index}"


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (1, 1, 1), (2, 7, 3), (3, 33, 16), (2, 600, 98), (1, 9, 1500)])
def test_heads_are_summed_in_double_sample_by_sample(shape, threads):
    z = torch.rand(shape)  # [samples, rows, channels]
    head, head_sq = torch.rand(2, shape[2])
    before = torch.rand(shape[0], dtype=torch.float64)
    for w, g in ((head, None), (None, head_sq), (head, head_sq)):
        psi = before.clone()
        _cpu.heads(*map(address, (z, w, g, psi)), *shape, threads)
        terms = z.double() * ((0 if w is None else w) + (0 if g is None else g * z.double()))
        assert torch.allclose(psi, before + terms.sum((1, 2)), rtol=2e-7, atol=0)


@pytest.mark.parametrize("shape", [(2, 7, 3), (3, 33, 16), (1, 9, 1500)])
def test_heads_of_bfloat16_are_the_heads_of_what_it_holds(shape):
    z = torch.rand(shape).bfloat16()
    head, head_sq = torch.rand(2, shape[2])
    psi = torch.zeros(shape[0], dtype=torch.float64)
    _cpu.heads_bfloat16(*map(address, (z, head, head_sq, psi)), *shape, 2)
    terms = z.double() * (head + head_sq * z.double())
    assert torch.allclose(psi, terms.sum((1, 2)), rtol=2e-7, atol=0)


def test_heads_of_a_million_terms_keep_their_digits():
    z, head = torch.full((1, 16384, 64), 0.1), torch.ones(64)
    psi = torch.zeros(1, dtype=torch.float64)
    _cpu.heads(address(z), address(head), 0, address(psi), *z.shape, 1)
    assert psi.item() == pytest.approx(z.double().sum().item(), rel=1e-7)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("rows_per_bias", [1, 3, 50, 5000])
def test_each_group_of_rows_has_its_own_bias(rows_per_bias, threads):
    groups, channels = 4, 6
    u = torch.randn(groups * rows_per_bias, channels)
    bias = torch.randn(groups, channels)
    want = _softplus(u.double() + bias.double().repeat_interleave(rows_per_bias, 0), 2.0)
    assert relative(softplus(u, None, bias, rows_per_bias, 2.0, threads), want) <= PROX_TOLERANCE


@pytest.mark.parametrize("offset", [1, 3])
def test_operands_may_lie_at_any_float_address(offset):
    def shifted(shape):
        return torch.randn(offset + shape[0] * shape[1])[offset:].view(shape)

    shape = (9, 37)
    u, skip, out = shifted(shape), shifted(shape), shifted(shape)
    softplus(u, skip, out=out)
    assert relative(out, _softplus(u.double() + skip, 1.0)) <= PROX_TOLERANCE


@pytest.mark.parametrize("shape", [(5, 3), (40, 50)])
def test_output_may_be_an_input(shape):
    a, b, e, dz = torch.randn(4, *shape)
    z = torch.rand(shape)
    head_sq = torch.rand(shape[1])
    passes = [
        (lambda out, *t: softplus(*t, out=out), (a, b)),
        (lambda out, *t: slope_mul(*t, None, head_sq, out=out), (a, z)),
        (lambda out, *t: tangent(*t, out=out), (a, b, z)),
        (lambda out, *t: adjoint(*t, head_sq, out=out), (a, z, e, dz)),
    ]
    for run, operands in passes:
        want = run(None, *operands)
        for position in range(len(operands)):
            copies = [operand.clone() for operand in operands]
            assert torch.equal(run(copies[position], *copies), want)


def test_softplus_is_accurate_to_three_ulp():
    u = torch.cat([torch.linspace(-86, 30, 200_003), torch.randn(1000) * 1e-4])[None]
    assert relative_ulps(softplus(u), _softplus(u.double(), 1.0)) <= 3


@pytest.mark.parametrize("beta", [1.0, 10.0, 100.0])
def test_slope_keeps_its_relative_accuracy_for_tiny_z(beta):
    z = torch.cat([torch.logspace(-36, 1.5, 100_003), torch.linspace(0, 2, 100_001)[1:]])[None]
    s = slope_mul(torch.ones_like(z), z, beta=beta)
    assert relative_ulps(s, _slope(z.double(), beta)) <= 3


def test_curvature_ratio_keeps_its_relative_accuracy():
    z = torch.cat([torch.logspace(-37, 1.9, 100_003), torch.linspace(0, 80, 100_001)[1:]])[None]
    one = torch.ones_like(z)
    assert relative_ulps(adjoint(None, z, one, one), _curvature_ratio(z.double(), 1.0)) <= 5


@pytest.mark.parametrize("beta", [0.5, 10.0, 100.0])
def test_extreme_pre_activations_stay_finite(beta):
    u = torch.tensor([[-1e38, -1e4, -100.0, -1e-40, 0.0, 1e-40, 100.0, 1e4, 1e38]])
    z = softplus(u, beta=beta)
    assert torch.allclose(z.double(), _softplus(u.double(), beta), rtol=1e-5, atol=1e-37)
    one = torch.ones_like(z)
    s = slope_mul(one, z, beta=beta)
    assert torch.allclose(s.double(), _slope(z.double(), beta), rtol=1e-6, atol=1e-37)
    assert adjoint(one, z, one, one, beta=beta).isfinite().all()


def test_curvature_of_a_vanished_activation_is_zero_not_nan():
    z = torch.tensor([[0.0, 1e-45, 1e-40, TINY / 2]])
    e = dz = torch.ones_like(z)
    assert torch.equal(adjoint(None, z, e, dz, beta=100.0), torch.zeros_like(z))


def test_infinite_activations_have_slope_one():
    inf = torch.full((1, 3), float("inf"))
    one = torch.ones(1, 3)
    assert torch.equal(softplus(inf), inf)
    assert torch.equal(softplus(-inf), torch.zeros(1, 3))
    assert torch.equal(slope_mul(one, inf), one)


@pytest.mark.parametrize("position", [0, 5, 16, 18])  # in whole vectors and in the tail
def test_nan_comes_out_where_it_went_in(position):
    def poisoned(tensor):
        tensor = tensor.clone()
        tensor[0, position] = float("nan")
        return tensor

    one = torch.ones(1, 19)
    outputs = [
        softplus(poisoned(one)),
        softplus(one, poisoned(one)),
        slope_mul(poisoned(one), one),
        slope_mul(one, poisoned(one)),
        tangent(one, poisoned(one), one),
        tangent(one, one, poisoned(one)),
        adjoint(one, poisoned(one), one, one),
        adjoint(one, one, poisoned(one), one),
        adjoint(one, one, one, poisoned(one)),
    ]
    for out in outputs:
        assert out.isnan().nonzero().tolist() == [[0, position]]


# ---- dense network -----------------------------------------------------------------------------------------


class DenseNetwork:
    """A random network in float32, and its truth in float64: algebra/reference.py, by automatic differentiation.

    Parameters
    ----------
    dim : int
    widths : list of int
        Units of each stage.
    full : bool
        True: linear and squared heads on every stage, biases, c and c0. False: as little as there can be: one
        linear head, no later skips, no bias after the first stage, no c, no c0.
    """

    def __init__(self, dim, widths, full=True, beta=10.0, alpha=0.1):
        stages = []
        for l, width in enumerate(widths):
            heads = ("linear", "squared") if full else ("linear",) if l == len(widths) - 1 else ()
            whole = full or l == 0
            stages.append(Stage(width, kernel=int(l > 0), skip_kernel=int(whole), bias=whole, heads=heads))
        self.spec = Spec("dense", dim, tuple(stages), beta, alpha, linear=full, constant=full)
        self.table = parameter_table(self.spec).clone()
        self.P = torch.cat([self._drawn(slot).flatten() for slot in layout(self.spec)])  # [numel]

    @staticmethod
    def _drawn(slot):
        name = slot.name.rpartition(".")[2]
        if name in ("linear", "constant"):
            return torch.randn(slot.shape)
        if slot.nonnegative:
            return torch.rand(slot.shape) * (2 if name == "core" else 1) / slot.shape[-1]
        return torch.randn(slot.shape) * (0.3 if name == "bias" else slot.shape[-1] ** -0.5)

    def truth(self, x, p=None, v=None):
        """psi, f, and the gradient of  sum(p psi + <v, f>)  in x and P."""
        x, P, p, v = (None if t is None else t.double() for t in (x, self.P, p, v))
        gradients = (None, None) if p is None and v is None else reference.vjp(self.spec, x, P, None, p, v)
        return reference.potential(self.spec, x, P), reference.prox(self.spec, x, P), *gradients

    def value_prox(self, x, threads=1, want_psi=True, tape=None):
        psi, f = unwritten(len(x)) if want_psi else None, unwritten(*x.shape)
        results = map(address, (psi, f, tape))
        _cpu.mlp_value_prox(*map(address, (x, self.P, self.table)), *self._sizes(x), *results, threads)
        return psi, f

    def tape(self, x, threads=1):
        """What the prox leaves behind at x [rows, d]."""
        blocks = -(-len(x) // _cpu.mlp_block_rows)
        tape = unwritten(2, blocks, sum(stage.width for stage in self.spec.stages), _cpu.mlp_block_rows)
        self.value_prox(x, threads, tape=tape)
        return tape

    def hvp(self, x, v, threads=1, tape=None):
        out = unwritten(*x.shape)
        operands = map(address, (x, self.P, v, self.table))
        _cpu.mlp_hvp(*operands, *self._sizes(x), address(out), address(tape), threads)
        return out

    def vjp(self, x, p, v, threads=1, want_gx=True, tape=None):
        gx, gP = unwritten(*x.shape) if want_gx else None, unwritten(self.P.numel())
        operands = map(address, (x, self.P, p, v, self.table))
        results = address(gx), address(gP), gP.numel(), address(tape)
        _cpu.mlp_vjp(*operands, *self._sizes(x), *results, threads)
        return gx, gP

    def _sizes(self, x):
        return len(x), self.spec.channels, len(self.spec.stages), self.spec.beta, self.spec.alpha


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dim, width", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_prox_is_the_gradient_of_psi(rows, dim, width, full):
    net = DenseNetwork(dim, [width] * 4, full)
    x = torch.randn(rows, dim)
    want_psi, want_f, _, _ = net.truth(x)
    for threads in (1, 2, 8):
        psi, f = net.value_prox(x, threads)
        assert relative(psi, want_psi) <= PROX_TOLERANCE
        assert relative(f, want_f) <= PROX_TOLERANCE
    assert torch.equal(net.value_prox(x, want_psi=False)[1], f)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dim, width", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_hvp_is_the_derivative_of_the_prox(rows, dim, width, full):
    net = DenseNetwork(dim, [width] * 4, full)
    x, v = torch.randn(2, rows, dim)
    _, _, want, _ = net.truth(x, v=v)
    for threads in (1, 2, 8):
        assert relative(net.hvp(x, v, threads), want) <= GRADIENT_TOLERANCE
        taped = net.hvp(x, v, threads, tape=net.tape(x, threads))
        assert relative(taped, want) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("cotangents", ["v", "p", "pv"])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dim, width", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_vjp_is_the_double_backward(rows, dim, width, full, cotangents):
    net = DenseNetwork(dim, [width] * 4, full)
    x, v = torch.randn(2, rows, dim)
    p = torch.randn(rows)
    p, v = p if "p" in cotangents else None, v if "v" in cotangents else None
    _, _, want_gx, want_gP = net.truth(x, p, v)
    for tape in (net.tape(x, threads=2), None):
        gx, gP = net.vjp(x, p, v, threads=2, tape=tape)
        assert relative(gx, want_gx) <= GRADIENT_TOLERANCE
        assert relative(gP, want_gP) <= GRADIENT_TOLERANCE
        for slot in layout(net.spec):  # a small part must not hide behind a large one
            got, want = gP[slot.offset : slot.end], want_gP[slot.offset : slot.end]
            assert relative(got, want) <= 2 * GRADIENT_TOLERANCE, slot.name
    assert torch.equal(net.vjp(x, p, v, threads=2, want_gx=False)[1], gP)


@pytest.mark.parametrize("widths", [[1], [5], [16, 50, 7], [3, 100, 2, 33]])
def test_stages_may_differ_in_width(widths):
    net = DenseNetwork(5, widths)
    x, v = torch.randn(2, 70, 5)
    p = torch.randn(70)
    _, want_f, want_gx, want_gP = net.truth(x, p, v)
    gx, gP = net.vjp(x, p, v)
    assert relative(net.value_prox(x)[1], want_f) <= PROX_TOLERANCE
    assert relative(gx, want_gx) <= GRADIENT_TOLERANCE
    assert relative(gP, want_gP) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("beta", [1.0, 100.0])
def test_sharp_and_soft_activations(beta):
    net = DenseNetwork(8, [64] * 5, beta=beta, alpha=0.0)
    x, v = torch.randn(2, 200, 8)
    _, want_f, want_hv, want_gP = net.truth(x, v=v)
    assert relative(net.value_prox(x)[1], want_f) <= PROX_TOLERANCE
    for tape in (None, net.tape(x)):
        assert relative(net.hvp(x, v, tape=tape), want_hv) <= GRADIENT_TOLERANCE
        assert relative(net.vjp(x, None, v, tape=tape)[1], want_gP) <= GRADIENT_TOLERANCE


def test_hessian_is_symmetric():
    net = DenseNetwork(7, [50] * 4)
    x, u, v = torch.randn(3, 129, 7)
    hu, hv = net.hvp(x, u).double(), net.hvp(x, v).double()
    asymmetry = ((u * hv - v * hu).sum(1)).abs() / (u.norm(dim=1) * hv.norm(dim=1)).clamp_min(TINY)
    assert asymmetry.max() <= 1e-6


def test_parameter_gradient_is_the_same_for_any_number_of_threads():
    net = DenseNetwork(3, [16, 50])
    x, v = torch.randn(2, 64 * 150 + 9, 3)  # more blocks of rows than partial gradients, and no multiple
    p = torch.randn(len(x))
    first = net.vjp(x, p, v, threads=1)
    for got, want in zip(first, net.truth(x, p, v)[2:], strict=True):
        assert relative(got, want) <= GRADIENT_TOLERANCE
    for threads in (1, 2, 3, 8):
        again = net.vjp(x, p, v, threads)
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


def test_rows_do_not_depend_on_their_neighbours():
    net = DenseNetwork(3, [50] * 3)
    x, v = torch.randn(2, 70, 3)
    _, f = net.value_prox(x)
    hv = net.hvp(x, v)
    for row in (0, 20, 69):
        one = x[row : row + 1].clone()
        assert torch.allclose(net.value_prox(one)[1][0], f[row], rtol=1e-6, atol=1e-6)
        assert torch.allclose(net.hvp(one, v[row : row + 1].clone())[0], hv[row], rtol=1e-5, atol=1e-5)


def test_gradient_without_cotangents_is_zero():
    net = DenseNetwork(3, [16] * 2)
    gx, gP = net.vjp(torch.randn(5, 3), None, None)
    assert not gx.any() and not gP.any()


def test_prox_may_overwrite_its_input():
    net = DenseNetwork(3, [16] * 2)
    x = torch.randn(129, 3)
    _, want = net.value_prox(x)
    _cpu.mlp_value_prox(*map(address, (x, net.P, net.table)), *net._sizes(x), 0, address(x), 0, 2)
    assert torch.equal(x, want)


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e6])
def test_far_points_stay_finite_and_right(scale):
    net = DenseNetwork(3, [50] * 4, full=False)
    x, v = torch.randn(2, 65, 3)
    x *= scale
    _, want_f, _, _ = net.truth(x)
    assert relative(net.value_prox(x)[1], want_f) <= PROX_TOLERANCE
    assert net.hvp(x, v).isfinite().all()
    assert net.vjp(x, None, v)[1].isfinite().all()


def test_nan_in_one_sample_stays_in_that_sample():
    net = DenseNetwork(3, [16] * 3)
    x, v = torch.randn(2, 70, 3)
    x[5, 1] = float("nan")
    psi, f = net.value_prox(x)
    for out in (psi[:, None], f, net.hvp(x, v), net.vjp(x, None, v)[0]):
        assert out[5].isnan().all()
        assert out[torch.arange(70) != 5].isfinite().all()
    bias = next(slot for slot in layout(net.spec) if slot.name == "stages.0.bias")
    assert net.vjp(x, None, v)[1][bias.offset].isnan()


# ---- the module itself -------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="isa must be one of .*baseline.*, got 'mmx'"):
        _cpu.set_isa("mmx")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        softplus(one, threads=0)
    with pytest.raises(ValueError, match="beta must be positive and finite, got -1"):
        softplus(one, beta=-1.0)
    with pytest.raises(ValueError, match="rows_per_bias must be at least 1, got 0"):
        softplus(one, bias=one, rows_per_bias=0)
    with pytest.raises(ValueError, match="z must be an address, got 0"):
        _cpu.tangent(address(one), 0, 0, address(one), 1, 1, 1.0, 1)
    net = DenseNetwork(3, [4, 4])
    net.table[0] = 0
    with pytest.raises(ValueError, match="table must give stage 0 a width of at least 1, got 0"):
        net.value_prox(torch.ones(1, 3))
    net = DenseNetwork(3, [4, 4])
    net.P = net.P[:-1].clone()
    with pytest.raises(ValueError, match="table must stay within numel"):
        net.vjp(torch.ones(1, 3), None, torch.ones(1, 3))


def in_fresh_python(code, **environment):
    """Runs code with `_cpu` loaded from its file, so that neither torch nor the package is imported."""
    load = (
        "import importlib.util as u\n"
        f"s = u.spec_from_file_location('_cpu', {_cpu.__file__!r})\n"
        "_cpu = u.module_from_spec(s); s.loader.exec_module(_cpu)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", load + code], env=environment, capture_output=True, text=True, timeout=60
    )


def test_module_works_without_torch_on_one_thread():
    code = (
        "import ctypes, sys\n"
        "u = (ctypes.c_float * 40)(*range(40)); a = ctypes.addressof(u)\n"
        "_cpu.softplus(a, 0, 0, 1, a, 10, 4, 1.0, 8)\n"
        "assert 'torch' not in sys.modules and not _cpu.threads_available()\n"
        "assert abs(u[0] - 0.6931472) < 1e-6 and abs(u[39] - 39) < 1e-5\n"
    )
    done = in_fresh_python(code)
    assert done.returncode == 0, done.stderr


def test_threads_come_from_the_runtime_torch_loaded():
    assert _cpu.threads_available()


def test_environment_chooses_the_instruction_set(isa):
    assert in_fresh_python("print(_cpu.isa())", LPN_FAST_ISA=isa).stdout.strip() == isa
    wrong = in_fresh_python("", LPN_FAST_ISA="mmx")
    assert "ImportError: LPN_FAST_ISA must be one of" in wrong.stderr
