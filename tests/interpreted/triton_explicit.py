"""The kernel of explicit priors under the interpreter against float64; run by test_triton_kernels.py.

Images are odd, smaller than a tile or than a patch, samples have potentials of their own or share them; outputs are
filled with NaN first. Planted faults show that the comparisons would see one.
"""

import pytest
import torch
from cases import relative
from planted import mutant

import lpn_fast as lf
from lpn_fast.kernels.triton import explicit, explicit_gradient, positions
from lpn_fast.ops import device_check
from lpn_fast.ops.backends.triton import explicit as backend
from lpn_fast.ops.backends.triton.device import launchers
from lpn_fast.ops.explicit import kernels, plain, potentials
from lpn_fast.ops.explicit.level import Level

TOLERANCE = {"fp32": (2e-6, 2e-6, 1e-5), "fp16": (1e-3, 1e-3, 2e-3)}  # R, grad R, H v; of rounded weights in fp16
TILE = (16, 16, 16, 4)
WIDE_TILE = (32, 64, 32, 8)
CASES = {
    "gray": (Level(1, 3, 19), (2, 4, 19)),
    "colours": (Level(3, 2, 5), (3, 4, 13)),
    "even, one block": (Level(1, 4, 16), (1, 6, 14)),
    "two samples": (Level(2, 2, 5), (2, 4, 9)),
    "one pixel": (Level(2, 3, 7), (2, 1, 1)),
    "smaller than a patch": (Level(1, 5, 9), (1, 2, 20)),
    "free filters, 13 x 13": (Level(1, 13, 33, filters=80), (1, 3, 11)),
}


def small_tile(units, *_):
    """Atoms of wide patches are many."""
    return WIDE_TILE if units > 64 else TILE


@pytest.fixture(autouse=True)
def small_tiles_and_nan(monkeypatch):
    """What a kernel does not write is NaN, and a small image has several tiles."""
    for module in (explicit, explicit_gradient):
        monkeypatch.setattr(module, "default_tile", small_tile)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: empty(*shape, **how).fill_(float("nan")))


def trial(name, precision="fp32"):
    level, (batch, height, width) = CASES[name]
    shape = (batch, level.channels, height, width)
    return level.trial(shape, None, precision, torch.device("cpu"), torch.Generator().manual_seed(0))


def errors(made):
    """Relative errors of R, grad R and H v; NaN counts as infinite."""
    truth, found = (
        (*one.gradient(kernel, with_value=True)[::-1], *one.hessian_product(kernel))
        for one, kernel in ((made.double(), plain), (made, backend))
    )
    all_errors = map(relative, found, truth)
    return tuple(float("inf") if error != error else error for error in all_errors)


def in_potentials(made, kernel, v=True, scale=True):
    """The gradients in A, U, a, b and e."""
    given = made.v if v else None, made.scale if scale else None
    return kernel.gradients(made.potentials, made.x, *given, made.k, made.precision)


