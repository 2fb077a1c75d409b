"""How calls are laid over devices: geometry and shared memory, computed by host code that needs no GPU."""

import cuda_model
import pytest
import torch
from cuda_model import H200, Model

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage

pytestmark = pytest.mark.skipif(cuda_model.COMPILER is None, reason="no C++ compiler to build the model with")

A100 = (108, 166_912, 167_936)
# the solver exists in float32 grade only
CALLS = [(o, p) for o in cuda_model.OPERATIONS for p in cuda_model.PRECISIONS if o != "solve" or p == "fp32"]
SHAPES = [(1, 50, 4), (2, 64, 4), (64, 96, 4), (3, 128, 4), (64, 256, 5)]  # dim, hidden, layers


@pytest.fixture(scope="module")
def planned():
    library = cuda_model.build()

    def plan(device, dim, hidden, layers, operation, precision, rows):
        spec = lf.MLPLPN(dim, hidden=hidden, layers=layers).spec
        return Model(library, spec, torch.empty(0), device).plan(operation, precision, rows)

    return plan


@pytest.mark.parametrize("operation, precision", CALLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", [H200, A100])
def test_a_plan_fits_the_device(planned, device, shape, operation, precision):
    processors, per_block, per_processor = device
    for rows in (1, 2000, 1_000_000):
        plan = planned(device, *shape, operation, precision, rows)
        assert not plan["spilled"] or (shape[1] >= 128 and precision in ("fp32", "tf32"))
        assert (plan["spilled_bytes"] > 0) == plan["spilled"]
        assert 0 < plan["shared"] <= per_block
        assert 1 <= plan["warps"] <= (8 if plan["row_tiles"] > 1 or operation == "solve" else 16)
        blocks = -(-plan["blocks"] // processors)  # on one processor
        assert blocks == 1 or blocks * (plan["shared"] + 1024) <= per_processor
        teams = plan["warps"] // plan["team"]
        assert teams * plan["team"] == plan["warps"] and teams <= 15  # as many named barriers as there are
        rows_at_once = plan["blocks"] * teams * 16 * plan["row_tiles"]
        assert rows_at_once < rows + teams * 16 * plan["row_tiles"], "no block is without rows"
        assert plan["partial"] == (plan["blocks"] * parameters(shape) * 4 if operation == "vjp" else 0)


def parameters(shape):
    return sum(p.numel() for p in lf.MLPLPN(shape[0], hidden=shape[1], layers=shape[2]).parameters())


def test_small_batches_reach_most_processors(planned):
    plan = planned(H200, 2, 64, 4, "prox", "fp16", 2000)  # 125 teams of 16 rows
    assert plan["blocks"] == 125 and plan["warps"] == plan["team"] == 2


def test_large_batches_fill_the_device_with_wide_tiles(planned):
    plan = planned(H200, 2, 64, 4, "prox", "fp16", 1_000_000)
    assert plan["row_tiles"] == 2 and plan["resident"] and plan["blocks"] % H200[0] == 0
    assert plan["warps"] * plan["blocks"] // H200[0] >= 6


@pytest.mark.parametrize("hidden, tiles", [(20, 4), (48, 6), (50, 8), (96, 12), (100, 16), (129, 20), (250, 32)])
def test_widths_are_padded_to_one_the_compiler_knows(planned, hidden, tiles):
    plan = planned(H200, 2, hidden, 2, "prox", "fp16", 100)
    assert plan["tiles"] == tiles
    assert plan["resident"] == (hidden <= 128)


@pytest.mark.parametrize("operation", ["prox", "hvp", "vjp"])
def test_no_processor_has_a_single_warp(planned, operation):
    for dim, hidden, layers in SHAPES:
        for precision in cuda_model.PRECISIONS:
            plan = planned(H200, dim, hidden, layers, operation, precision, 1_000_000)
            per_processor = plan["blocks"] // H200[0]
            assert plan["warps"] * per_processor >= 4, (dim, hidden, layers, precision)


def test_what_sixteen_bits_cannot_keep_is_refused_by_name(planned):
    with pytest.raises(ValueError, match="16 rows need .* bytes of shared memory"):
        planned(A100, 2, 256, 12, "vjp", "fp16", 100)


def test_wide_layers_are_read_through_the_caches_by_as_few_teams_as_can_be(planned):
    plan = planned(H200, 2, 256, 4, "prox", "fp16", 1_000_000)
    assert not plan["resident"] and plan["warps"] == plan["team"] == 8 and plan["row_tiles"] == 4
    assert planned(H200, 2, 256, 4, "prox", "fp16", 2000)["row_tiles"] == 1  # few rows: to all processors
    assert planned(H200, 2, 128, 2, "prox", "fp16", 1_000_000)["resident"]


@pytest.mark.parametrize(
    "dim, widths, said",
    [
        (65, [8], "dim must be 1 to 64, got 65"),
        (2, [257], "width of stage 0 must be 1 to 256, got 257"),
        (2, [8] * 33, "stages must be 1 to 32, got 33"),
    ],
)
def test_what_no_kernel_covers_is_refused_by_name(dim, widths, said):
    stages = [Stage(width, kernel=int(l > 0)) for l, width in enumerate(widths)]
    stages[-1] = Stage(widths[-1], kernel=int(len(widths) > 1), heads=("linear",))
    model = Model(cuda_model.build(), Spec("dense", dim, tuple(stages), 10.0), torch.empty(0))
    with pytest.raises(ValueError, match=said):
        model.plan("prox", "fp16", 1)
