"""The kernel of whole frames and mixtures under the interpreter against float64; run by test_triton_kernels.py.

Images are odd, smaller than a tile and of several, images of a batch have noise levels of their own; outputs are filled
with NaN first, sums of rows too. Planted faults show that the comparisons would see one.
"""

import pytest
import torch
from cases import relative
from planted import mutant

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout
from lpn_fast.kernels.triton import activations, frame, frame_gradient, positions
from lpn_fast.ops.backends.triton import TritonBackend, fused
from lpn_fast.ops.backends.triton.device import launchers

# Relative errors of psi and f, in half precision of the network whose weights it represents: what is left is the
# rounding of shares and of e.
TOLERANCE = {"fp32": (2e-6, 2e-6), "fp16": (1e-5, 4e-4)}
TILE = (16, 16, 16, 4)


def mixture(channels, kernel, experts):
    """A mixture of random weights: its soft maximum decides differently at every position."""
    torch.manual_seed(1)
    model = lf.MixtureLPN(channels, kernel=kernel, experts=experts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "noise")):
                parameter.add_(torch.randn_like(parameter))
    return model


NETWORKS = {
    "frame": lambda: lf.FrameLPN(2, kernel=3, gates=((1, 1, 21),)),
    "mixture": lambda: mixture(1, 3, 19),
    "of colours": lambda: mixture(3, 2, 5),
    "even, one block": lambda: lf.FrameLPN(1, kernel=4, gates=((1, 1, 16),)),
}
SIZES = [(1, 5, 37), (3, 4, 13), (2, 1, 1), (1, 2, 14)]


def call(name, size, scale=4.0, dtype=torch.float32):
    batch, height, width = size
    model = NETWORKS[name]()
    torch.manual_seed(0)
    x = scale * torch.randn(batch, model.spec.channels, height, width)
    features = torch.rand(batch, len(model.spec.noise_levels))
    features /= features.sum(1, keepdim=True)
    return model.spec, x, model.packed().detach(), features


def truth(spec, x, packed, features):
    wide = spec, x.double(), packed.double(), features.double()
    return reference.potential(*wide), reference.prox(*wide)


@pytest.fixture(autouse=True)
def small_tiles_and_nan(monkeypatch):
    """What a kernel does not write is NaN, and a small image has several tiles."""
    for module in (frame, frame_gradient):
        monkeypatch.setattr(module, "default_tile", lambda *_: TILE)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: empty(*shape, **how).fill_(float("nan")))


def errors(name, size, precision, scale=4.0):
    spec, x, packed, features = call(name, size, scale)
    inputs = x, packed.half().float() if precision == "fp16" else packed, features
    psi, f = fused.value_prox(spec, *inputs, True, precision)
    want = truth(spec, *inputs)
    found = relative(psi, want[0]), relative(f, want[1])
    return tuple(float("inf") if error != error else error for error in found)  # max() passes NaN over


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_potential_and_prox_are_those_of_float64(name, size, precision):
    assert fused.covers(NETWORKS[name]().spec)
    assert all(e < t for e, t in zip(errors(name, size, precision), TOLERANCE[precision], strict=True))


def hessian_error(name, size, precision, scale=4.0, of=1.0):
    """Relative error of H v, for v of the size `of`."""
    spec, x, packed, features = call(name, size, scale)
    packed = packed.half().float() if precision == "fp16" else packed
    v = of * torch.randn_like(x)
    hv = TritonBackend().hvp(spec, x, packed, features, v, [], precision)
    want = reference.hvp(spec, *(t.double() for t in (x, packed, features, v)))
    error = relative(hv, want)
    return float("inf") if error != error else error