def gradients_are_right(made, most=1e-5, **given):
    found, want = in_potentials(made, backend, **given), in_potentials(made.double(), plain, **given)
    return all(relative(a, b) < most for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_value_and_derivatives_are_those_of_float64(name):
    assert all(e < t for e, t in zip(errors(trial(name)), TOLERANCE["fp32"], strict=True))
    assert gradients_are_right(trial(name))


@pytest.mark.parametrize("name", ["gray", "colours"])
def test_half_precision_rounds_its_weights_and_little_more(name):
    made = trial(name, "fp16")
    atoms, energies, *rest = made.potentials.tensors()
    made.potentials = made.potentials.of_tensors([atoms.half().float(), energies.half().float(), *rest])
    assert all(e < t for e, t in zip(errors(made), TOLERANCE["fp16"], strict=True))
    assert gradients_are_right(made, most=1e-3)


def test_potentials_that_all_samples_share_and_strided_images_in_several_launches(monkeypatch):
    made = trial("gray")
    atoms, *own = made.potentials.tensors()
    made.potentials = made.potentials.of_tensors([atoms, *(t[:1] for t in own)])
    want = made.gradient(backend, with_value=True) + made.hessian_product(backend)
    assert all(e < t for e, t in zip(errors(made), TOLERANCE["fp32"], strict=True))
    monkeypatch.setattr(explicit, "ROW_BYTES", 1)
    monkeypatch.setattr(explicit_gradient, "KEPT_BYTES", 1)
    made.x = made.x.transpose(2, 3).contiguous().transpose(2, 3)
    again = made.gradient(backend, with_value=True) + made.hessian_product(backend)
    assert all(map(torch.equal, again, want))
    assert gradients_are_right(made)


@pytest.mark.parametrize("given", [{"scale": False}, {"v": False}], ids=["of a gradient", "of values"])
def test_gradients_of_either_kind_add_up_over_parts_of_an_image_to_the_same_bits(monkeypatch, given):
    monkeypatch.setattr(positions, "splits", lambda tiles, steps, processors: min(steps, 3))
    made = trial("gray")
    assert gradients_are_right(made, **given)
    assert all(map(torch.equal, *(in_potentials(made, backend, **given) for _ in range(2))))


@pytest.mark.parametrize("tile", [(32, 16, 32, 4), (64, 64, 16, 8)])
def test_tiles_change_no_more_than_the_last_digits(monkeypatch, tile):
    for module in (explicit, explicit_gradient):
        monkeypatch.setattr(module, "default_tile", lambda *_: tile)
    assert all(e < t for e, t in zip(errors(trial("gray")), TOLERANCE["fp32"], strict=True))
    assert gradients_are_right(trial("gray"))


def test_no_images_and_nan_that_stays_where_it_can_be_seen():
    made = trial("gray")
    made.x[0, 0, 2, 13] = float("nan")
    gradient, value = made.gradient(backend, with_value=True)
    assert gradient[0, 0, 2, 13].isnan() and gradient[0, 0, :, :8].isfinite().all() and gradient[1].isfinite().all()
    assert value[0].isnan() and value[1].isfinite()
    made.x, made.v = made.x[:0], made.v[:0]
    assert made.gradient(backend, with_value=True)[0].shape == (0, 1, 4, 19)
    made.scale = made.scale[:0]
    assert [t.abs().sum() for t in in_potentials(made, backend)] == [0] * 5


def test_a_prior_runs_on_it_by_name_with_its_coarse_level_and_auto_does_not_take_the_interpreter():
    torch.manual_seed(0)
    model = lf.ExplicitLPN(1, kernel=3, groups=7, coarse_kernel=2, coarse_groups=4)
    x, sigma = torch.rand(2, 1, 7, 9), torch.tensor([0.1, 0.2])
    want = [t.double() for t in model.double().prior_and_grad(x.double(), sigma)]
    in_parameters = loss_gradients(model, x.double(), sigma)
    model = model.float()
    with lf.use_backend("triton"):
        assert lf.explain(model, x).startswith("triton: runs this call")
        found = model.prior_and_grad(x, sigma)
        assert all(relative(a, b) < 5e-6 for a, b in zip(found, want, strict=True))
        found = loss_gradients(model, x, sigma)
        with pytest.raises(RuntimeError, match="registers were made for"):
            potentials.value_and_gradient(_wide(), torch.zeros(1, 1, 4, 4), 12)
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, in_parameters, strict=True))
    assert "interpreter" in kernels.refused(backend, Level(1, 3, 7), x, "value")


def loss_gradients(model, x, sigma):
    """Those of a loss of R, grad R and the prox in the parameters, by autograd's nodes."""
    loss = model.prior(x, sigma).sum() + model.grad_prior(x, sigma).pow(3).sum()
    return torch.autograd.grad(loss, list(model.parameters()))


def _wide():
    return Level(1, 12, 3).trial((1, 1, 4, 4), None, "fp32", torch.device("cpu"), torch.Generator()).potentials


def test_the_check_on_a_device_finds_it_right_and_a_fault_in_it(monkeypatch, tmp_path):
    level = Level(1, 3, 19)
    monkeypatch.setattr(device_check, "large_shape", lambda spec: (1, 1, 4, 14))
    monkeypatch.setattr(device_check, "small_shapes", lambda spec: [(2, 1, 2, 6)])
    monkeypatch.setattr(device_check, "ROUNDS", 1)
    found = device_check.check(backend, plain, level, torch.device("cpu"), "fp32")
    assert found.wrong is None and tuple(found.gains) == device_check.EXPLICIT_WORKS
    plant(monkeypatch, tmp_path, "inverse_near * inverse_near * inverse_near", "inverse_near * inverse_near")
    assert "H v at (2, 1, 2, 6) is off" in device_check.check(backend, plain, level, torch.device("cpu"), "fp32").wrong


