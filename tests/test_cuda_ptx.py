"""What nvcc compiled of the CUDA kernels, run on a model of a block: against float64, with faults planted in the PTX.

The network is small and fits nothing: 21 rows are a tile of 16 and a part of one, 33 inputs and 20 units are padded.
`SMALL` has room for the weights in shared memory, `NO_ROOM` reads them through the caches, in two blocks whose
gradients are summed, and in 32 bits keeps what the rows need in device memory as well.
"""

import re

import cuda_model
import cuda_ptx
import pytest
import torch
from cases import relative
from cuda_model import SMALL, Model
from cuda_ptx import NARROWEST, SOLVER, STREAMED, Compiled, compiled
from ptx_memory import Fault
from test_cuda_model import PROX, SECOND_ORDER

import lpn_fast as lf
from lpn_fast.algebra import reference

pytestmark = [
    pytest.mark.skipif(cuda_ptx.NVCC is None, reason="no nvcc to compile the kernels with"),
    pytest.mark.skipif(cuda_model.COMPILER is None, reason="no C++ compiler to build the planner with"),
]
NO_ROOM = {"fp32": (1, 11_000, 233_472), "fp16": (1, 17_000, 233_472)}
ONE_BLOCK = (1, 41_000, 42_000)  # of two teams
CROWDED = (1, 100_000, 101_000)  # one of five
# what is compiled: every sweep, every way to multiply, both places of the weights
KERNELS = {
    "fp32": [("hvp", NARROWEST), ("vjp", STREAMED), ("solve", SOLVER)],
    "fp16": [("prox", NARROWEST), ("vjp", NARROWEST), ("hvp", STREAMED)],
    "tf32": [("vjp", NARROWEST)],
    "bf16": [("prox", NARROWEST)],
}
SOURCE = {"fp32": 1e-6, "tf32": 1e-5, "fp16": 1e-5, "bf16": 1e-5}
CASES = [(precision, *kernel) for precision, kernels in KERNELS.items() for kernel in kernels if kernel[0] != "solve"]


@pytest.fixture(scope="module")
def library():
    return cuda_model.build()


class Case:
    """A network with everything drawn, inputs, and the truth in float64."""

    def __init__(self, library, precision: str, ptx: str = "", device=SMALL, rows: int = 21):
        torch.manual_seed(0)
        spec = (network := lf.MLPLPN(33, hidden=20, layers=1, squared_head=True, alpha=0.05)).spec
        packed = network.packed().detach()
        packed = torch.where(packed == 0, 0.3 * torch.rand_like(packed), packed)  # biases and c start at zero
        # each an allocation of its own, beyond which there is nothing
        self.x, self.v, self.p = torch.randn(rows, 33), torch.randn(rows, 33), torch.randn(rows)
        self.precision = precision
        self.model = Compiled(library, spec, packed, device, ptx=ptx or compiled(precision, *KERNELS[precision]))
        self.source = Model(library, spec, packed, device)
        self.arguments = spec, self.x.double(), packed.double(), None

    def found(self, model: Model, operation: str) -> tuple[torch.Tensor, ...]:
        if operation == "prox":
            return model.prox(self.x, self.precision)
        if operation == "hvp":
            return model.hvp(self.x, self.v, self.precision)
        return model.vjp(self.x, self.p, self.v, self.precision)

    def wanted(self, operation: str) -> tuple[torch.Tensor, ...]:
        v = self.v.double()
        if operation == "vjp":
            return reference.vjp(*self.arguments, self.p.double(), v)
        both = reference.potential(*self.arguments), reference.prox(*self.arguments)
        return both if operation == "prox" else (*both, reference.hvp(*self.arguments, v))

    def is_right(self, operation: str) -> bool:
        """Whether results are close to float64, and very close to what the source gives on the model of mlp_model.cpp,
        which rounds in the same places: sums are in another order."""
        found = self.found(self.model, operation)
        limit = (PROX if operation == "prox" else SECOND_ORDER)[self.precision]
        near = all(relative(f, w) <= limit for f, w in zip(found, self.wanted(operation), strict=True))
        source = self.found(self.source, operation)
        self.gap = max(relative(f, s) for f, s in zip(found, source, strict=True))
        return near and self.gap <= SOURCE[self.precision]


@pytest.mark.parametrize("precision, operation, configuration", CASES)
def test_the_compiled_kernels_are_right(library, precision, operation, configuration):
    case = Case(library, precision, device=SMALL if configuration == NARROWEST else NO_ROOM[precision])
    plan = case.model.plan(operation, precision, 21)
    streamed = (0, precision == "fp32", 2)
    assert (plan["resident"], plan["spilled"], plan["blocks"]) == (
        (1, 0, 1) if configuration == NARROWEST else streamed
    )
    assert case.is_right(operation)


