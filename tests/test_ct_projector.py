"""The compiled projector against the torch one, its specification: every instruction set, any thread count."""

import math

import pytest
import torch
from cases import on_threads, relative
from physics_cases import rand, randn

from lpn_fast import _cpu
from lpn_fast.physics import ParallelBeamCT
from lpn_fast.physics.ct.projector import _project

pytestmark = pytest.mark.usefixtures("isa")

# Both round positions in float64; float32 sums differ by their order only.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}

SCANS = {
    "square": ((32, 12), {}),
    "odd": (((17, 23), 9, 31), {"pixel": 0.7}),
    "published ratio": ((32, 20, 25), {"extent": 8 * math.sqrt(2), "pixel": 0.5}),
    "fine bins": ((13, 7, 90), {"extent": 10.0}),
    "narrow detector": ((24, 8, 6), {"extent": 4.0}),
    "wide detector": ((9, 8, 40), {"extent": 80.0}),
    "many bins": ((70, 3, 150), {}),
    "one pixel": ((1, 4, 3), {}),
    "one row": (((1, 40), 5), {}),
    "axes and diagonals": ((16, [k * math.pi / 4 for k in range(-3, 6)], 20), {}),
}


def both(scan):
    arguments, options = SCANS[scan]
    return (ParallelBeamCT(*arguments, **options, backend=b) for b in ("cpu", "torch"))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch", [(1, 1), (3, 3), (17, 1)], ids=str)
@pytest.mark.parametrize("scan", SCANS)
def test_compiled_maps_are_the_torch_maps(scan, batch, dtype):
    compiled, plain = both(scan)
    g = compiled.geometry
    x = randn(*batch, g.height, g.width, dtype=dtype)
    y = randn(*compiled.measurement_shape(x.shape), seed=2, dtype=dtype)
    assert relative(compiled.A(x), plain.A(x)) <= TOLERANCE[dtype]
    assert relative(compiled.A_adjoint(y), plain.A_adjoint(y)) <= TOLERANCE[dtype]
    assert relative(compiled.fbp(y), plain.fbp(y)) <= 3 * TOLERANCE[dtype]  # the ramp makes terms that cancel


@pytest.mark.parametrize("scan", SCANS)
def test_torch_transpose_is_the_derivative_of_the_torch_projector(scan):
    """Two formulas, interpolation and collection: autograd through the first must give the second."""
    _, plain = both(scan)
    g = plain.geometry
    x = randn(2, 1, g.height, g.width).requires_grad_()
    y = randn(*plain.measurement_shape(x.shape), seed=2)
    (gradient,) = torch.autograd.grad(_project(g, g.views(), x), x, y)
    assert relative(plain.A_adjoint(y), gradient) <= 1e-13


def test_nothing_is_left_unwritten_and_no_image_touches_another():
    ct = ParallelBeamCT((9, 11), 6, backend="cpu")
    x = rand(5, 2, 9, 11).float()
    x[3] = torch.nan
    for result in (ct.A(x), ct.A_adjoint(ct.A(x)), ct.fbp(ct.A(x.nan_to_num()))):
        assert result[:3].isfinite().all() and result[4].isfinite().all()
    assert ct.A(x)[3].isnan().any() and not ct.A(x)[[0, 1, 2, 4]].isnan().any()
    assert ct.A(x[:0]).shape == (0, 2, 6, ct.geometry.bins) and ct.A_adjoint(ct.A(x[:0])).shape == (0, 2, 9, 11)


@pytest.mark.parametrize("layout", ["transposed", "channels last", "expanded"])
def test_any_memory_layout_is_read_right(layout):
    compiled, plain = both("odd")
    x = {
        "transposed": lambda: randn(2, 3, 23, 17).transpose(2, 3),
        "channels last": lambda: randn(2, 3, 17, 23).contiguous(memory_format=torch.channels_last),
        "expanded": lambda: randn(1, 1, 17, 23).expand(2, 3, -1, -1),
    }[layout]()
    assert relative(compiled.A(x), plain.A(x.contiguous())) <= 1e-13


def test_threads_do_not_change_a_bit():
    ct = ParallelBeamCT(64, 50, 70, backend="cpu")
    x, y = rand(9, 1, 64, 64).float(), rand(9, 1, 50, 70).float()
    results = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            results.append((ct.A(x), ct.A_adjoint(y), ct.fbp(y)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_position_in_the_batch_does_not_change_a_bit():
    ct = ParallelBeamCT(40, 30, backend="cpu")
    x = rand(20, 1, 40, 40).float()
    assert torch.equal(ct.A(x)[13:14], ct.A(x[13:14]))
    y = ct.A(x)
    assert torch.equal(ct.A_adjoint(y)[13:14], ct.A_adjoint(y[13:14]))


def test_raw_calls_refuse_what_would_crash():
    x, y, views = torch.zeros(1, 4, 4), torch.zeros(1, 2, 3), ParallelBeamCT(4, 2, 3).geometry.views()
    good = _cpu.ProjectorShape(1, 4, 4, 2, 3)

    def call(views=views, shift=0, shape=good, item=4, threads=1):
        _cpu.ct_project(views.data_ptr(), x.data_ptr() + shift, y.data_ptr(), shape, item, threads)

    call()
    for arguments, message in (
        ({"shift": -x.data_ptr()}, "from must be an address, got 0"),
        ({"shift": 1}, "from must be aligned"),
        ({"item": 2}, "item must be 4 or 8, got 2"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"shape": _cpu.ProjectorShape(-1, 4, 4, 2, 3)}, "images must be at least 0, got -1"),
        ({"shape": _cpu.ProjectorShape(1, 0, 4, 2, 3)}, "sizes must be at least 1, got 0"),
        ({"views": views * torch.inf}, "table must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**arguments)