@pytest.mark.parametrize("precision, most", [("fp32", 1e-5), ("fp16", 1e-3)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_hessian_products_are_those_of_float64(name, size, precision, most):
    assert hessian_error(name, size, precision) < most


@pytest.mark.parametrize("of", [1e-8, 1e5])
def test_the_size_of_a_direction_does_not_matter_in_half_precision(of):
    assert hessian_error("mixture", (1, 3, 13), "fp16", of=of) < 1e-3


def test_the_hessian_is_symmetric():
    spec, x, packed, features = call("mixture", (2, 5, 20))
    u, v = torch.randn(2, *x.shape)
    hu, hv = (fused.hvp(spec, x, packed, features, w, "fp32") for w in (u, v))
    gap = (u * hv - v * hu).flatten(1).sum(1).abs() / (u.flatten(1).norm(dim=1) * hv.flatten(1).norm(dim=1))
    assert (gap < 1e-6).all()


def gradient_errors(name, size=(2, 3, 10), precision="fp32", given="both", x_of=lambda x: x):
    """Relative errors of gx and of the gradient of every parameter."""
    spec, x, packed, features = call(name, size)
    packed = packed.half().float() if precision == "fp16" else packed
    v, p = torch.randn_like(x), torch.randn(len(x))
    p, v = None if given == "f" else p, None if given == "psi" else v
    found = TritonBackend().vjp(spec, x_of(x), packed, features, p, v, [], precision)
    wide = (None if t is None else t.double() for t in (x, packed, features, p, v))
    gx, want = reference.vjp(spec, *wide)
    errors = [relative(found[0], gx)]
    for slot in layout(spec):
        of_one, right = (t[slot.offset : slot.end] for t in (found[1], want))
        error = (of_one - right).norm() / right.norm().clamp_min(1e-6 * want.norm())
        errors.append(float("inf") if error.isnan() else error.item())
    return errors


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_weights_are_those_of_float64(name):
    assert max(gradient_errors(name)) < 1e-5


@pytest.mark.parametrize("name", ["frame", "of colours"])
def test_half_precision_rounds_the_weights_and_two_factors_of_their_gradients(name):
    assert max(gradient_errors(name, precision="fp16")) < 2e-3


def test_gradients_of_the_weights_of_single_pixels():
    assert max(gradient_errors("of colours", (3, 1, 1))) < 1e-5


@pytest.mark.parametrize("name, given", [("frame", "psi"), ("mixture", "f"), ("mixture", "psi")])
def test_gradients_of_either_kind_add_up_over_parts_of_an_image(name, given, monkeypatch):
    monkeypatch.setattr(positions, "splits", lambda tiles, steps, processors: min(steps, 3))
    assert max(gradient_errors(name, given=given)) < 1e-5


def test_gradients_of_images_that_go_one_by_one_and_of_strided_ones(monkeypatch):
    monkeypatch.setattr(frame_gradient, "KEPT_BYTES", 1)
    strided = {"x_of": lambda x: x.to(memory_format=torch.channels_last)}
    assert max(gradient_errors("of colours", (3, 3, 8), **strided)) < 1e-5


def test_gradients_are_the_same_bits_every_time_and_none_without_images():
    spec, x, packed, features = call("mixture", (2, 3, 20))
    rest = torch.randn(2), torch.randn_like(x), "fp32"
    one, other = (fused.vjp(spec, x, packed, features, *rest) for _ in range(2))
    assert all(map(torch.equal, one, other)) and all(t.isfinite().all() for t in one)
    gx, gP = fused.vjp(spec, x[:0], packed, features[:0], rest[0][:0], rest[1][:0], "fp32")
    assert gx.shape == (0, 1, 3, 20) and not gP.any()


def test_a_training_step_on_it_is_that_of_float64():
    """Noise levels of their own, the rule for clamped weights, a loss of f and psi: all above the kernels as well."""
    model = mixture(1, 3, 19)
    x, sigma = 0.2 * torch.randn(2, 1, 4, 9), torch.tensor([0.05, 0.2])

    def gradients(model, x, sigma):
        psi, f = model.potential_and_prox(x, sigma)
        return torch.autograd.grad(f.pow(3).sum() + psi.sum(), list(model.parameters()))

    want = [t.clone() for t in gradients(model.double(), x.double(), sigma.double())]
    with lf.use_backend("triton"):
        found = gradients(model.float(), x, sigma)
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("tile", [(16, 16, 16, 4), (32, 16, 32, 4), (64, 64, 16, 8)])
def test_tiles_change_no_more_than_the_last_digits(monkeypatch, tile):
    monkeypatch.setattr(frame, "default_tile", lambda *_: tile)
    assert max(errors("mixture", (2, 3, 41), "fp32")) < 2e-6
    monkeypatch.setattr(frame_gradient, "default_tile", lambda *_: tile)
    assert max(gradient_errors("mixture")) < 1e-5


def test_models_that_ship_are_covered_and_right():
    for name in lf.list_pretrained():
        model = lf.pretrained(name)
        if not fused.covers(model.spec):
            # five published stages; contexts; R, not f
            assert name in ("mnist", "denoise-gray") or isinstance(model, lf.ExplicitLPN), name
            continue
        if name not in ("fast-gray", "frame-color"):
            continue  # same specs as these
        NETWORKS[name] = lambda model=model: model
        try:
            assert max(errors(name, (1, 3, 9), "fp32")) < 2e-6
        finally:
            del NETWORKS[name]


def test_energies_beyond_half_precision_leave_the_prox_as_it_is():
    """c^2 of 1000 standard deviations of the noise, of which the soft maximum needs differences near one."""
    assert max(errors("mixture", (1, 3, 13), "fp16", scale=1000.0)) < 1e-3


def test_nothing_is_left_unwritten_and_results_are_the_same_bits_every_time():
    spec, *inputs = call("mixture", (2, 4, 31))
    psi, f = fused.value_prox(spec, *inputs, True, "fp32")
    assert psi.isfinite().all() and f.isfinite().all()
    again = fused.value_prox(spec, *inputs, False, "fp32")
    assert again[0] is None and torch.equal(again[1], f)
    empty = fused.value_prox(spec, inputs[0][:0], inputs[1], inputs[2][:0], True, "fp32")
    assert empty[0].shape == (0,) and empty[1].shape == (0, 1, 4, 31)


def test_images_that_go_in_several_launches_and_strided_ones_give_the_same(monkeypatch):
    spec, x, packed, features = call("of colours", (3, 4, 13))
    want = fused.value_prox(spec, x, packed, features, True, "fp32")
    monkeypatch.setattr(frame, "ROW_BYTES", 1)
    strided = x.to(memory_format=torch.channels_last)
    for some in (x, strided):
        assert all(map(torch.equal, fused.value_prox(spec, some, packed, features, True, "fp32"), want))


def test_nan_stays_where_it_can_be_seen():
    spec, x, packed, features = call("mixture", (1, 5, 37))
    x[0, 0, 2, 20] = float("nan")
    f = fused.value_prox(spec, x, packed, features, False, "fp32")[1]
    assert f[0, 0, 2, 20].isnan() and f[0, 0, :, :10].isfinite().all()


def test_the_backend_keeps_no_tape():
    backend = TritonBackend()
    spec, x, packed, features = call("mixture", (2, 5, 8))
    assert backend.supports(spec, x, "fp32") is None
    v, p = torch.randn_like(x), torch.randn(2)
    psi, f, tape = backend.evaluate(spec, x, packed, features, True, True, "fp32")
    assert tape == []
    want = truth(spec, x, packed, features)
    assert relative(psi, want[0]) < 1e-5 and relative(f, want[1]) < 1e-5
    wide = spec, x.double(), packed.double(), features.double()
    gx, gP = backend.vjp(spec, x, packed, features, p, v, tape, "fp32")
    for found, right in zip((gx, gP), reference.vjp(*wide, p.double(), v.double()), strict=True):
        assert relative(found, right) < 1e-5
    hv = backend.hvp(spec, x, packed, features, v, [], "fp32")
    assert relative(hv, reference.hvp(*wide, v.double())) < 1e-5
    assert any("one kernel" in line for line in backend.details(spec, x, "fp32"))


FAULTS = {
    "the tap of another column": ("(KERNEL - 1) - tl.minimum(tap % SIDE", "(KERNEL - 2) - tl.minimum(tap % SIDE"),
    "a row of taps off by one": ("h + (KERNEL - 1 - i)", "h + tl.minimum(KERNEL - i, KERNEL - 1)"),
    "tiles that do not overlap": ("column = tile * STEP + m", "column = tile * BM + m"),
    "pixels that no tile has": ("(m < STEP)[:, None] & (q < width)", "(m < STEP - 1)[:, None] & (q < width)"),
    "positions counted twice": ("((m < STEP) | (tile == tiles - 1))", "(m < BM)"),
    "the soft maximum's sum not faded": ("total = total * fading +", "total = total +"),
    "the product not faded": ("back = back * fading[:, None]", "back = back"),
    "gates that are not there": ("(g < GATES)[None, :], u * (beta * LOG2E)", "(g > -1)[None, :], u * (beta * LOG2E)"),
    "the bias of the first image": ("bias + image * bias_stride + g", "bias + g"),
    "the head forgotten": ("back += direct", "back += 0 * direct"),
    "padding that reads the next row": ("& (w >= 0) & (w < width)", "& (w >= 0) & (w <= width)"),
    "another channel": ("(tap // SIDE) % CHANNELS", "(tap // SIDE + 1) % CHANNELS"),
    "alpha forgotten": ("total = alpha * tl.load", "total = 0 * tl.load"),
    "a gate without its weight": ("share = weight * unit * slope", "share = unit * slope"),
}
SECOND_ORDER = {
    "the mean of du forgotten": ("(second - (total_du / total)[:, None] * back)", "second"),
    "dx in the place of dv's rows": ("v, v_n, v_c, v_h, v_w, image", "v, v_n, v_c, v_w, v_w, image"),
    "dc without the gates": ("2 * (dc * back + coefficients * second)", "2 * (dc + coefficients * second)"),
    "what fades once": ("total_du * fading + tl.sum(share * du, 1)", "total_du + tl.sum(share * du, 1)"),
    "a gate's curvature": ("share * (1 - slope) * beta * du", "share * slope * beta * du"),
    "x folded in the place of v": ("last = part if direction is None else direction", "last = part"),
}
OF_WEIGHTS = {
    "positions that are not there": ("tl.where(there, 1.0, 0.0)", "tl.where(row >= 0, 1.0, 0.0)"),
    "the first image's s": ("s = tl.load(scale + image)", "s = tl.load(scale)"),
    "the mean of du forgotten": ("(du - tl.load(shares + 2 * positions + at)[:, None])", "du"),
    "the same tiles in every part": ("first = part * tiles_per_part", "first = 0"),
    "x in the place of v in dA": ("(turned, at), (sent, meets)", "(turned, at), (sent, at)"),
    "a gate's curvature": ("(1 - slope if row_weights", "(slope if row_weights"),
    "the bias of the first image's noise": ("bias + image * bias_stride + g", "bias + g"),
}
OF_FILTERS = {
    "e that lacks its gates": ("(2 * coefficients * back).to(STORAGE), mask", "(2 * coefficients).to(STORAGE), mask"),
    "positions that no tile writes": ("kept = own[:, None]", "kept = (own & (m > 0))[:, None]"),
    "a mean of another position": (
        "(line + 2 * all_rows) * columns + q, total_du",
        "(line + 2) * columns + q, total_du",
    ),
}


@pytest.mark.parametrize("fault", OF_WEIGHTS | OF_FILTERS)
def test_a_planted_fault_of_gradients_of_the_weights_is_seen(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(positions, "splits", lambda tiles, steps, processors: min(steps, 2))
    module, where = (frame, OF_FILTERS) if fault in OF_FILTERS else (frame_gradient, OF_WEIGHTS)
    planted = mutant(module, *where[fault], tmp_path)
    monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
    monkeypatch.setattr(launchers(), module.__name__.rsplit(".", 1)[-1], planted)
    monkeypatch.setattr(frame_gradient, "frame", launchers().frame)
    try:
        worst = max(gradient_errors("frame" if "curvature" in fault else "mixture", (2, 3, 9)))
    except Exception:
        return  # an access that the interpreter refuses
    assert not worst < 1e-5


def test_no_result_depends_on_which_program_comes_first(tmp_path, monkeypatch):
    """The interpreter runs one after the other; a device does not, and where two write one place the last one wins."""
    spec, *inputs = call("mixture", (2, 4, 31))
    want = fused.value_prox(spec, *inputs, True, "fp32")
    backwards = mutant(frame, "program, all_rows = tl.program_id(0)", BACKWARDS, tmp_path)
    beyond = mutant(backwards, "(m < STEP)[:, None] & (q < width)", "(q < width)", tmp_path)
    for planted, same in ((backwards, True), (beyond, False)):
        monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
        monkeypatch.setattr(launchers(), "frame", planted)
        assert all(map(torch.equal, fused.value_prox(spec, *inputs, True, "fp32"), want)) == same


BACKWARDS = "program, all_rows = tl.num_programs(0) - 1 - tl.program_id(0)"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, tmp_path, monkeypatch):
    planted = mutant(frame, *FAULTS[fault], tmp_path)
    monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
    monkeypatch.setattr(launchers(), "frame", planted)
    name = "frame" if "weight" in fault else "of colours" if "channel" in fault else "mixture"
    try:
        worst = max(errors(name, (3, 5, 37), "fp32"))
    except Exception:
        return  # an access that the interpreter refuses
    assert not worst < 2e-6


@pytest.mark.parametrize("fault", SECOND_ORDER)
def test_a_planted_fault_of_second_order_is_seen(fault, tmp_path, monkeypatch):
    planted = mutant(frame, *SECOND_ORDER[fault], tmp_path)
    monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
    monkeypatch.setattr(launchers(), "frame", planted)
    assert not hessian_error("frame" if "curvature" in fault else "mixture", (2, 5, 37), "fp32") < 1e-5


def test_a_planted_fault_of_the_rounding_is_seen_in_half_precision(tmp_path, monkeypatch):
    planted = mutant(frame, "operand = within_half(operand)", "operand = operand * 16.0", tmp_path)
    monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
    monkeypatch.setattr(launchers(), "frame", planted)
    assert not max(errors("mixture", (1, 3, 13), "fp16")) < 1e-3
    assert activations.within_half is frame.within_half