def test_teams_may_have_different_numbers_of_tiles(library):
    case = Case(library, "fp16", device=ONE_BLOCK, rows=45)
    plan = case.model.plan("vjp", "fp16", 45)
    assert (plan["blocks"], plan["warps"] // plan["team"]) == (1, 2)  # three tiles for two teams
    assert case.is_right("vjp") and case.is_right("prox")


def test_nearly_all_of_the_code_is_run(library):
    """What is left out is for psi, which vjp is not asked for, and for more warps, wider inputs or a missing c."""
    case = Case(library, "fp16", device=CROWDED, rows=70)
    assert case.is_right("vjp")
    assert len(case.model.kernel.missed()) < 0.25 * len(case.model.kernel.code)
    assert case.is_right("prox")
    assert not case.model.kernel.missed("mma", "ldmatrix", "bar", "cp", "shfl")


def test_the_compiled_solver_solves(library):
    case = Case(library, "fp32", rows=3)
    z, t = case.x, torch.tensor([0.5, 0.2, 1.0])
    found = case.model.solve(z, case.v, t, 1e-5)
    assert not case.model.kernel.missed("mma", "bar", "cp", "shfl")
    assert found["verdict"].tolist() == [0, 0, 0]
    spec, _, packed, _ = case.arguments
    u = found["u"].double()
    residual = t[:, None] * u + (1 - t[:, None]) * reference.prox(spec, u, packed) - z
    assert (residual.norm(dim=1) <= 2e-5 * z.norm(dim=1).clamp(min=33**0.5)).all()


def entry(ptx: str, operation: str) -> tuple[int, int]:
    """Where a kernel of the narrowest width begins and ends in the text."""
    number = cuda_model.OPERATIONS.index(operation)
    return re.search(rf"\.entry\s+\w*mlp_kernel\w*Li4EEELNS_9OperationE{number}E.*?\n}}", ptx, re.DOTALL).span()


def planted(ptx: str, pattern: str, replacement: str, *which: int) -> str:
    """The PTX with the prox kernel changed where a pattern is met for the n-th time, for n in `which`."""
    start, end = entry(ptx, "prox")
    body, places = ptx[start:end], [found.span() for found in re.finditer(pattern, ptx[start:end])]
    assert len(places) > max(which), f"{pattern!r} is not in the code any more: plant the fault elsewhere"
    for a, b in sorted((places[number] for number in which), reverse=True):
        body = body[:a] + re.sub(pattern, replacement, body[a:b], count=1) + body[b:]
    return ptx[:start] + body + ptx[end:]


FAULTS = {
    "blocks of an operand exchanged": (r"(ldmatrix[^{]*\{%r\d+,)(%r\d+),(%r\d+)", r"\1\3,\2", 0),
    "a matrix not transposed": (r"\.x4\.trans\.", ".x4.", 0),
    "fragments in another order": (r"(mma\.sync[^{]*\{[^}]*\}, \{)(%r\d+),(%r\d+),", r"\1\3,\2,", 0),
    "halves exchanged": (r"(cvt\.rn\.f16x2\.f32 %r\d+), (%f\d+), (%f\d+)", r"\1, \3, \2", 0),
    "the word beside in shared memory": (r"(st\.shared\.u32\s+\[%r\d+)\+128\]", r"\1+132]", 0),
    "the number beside in device memory": (r"(st\.global\.f32\s+\[%rd\d+)\]", r"\1+4]", 1),
    "one row too many": (r"setp\.lt\.s32(\s+%p\d+, %r\d+, %r\d+;\s+setp\.ne\.s64)", r"setp.le.s32\1", 0),
    "another lane": (r"(shfl\.sync\.bfly\.b32\s+%r\d+\|%p\d+, %r\d+), %r\d+", r"\1, 4", 0),
    "another field of the parameters": (r"(ld\.param\.v2\.f32\s+)\{(%f\d+), (%f\d+)\}", r"\1{\3, \2}", 0),
    "weights used before their copies arrived": (r"cp\.async\.wait_all;", ";", 0),
    "a barrier for half of a team": (r"(bar\.sync %r\d+), 64", r"\1, 32", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_into_the_code_is_seen(library, fault):
    ptx = planted(compiled("fp16", *KERNELS["fp16"]), *FAULTS[fault])
    try:
        assert not Case(library, "fp16", ptx).is_right("prox")
    except Fault:
        pass


def test_barriers_that_are_left_out_are_missed(library):
    """All but the two at the ends of a team's turn, between whose sides other barriers stand at this size."""
    ptx = compiled("fp16", *KERNELS["fp16"])
    start, end = entry(ptx, "prox")
    count = ptx[start:end].count("bar.sync")
    for left_out in {*range(count)} - {2, count - 1}:
        case = Case(library, "fp16", planted(ptx, r"bar\.sync[^;]*;", ";", left_out), ONE_BLOCK, rows=45)
        with pytest.raises(Fault, match="without a barrier"):
            case.found(case.model, "prox")
