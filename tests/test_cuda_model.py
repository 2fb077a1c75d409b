"""The CUDA kernels of dense networks, every lane and register of them, on the CPU model of the machine.

Truth is algebra/reference.py in float64, which differentiates psi automatically. Outputs and workspaces are filled
with NaN before each run.
"""

import math

import cuda_model
import pytest
import torch
from cases import relative
from cuda_model import H200, SMALL, Model

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout
from lpn_fast.algebra.spec import Spec, Stage

pytestmark = pytest.mark.skipif(cuda_model.COMPILER is None, reason="no C++ compiler to build the model with")

PROX = {"fp32": 2e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 6e-3}  # relative L2 error
SECOND_ORDER = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 2.5e-2}
SYMMETRY = {"fp32": 1e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 1e-2}
# shared memory for a warp or more, not for the weights of d17-h100
NO_ROOM = {p: (1, 110_000 if p in ("fp32", "tf32") else 60_000, 233_472) for p in cuda_model.PRECISIONS}

each_precision = pytest.mark.parametrize("precision", cuda_model.PRECISIONS)


@pytest.fixture(scope="module")
def library():
    return cuda_model.build()


def drawn(model: lf.LPN) -> lf.LPN:
    """The network with every parameter drawn; biases and c start at zero otherwise."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.rsplit(".", 1)[-1] in ("bias", "linear", "constant"):
                parameter.normal_(std=0.3)
    return model


def mixed() -> lf.LPN:
    """Stages of unequal width, one without skip and bias, heads of both kinds on several stages, no c."""
    stages = (
        Stage(40, heads=("squared",)),
        Stage(7, kernel=1, skip_kernel=0, bias=False),
        Stage(64, kernel=1, heads=("linear", "squared")),
        Stage(20, kernel=1, bias=False, heads=("linear",)),
    )
    return lf.LPN(Spec("dense", 5, stages, 5.0, 0.1, False, True))


NETWORKS = {
    "d1-h32": lambda: lf.MLPLPN(1, hidden=32, layers=2),
    "d2-h48": lambda: lf.MLPLPN(2, hidden=48, layers=2),
    "d3-h90": lambda: lf.MLPLPN(3, hidden=90, layers=1, squared_head=True),
    "d2-h64": lambda: lf.MLPLPN(2, hidden=64, layers=4, alpha=0.05),
    "d2-h64-shallow": lambda: lf.MLPLPN(2, hidden=64, layers=1),
    "d3-h50-squared": lambda: lf.MLPLPN(3, hidden=50, layers=2, squared_head=True),
    "d17-h100": lambda: lf.MLPLPN(17, hidden=100, layers=1),
    "one-stage": lambda: lf.MLPLPN(4, hidden=16, layers=0, alpha=0.2),
    "mixed": mixed,
}  # fmt: skip


class Case:
    """A network, its P, and inputs, in float32; the truth in float64."""

    def __init__(self, library, name: str, rows: int = 21, **options):
        torch.manual_seed(sum(map(ord, name)))
        self.spec = (network := drawn(NETWORKS[name]())).spec
        self.packed = network.packed().detach()
        self.model = Model(library, self.spec, self.packed, **options)
        self.x, self.v, self.w = torch.randn(3, rows, self.spec.channels)
        self.p = torch.randn(rows)

    @property
    def arguments(self):
        return self.spec, self.x.double(), self.packed.double(), None

    def wanted_vjp(self):
        return reference.vjp(*self.arguments, *(None if t is None else t.double() for t in (self.p, self.v)))

    def vjp_error(self, precision):
        """The larger relative error of the gradients in x and P; NaN if one is."""
        got = self.model.vjp(self.x, self.p, self.v, precision)
        return max(map(relative, got, self.wanted_vjp()), key=lambda error: math.inf if math.isnan(error) else error)


@each_precision
@pytest.mark.parametrize("name", NETWORKS)
def test_prox_is_the_gradient_of_psi(library, name, precision):
    case = Case(library, name)
    psi, f = case.model.prox(case.x, precision)
    assert relative(psi, reference.potential(*case.arguments)) <= PROX[precision]
    assert relative(f, reference.prox(*case.arguments)) <= PROX[precision]
    assert torch.equal(case.model.prox(case.x, precision, value=False)[1], f)


@each_precision
@pytest.mark.parametrize("name", NETWORKS)
def test_hvp_is_the_derivative_of_the_prox(library, name, precision):
    case = Case(library, name)
    psi, f, hv = case.model.hvp(case.x, case.v, precision)
    assert relative(hv, reference.hvp(*case.arguments, case.v.double())) <= SECOND_ORDER[precision]
    for got, want in zip((psi, f), case.model.prox(case.x, precision), strict=True):
        assert torch.equal(got, want)


@each_precision
@pytest.mark.parametrize("name", NETWORKS)
def test_vjp_is_the_double_backward(library, name, precision):
    case = Case(library, name)
    gx, gP = case.model.vjp(case.x, case.p, case.v, precision)
    want_gx, want_gP = case.wanted_vjp()
    assert relative(gx, want_gx) <= SECOND_ORDER[precision]
    for slot in layout(case.spec):  # a small part must not hide behind a large one
        got, want = gP[slot.offset : slot.end], want_gP[slot.offset : slot.end]
        assert relative(got, want) <= 2 * SECOND_ORDER[precision], slot.name


@pytest.mark.parametrize("cotangents", ["v", "p"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vjp_takes_either_cotangent_alone(library, precision, cotangents):
    case = Case(library, "mixed", rows=40)
    case.p, case.v = (case.p, None) if cotangents == "p" else (None, case.v)
    assert case.vjp_error(precision) <= SECOND_ORDER[precision]


@each_precision
@pytest.mark.parametrize("rows", [1, 7, 16, 129])
def test_any_number_of_rows_is_written_once(library, rows, precision):
    case = Case(library, "d3-h50-squared", rows)
    assert relative(case.model.prox(case.x, precision)[1], reference.prox(*case.arguments)) <= PROX[precision]
    assert case.vjp_error(precision) <= SECOND_ORDER[precision]


@each_precision
def test_wide_tiles_and_many_trips_give_the_same(library, precision):
    case = Case(library, "d2-h64-shallow", rows=290)
    for operation in ("prox", "hvp", "vjp"):
        plan = case.model.plan(operation, precision, len(case.x))
        assert plan["row_tiles"] == (2 if operation == "prox" else 1)
        assert plan["blocks"] * plan["warps"] // plan["team"] * 16 * plan["row_tiles"] < len(case.x)
    assert relative(case.model.prox(case.x, precision)[1], reference.prox(*case.arguments)) <= PROX[precision]
    hv = case.model.hvp(case.x, case.v, precision)[2]
    assert relative(hv, reference.hvp(*case.arguments, case.v.double())) <= SECOND_ORDER[precision]
    assert case.vjp_error(precision) <= SECOND_ORDER[precision]


@each_precision
def test_weights_read_through_the_caches_give_the_same_bits(library, precision):
    resident = Case(library, "d17-h100", rows=5)
    streamed = Case(library, "d17-h100", rows=5, device=NO_ROOM[precision])
    assert not streamed.model.plan("prox", precision, 5)["resident"]
    assert resident.model.plan("prox", precision, 5)["resident"]
    runs = [[*c.model.hvp(c.x, c.v, precision), *c.model.vjp(c.x, c.p, c.v, precision)] for c in (resident, streamed)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_precision
def test_warps_do_not_depend_on_their_order(library, precision):
    runs = []
    for backward in (False, True):
        case = Case(library, "d2-h64", rows=150, backward_order=backward)
        runs.append([*case.model.hvp(case.x, case.v, precision), *case.model.vjp(case.x, case.p, case.v, precision)])
    assert case.model.plan("vjp", precision, 150)["warps"] > 1
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_solves_do_not_depend_on_the_order_of_warps(library):
    runs = []
    for backward in (False, True):
        case = Case(library, "d17-h100", rows=20, backward_order=backward)
        runs.append(case.model.solve(0.1 * case.x, case.v, torch.full((20,), 0.5), 1e-5).values())
    assert case.model.plan("solve", "fp32", 20)["team"] > 1
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_gradients_are_sums_over_blocks(library):
    case = Case(library, "d2-h64", rows=150, device=(5, *SMALL[1:]))
    assert case.model.plan("vjp", "fp16", 150)["blocks"] >= 5
    assert case.vjp_error("fp16") <= SECOND_ORDER["fp16"]


@each_precision
def test_hessian_is_symmetric(library, precision):
    case = Case(library, "d17-h100", rows=32)
    hv, hw = (case.model.hvp(case.x, t, precision)[2].double() for t in (case.v, case.w))
    gap = ((case.w * hv).sum(1) - (case.v * hw).sum(1)).abs()
    assert (gap / (case.w.norm(dim=1) * hv.norm(dim=1))).max() <= SYMMETRY[precision]


@pytest.mark.parametrize("precision, step", [("fp32", 1e-5), ("tf32", 3e-2), ("fp16", 3e-2), ("bf16", 1e-1)])
def test_rounded_weights_are_another_exact_prox(library, precision, step):
    case = Case(library, "d3-h50-squared", rows=64)
    move = step * torch.nn.functional.normalize(case.v, dim=1)
    f, g = (case.model.prox(t, precision)[1].double() for t in (case.x, case.x + move))
    assert (((g - f) * ((case.x + move).double() - case.x.double())).sum(1) >= 0).all()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cotangents_of_any_size_keep_their_digits(library, precision, size):
    case = Case(library, "d2-h64")
    case.p, case.v = size * case.p, size * case.v
    # one row a thousand times smaller than the others
    case.v[3] *= 1e-3
    hv = case.model.hvp(case.x, case.v, precision)[2]
    want = reference.hvp(*case.arguments, case.v.double())
    assert relative(hv, want) <= SECOND_ORDER[precision]
    assert relative(hv[3], want[3]) <= SECOND_ORDER[precision]
    assert case.vjp_error(precision) <= SECOND_ORDER[precision]


@pytest.mark.parametrize("scale, precision", [(1e-9, "fp16"), (4.5e-5, "fp16"), (1e4, "bf16")])
def test_weights_of_any_size_fit_sixteen_bits(library, scale, precision):
    """Published networks start at exp(-10) = 4.5e-5, where half precision ends; powers of two bring them back.

    Nothing scales z itself: beyond 65504 / kappa it is bfloat16's.
    """
    case = Case(library, "d2-h64")
    for slot in layout(case.spec):
        if slot.nonnegative:
            case.packed[slot.offset : slot.end] *= scale if slot.name.endswith("2.core") else 1.0
            if slot.name.endswith("head"):
                case.packed[slot.offset : slot.end] *= 1 / scale
    f = case.model.prox(case.x, precision)[1]
    assert relative(f, reference.prox(*case.arguments)) <= PROX[precision]
    got, want = case.model.vjp(case.x, case.p, case.v, precision)[1], case.wanted_vjp()[1]
    assert relative(got, want) <= SECOND_ORDER[precision]


@each_precision
def test_saturated_units_stay_finite(library, precision):
    case = Case(library, "d2-h64")
    x = torch.tensor([[300.0, -300.0], [-80.0, -90.0], [0.0, 0.0], [1e-30, -1e-30], [40.0, 1e-3]])
    psi, f, hv = case.model.hvp(x, torch.ones_like(x), precision)
    gx, gP = case.model.vjp(x, torch.ones(5), torch.ones_like(x), precision)
    assert all(t.isfinite().all() for t in (psi, f, hv, gx, gP))
    assert relative(f, reference.prox(case.spec, x.double(), case.packed.double())) <= PROX[precision]


@each_precision
def test_nan_stays_in_its_row(library, precision):
    case = Case(library, "d3-h50-squared")
    case.x[5, 1] = torch.nan
    psi, f, hv = case.model.hvp(case.x, case.v, precision)
    others = torch.arange(len(case.x)) != 5
    assert psi[5].isnan() and f[5].isnan().all() and hv[5].isnan().all()
    assert all(t[others].isfinite().all() for t in (psi, f, hv))


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_what_shared_memory_cannot_keep_is_spilled_and_gives_the_same_bits(library, precision):
    runs = []
    for room in (110_000, 50_000):
        case = Case(library, "d17-h100", rows=40, device=(1, room, 233_472))
        plans = [case.model.plan(o, precision, 40) for o in ("hvp", "vjp")]
        assert all(plan["spilled"] == (room < 60_000) and not plan["resident"] for plan in plans)
        runs.append([*case.model.hvp(case.x, case.v, precision), *case.model.vjp(case.x, case.p, case.v, precision)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][:3], runs[1][:3], strict=True))
    # the sum over rows may be cut elsewhere
    assert all(relative(a, b.double()) <= 1e-6 for a, b in zip(runs[0][3:], runs[1][3:], strict=True))


def test_a_spilled_solve_is_the_same_solve(library):
    runs = []
    for room in (232_448, 70_000):
        case = Case(library, "d17-h100", rows=20, device=(1, room, 233_472))
        assert case.model.plan("solve", "fp32", 20)["spilled"] == (room == 70_000)
        runs.append(case.model.solve(0.1 * case.x, case.v, torch.full((20,), 0.5), 1e-5))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_empty_batch_has_no_gradient(library):
    case = Case(library, "d2-h64", rows=0)
    gx, gP = case.model.vjp(case.x, case.p, case.v, "fp32")
    assert gx.shape == (0, 2) and torch.equal(gP, torch.zeros_like(gP))


@each_precision
@pytest.mark.parametrize("hidden, dim, rows", [(200, 64, 9), (256, 2, 9), (136, 3, 70)])
def test_widest_networks_run(library, hidden, dim, rows, precision):
    """Few rows, and so many that all warps of a block share several row tiles; warps without columns, too."""
    torch.manual_seed(0)
    network = drawn(lf.MLPLPN(dim, hidden=hidden, layers=1))
    packed = network.packed().detach()
    model = Model(library, network.spec, packed, H200 if rows < 16 else SMALL)
    x, v = torch.randn(2, rows, dim)
    many = {"prox": 4, "hvp": 2, "vjp": 2} if precision in ("fp16", "bf16") else {"prox": 2, "hvp": 1, "vjp": 1}
    for operation, row_tiles in many.items():
        plan = model.plan(operation, precision, rows)
        assert (plan["team"], plan["row_tiles"]) == (8, 1 if rows < 16 else row_tiles)
    assert (
        relative(model.prox(x, precision)[1], reference.prox(network.spec, x.double(), packed.double()))
        <= PROX[precision]
    )
    got = model.hvp(x, v, precision)
    arguments = (network.spec, x.double(), packed.double(), None)
    assert relative(got[1], reference.prox(*arguments)) <= PROX[precision]
    assert relative(got[2], reference.hvp(*arguments, v.double())) <= SECOND_ORDER[precision]
    got, want = model.vjp(x, None, v, precision), reference.vjp(*arguments, None, v.double())
    assert all(relative(g, w) <= SECOND_ORDER[precision] for g, w in zip(got, want, strict=True))
