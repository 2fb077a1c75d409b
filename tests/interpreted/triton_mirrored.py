"""Whole frames and mixtures with mirrored borders under the interpreter against float64; run by test_triton_kernels.py.

What triton_frame.py asks of those with zeros around an image, of networks whose image goes on mirrored; images are
smaller than a patch, too.
"""

import pytest
import torch
from cases import relative
from interpreted import triton_frame
from interpreted.triton_frame import (
    SIZES,
    TILE,
    TOLERANCE,
    call,
    errors,
    gradient_errors,
    hessian_error,
    mixture,
    small_tiles_and_nan,  # noqa: F401  (a fixture)
)
from planted import mutant

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.kernels.triton import frame, frame_gradient, positions
from lpn_fast.ops.backends.triton import TritonBackend, fused
from lpn_fast.ops.backends.triton.device import launchers

NETWORKS = {
    "mirrored frame": lambda: lf.FrameLPN(2, kernel=3, gates=((1, 1, 21),), border="mirror"),
    "mirrored mixture": lambda: mixture(1, 4, 19).with_border("mirror"),
}
triton_frame.NETWORKS |= NETWORKS


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("size", [*SIZES, (1, 2, 3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_potential_and_prox_are_those_of_float64(name, size, precision):
    assert all(e < t for e, t in zip(errors(name, size, precision), TOLERANCE[precision], strict=True))


@pytest.mark.parametrize("precision, most", [("fp32", 1e-5), ("fp16", 1e-3)])
@pytest.mark.parametrize("size", [(3, 4, 13), (2, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_hessian_products_are_those_of_float64(name, size, precision, most):
    assert hessian_error(name, size, precision) < most


@pytest.mark.parametrize("size", [(2, 3, 10), (3, 1, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_weights_are_those_of_float64(name, size):
    assert max(gradient_errors(name, size)) < 1e-5


def test_half_precision_rounds_the_weights_and_two_factors_of_their_gradients():
    assert max(gradient_errors("mirrored frame", precision="fp16")) < 2e-3


@pytest.mark.parametrize("name, given", [("mirrored frame", "psi"), ("mirrored mixture", "f")])
def test_gradients_of_either_kind_add_up_over_parts_of_an_image(name, given, monkeypatch):
    monkeypatch.setattr(positions, "splits", lambda tiles, steps, processors: min(steps, 3))
    assert max(gradient_errors(name, given=given)) < 1e-5


def test_images_that_go_one_by_one_and_strided_ones_give_the_same(monkeypatch):
    spec, x, packed, features = call("mirrored frame", (3, 4, 13))
    want = fused.value_prox(spec, x, packed, features, True, "fp32")
    monkeypatch.setattr(frame, "ROW_BYTES", 1)
    monkeypatch.setattr(frame_gradient, "KEPT_BYTES", 1)
    strided = x.to(memory_format=torch.channels_last)
    for some in (x, strided):
        assert all(map(torch.equal, fused.value_prox(spec, some, packed, features, True, "fp32"), want))
    of_strided = {"x_of": lambda x: x.to(memory_format=torch.channels_last)}
    assert max(gradient_errors("mirrored frame", (3, 3, 8), **of_strided)) < 1e-5


def test_the_hessian_is_symmetric():
    spec, x, packed, features = call("mirrored mixture", (2, 3, 9))
    u, v = torch.randn(2, *x.shape)
    hu, hv = (fused.hvp(spec, x, packed, features, w, "fp32") for w in (u, v))
    gap = (u * hv - v * hu).flatten(1).sum(1).abs() / (u.flatten(1).norm(dim=1) * hv.flatten(1).norm(dim=1))
    assert (gap < 1e-6).all()


def test_results_are_the_same_bits_every_time_and_none_without_images():
    spec, x, packed, features = call("mirrored mixture", (2, 3, 20))
    rest = torch.randn(2), torch.randn_like(x), "fp32"
    one, other = (fused.vjp(spec, x, packed, features, *rest) for _ in range(2))
    assert all(map(torch.equal, one, other)) and all(t.isfinite().all() for t in one)
    psi, f = fused.value_prox(spec, x[:0], packed, features[:0], True, "fp32")
    assert psi.shape == (0,) and f.shape == (0, 1, 3, 20)
    gx, gP = fused.vjp(spec, x[:0], packed, features[:0], rest[0][:0], rest[1][:0], "fp32")
    assert gx.shape == (0, 1, 3, 20) and not gP.any()


def test_a_training_step_on_it_is_that_of_float64():
    model = mixture(1, 3, 19).with_border("mirror")
    x, sigma = 0.2 * torch.randn(2, 1, 4, 9), torch.tensor([0.05, 0.2])

    def gradients(model, x, sigma):
        psi, f = model.potential_and_prox(x, sigma)
        return torch.autograd.grad(f.pow(3).sum() + psi.sum(), list(model.parameters()))

    want = [t.clone() for t in gradients(model.double(), x.double(), sigma.double())]
    with lf.use_backend("triton"):
        found = gradients(model.float(), x, sigma)
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, want, strict=True))


def test_wide_ones_have_their_gradients_of_torch():
    spec = lf.FrameLPN(3, kernel=5, gates=((1, 1, 4),), border="mirror").spec
    assert fused.covers(spec) and not fused.covers_gradients(spec, "fp32") and fused.covers_gradients(spec, "fp16")
    backend, x = TritonBackend(), torch.randn(1, 3, 2, 6)
    features, packed = torch.rand(1, len(spec.noise_levels)), lf.LPN(spec).packed().detach()
    v, call = torch.randn_like(x), (spec, x, packed, features)
    f, tape = backend.evaluate(*call, False, True, "fp32")[1:]
    gx, gP = backend.vjp(*call, None, v, tape, "fp32")
    wide = [t.double() for t in call[1:]]
    want = reference.vjp(spec, *wide, None, v.double())
    assert relative(f, reference.prox(spec, *wide)) < 2e-6
    assert relative(gx, want[0]) < 1e-5 and relative(gP, want[1]) < 1e-5
    assert any("torch's operations" in line for line in backend.details(spec, x, "fp32"))


@pytest.mark.parametrize(
    "model",
    [
        lf.FrameLPN(1, kernel=3, gates=((1, 1, 4), (1, 1, 3)), border="mirror"),
        lf.MixtureLPN(1, kernel=3, experts=4, filters=129, border="mirror"),
        lf.MixtureLPN(1, kernel=9, experts=4, border="mirror"),
    ],
)
def test_larger_ones_are_refused_by_name(model):
    most = "only frames of up to 128 filters of side 8 under one stage of gates are covered"
    refusal = TritonBackend().supports(model.spec, torch.ones(1, 1, 4, 4), "fp32")
    assert refusal == f"of networks with border 'mirror' {most}"


FAULTS = {
    "weights of rows alone": ("* tl.load(column_weights + q, mask=there, other=0.0)", "* tl.where(there, 1.0, 0.0)"),
    "psi without weights": ("second * counts[:, None], value * counts", "second * counts[:, None], value"),
    "delta without weights": ("second * counts[:, None], value * counts", "second, value * counts"),
    "positions of the image": ("else column - (KERNEL - 1)  # position", "else column"),
    "positions counted twice": ("(q < columns) & (m >= KERNEL - 1)", "(q < columns)"),
    "margins cut off": ("wide = width + 2 * KERNEL - 2\n", "wide = width\n"),
    "zeros beyond the border": ("mask=taps, other=0).to(tl.int64)", "mask=taps & (h >= 0), other=0).to(tl.int64)"),
    "rows mirrored about another pixel": ("mirrored_rows + row + i", "mirrored_rows + row + tl.minimum(i + 1, 3)"),
}
OF_WEIGHTS = {
    "the gates' weights forgotten": ("tl.load(row_weights + row) * tl.load(column_weights + q), 0.0)", "1.0, 0.0)"),
    "weights within the curvature": ("1 - slope if row_weights is None else 1 - 1 / odds", "1 - slope"),
    "the soft maximum without weights": ("1.0 if weights is None else", "1.0 if True else"),
    "other pixels around what dA multiplies": ("else (border[:2], border[2:])", "else (None, border[2:])"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, tmp_path, monkeypatch):
    planted = mutant(frame, *FAULTS[fault], tmp_path)
    monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
    monkeypatch.setattr(launchers(), "frame", planted)
    try:
        found = [hessian_error("mirrored mixture", (1, 3, 20), "fp32"), *errors("mirrored mixture", (1, 3, 20), "fp32")]
    except Exception:
        return  # an access that the interpreter refuses
    assert not max(found) < 1e-5


@pytest.mark.parametrize("fault", OF_WEIGHTS)
def test_a_planted_fault_of_gradients_of_the_weights_is_seen(fault, tmp_path, monkeypatch):
    planted = mutant(frame_gradient, *OF_WEIGHTS[fault], tmp_path)
    monkeypatch.setattr(planted, "default_tile", lambda *_: TILE)
    monkeypatch.setattr(launchers(), "frame_gradient", planted)
    assert not max(gradient_errors("mirrored frame" if "curvature" in fault else "mirrored mixture", (2, 3, 9))) < 1e-5