def plant(monkeypatch, tmp_path, old, new, module=explicit):
    planted = mutant(module, old, new, tmp_path)
    monkeypatch.setattr(planted, "default_tile", small_tile)
    monkeypatch.setattr(launchers(), module.__name__.rsplit(".", 1)[-1], planted)
    monkeypatch.setattr(explicit_gradient, "explicit", launchers().explicit)


FAULTS = {
    "weights of another row": ("tl.load(row_weights + row)", "tl.load(row_weights)"),
    "tiles that do not overlap": ("column = tile * STEP + m", "column = tile * BM + m"),
    "positions counted twice": ("alone = m >= KERNEL - 1", "alone = m >= 0"),
    "the potentials of the first sample": ("image.to(tl.int64) * own * GATES", "image.to(tl.int64) * 0"),
    "groups that are not there": ("far + g, mask=g < GATES, other=1.0", "far + g, mask=g < GATES, other=0.0"),
    "the potential without its tip": ("/ ((b + u) * inverse_near + tl.sqrt(b))", "/ ((b + u) * inverse_near)"),
    "Huber's function without its bend": ("(outer - u + e * e) / 2", "e * e / 2"),
    "a margin too few": ("wide, kernel - 1, 0.0", "wide, kernel - 2, 0.0"),
    "the third derivative inside the tip": ("tl.where(u > e * e, e *", "tl.where(u > 0, e *"),
    "x in the place of v": ("v, v_n, v_c, v_h, v_w, image", "x, v_n, v_c, v_h, v_w, image"),
    "mirrored columns for rows": ("*mirrored, *weights", "mirrored[1], mirrored[1], *weights"),
}
OF_ATOMS = {
    "positions that no tile has": ("(alone & there)[:, None] & (n", "(alone & there & (m > KERNEL))[:, None] & (n"),
    "e without its gates": ("product = coefficients * back * (weight", "product = coefficients * (weight"),
}
OF_GROUPS = {
    "positions that are not there": ("weight = tl.where(there,", "weight = tl.where(row >= 0,"),
    "the first sample's s": ("share = (tl.load(scale + image)", "share = (tl.load(scale)"),
    "the same tiles in every part": ("first = part * tiles_per_part", "first = 0"),
    "the tip in da": ("u / ((b + u) * inverse_near + tl.sqrt(b))", "(b + u) * inverse_near"),
    "half a term of dU": ("of_square -= 0.5 * t", "of_square -= t"),
    "x in the place of v in dA": ("(turned, at), (sent, meets)", "(turned, at), (sent, at)"),
}


@pytest.mark.parametrize("fault", OF_ATOMS | OF_GROUPS)
def test_a_planted_fault_of_gradients_in_the_potentials_is_seen(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(positions, "splits", lambda tiles, steps, processors: min(steps, 2))
    module, where = (explicit, OF_ATOMS) if fault in OF_ATOMS else (explicit_gradient, OF_GROUPS)
    plant(monkeypatch, tmp_path, *where[fault], module)
    assert not gradients_are_right(trial("two samples"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, tmp_path, monkeypatch):
    plant(monkeypatch, tmp_path, *FAULTS[fault])
    try:
        found = errors(trial("gray"))
    except Exception:
        return  # an access that the interpreter refuses
    assert not all(e < t for e, t in zip(found, TOLERANCE["fp32"], strict=True))


def test_a_last_row_of_wide_patches_that_is_left_out_is_seen(tmp_path, monkeypatch):
    plant(monkeypatch, tmp_path, "for t0 in tl.range(0, TAPS, BT", "for t0 in tl.range(0, TAPS - BT, BT")
    made = trial("free filters, 13 x 13")
    want = made.double().gradient(plain)[0]
    assert not relative(made.gradient(backend)[0], want) < TOLERANCE["fp32"][1]


def test_no_result_depends_on_which_program_comes_first(tmp_path, monkeypatch):
    made = trial("gray")
    want = made.everything(backend)
    backwards = "program, all_rows = tl.num_programs(0) - 1 - tl.program_id(0)"
    plant(monkeypatch, tmp_path, "program, all_rows = tl.program_id(0)", backwards)
    again = made.everything(backend)
    assert all(torch.equal(again[what], want[what]) for what in want)
