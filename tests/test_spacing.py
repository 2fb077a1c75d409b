"""Patches at every second position: still a tight frame, exact proxes, and the same weights for any spacing."""

import pytest
import torch
from cases import perturbed

import lpn_fast as lf
from lpn_fast.algebra.patches import Patches
from lpn_fast.algebra.spec import BORDERS
from lpn_fast.networks.mixture import MixtureLPN
from lpn_fast.training.config import from_dict
from lpn_fast.training.run import build_model


def network(spacing=2, border="mirror", contexts=4, **options) -> MixtureLPN:
    options = {"kernel": 4, "experts": 7, "filters": 20, "window": 9} | options
    model = MixtureLPN(1, contexts=contexts, border=border, spacing=spacing, **options)
    return perturbed(model.double().eval(), 0.5).project_()


@pytest.mark.parametrize("k", [2, 4, 10])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 9, 10, 17, 32])
def test_every_second_patch_is_a_tight_frame_up_to_the_border(k, side):
    x = torch.randn(1, 1, side, side + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
    patches = Patches(x.shape[2:], k, x, spacing=2)
    found = patches.extended(x).unfold(2, k, 2).unfold(3, k, 2)
    assert found.shape[2:4] == patches.weights.shape
    share = (found.square().sum((4, 5)) * patches.weights).sum() / ((k / 2) ** 2 * x.square().sum())
    assert torch.isclose(share, torch.ones_like(share), rtol=1e-12) if side >= k - 1 else share <= 1 + 1e-12


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("contexts", [0, 4])
def test_gain_is_below_one_and_reached(border, contexts):
    model = network(border=border, contexts=contexts)
    gain = lf.asymptotic_gain(model)
    assert 0.5 < gain <= 1
    x = 1e5 * torch.randn(4, 1, 12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = 1e5 * torch.ones(1, 1, 12, 9, dtype=torch.float64)
    assert (model(x, 0.1).flatten(1).norm(dim=1) <= (gain + 1e-3) * x.flatten(1).norm(dim=1)).all()
    assert model(flat, 0.1).norm() > 0.999 * gain * flat.norm() or border == "zero"


@pytest.mark.parametrize("border", BORDERS)
def test_shifts_by_two_pixels_are_followed_and_those_by_one_are_not(border):
    """Inside: as far from the border as patches and windows see."""
    model = network(border=border)
    x = torch.rand(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = (..., slice(24, 40), slice(24, 40))
    for shift, follows in ((2, True), (1, False)):
        moved = model(x.roll((shift, shift), (2, 3)), 0.1).roll((-shift, -shift), (2, 3))
        assert torch.allclose(moved[inside], model(x, 0.1)[inside], atol=1e-12) == follows


@pytest.mark.parametrize("contexts", [0, 4])
def test_weights_serve_for_any_spacing(contexts):
    model = network(contexts=contexts)
    dense = model.with_spacing(1)
    assert dense.spec == network(1, contexts=contexts).spec and MixtureLPN.has_form_of(model.spec)
    assert dense.with_spacing(2).spec == model.spec and "spacing=2" in model.extra_repr()
    assert all(torch.allclose(a, b) for a, b in zip(dense.with_spacing(2).packed(), model.packed(), strict=True))
    assert lf.asymptotic_gain(dense) == pytest.approx(lf.asymptotic_gain(model))
    x = torch.rand(1, 1, 30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change, between = (model(x, 0.1) - x).norm(), (model(x, 0.1) - dense(x, 0.1)).norm()
    assert 0 < between < 0.5 * change, "averages of fewer patches, no other function"


def test_windows_are_in_pixels():
    model = network(window=9)
    assert model.spec.stages[2].window == 5 and model.with_spacing(1).spec.stages[2].window == 9
    assert model.with_spacing(window=25).spec.stages[2].window == 13
    assert model.with_spacing(1, 25).spec == network(1, window=25).spec


def test_training_goes_on_with_another_spacing(tmp_path):
    lf.save(network().float(), tmp_path / "wide.safetensors")
    config = {"out": "run", "data": {"synthetic": "ellipses"}, "sigma": [0.05, 0.2]}
    start = {"family": "mixture", "start": str(tmp_path / "wide.safetensors")}
    model = build_model(from_dict({**config, "model": {**start, "spacing": 1, "context_window": 17}}))
    assert (model.spec.spacing, model.spec.stages[2].window) == (1, 17)
    assert build_model(from_dict({**config, "model": start})).spec.spacing == 2
    other = {"family": "mixture", "start": "frame-gray", "spacing": 1}
    with pytest.raises(ValueError, match="model.spacing and model.context_window are for mixtures, which frame-gray"):
        build_model(from_dict({**config, "model": other}))


@pytest.mark.parametrize("spacing", [1, 2])
def test_contexts_of_many_filters_start_at_data(spacing):
    """Gaussians fitted to patches, then contexts to these: what a new run of both starts with."""
    torch.manual_seed(0)
    options = {"filters": 20, "contexts": 3, "window": 5, "spacing": spacing, "border": "mirror"}
    model = MixtureLPN(1, 4, 5, sigma_conditional=(0.1, 0.2), **options)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.start_from_(lambda count, generator: torch.rand(count, 1, 24, 24, generator=generator))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"stages.0.skip", "stages.1.core", "stages.2.odds", "stages.2.bias"} <= moved
    x = torch.rand(1, 1, 20, 20)
    assert model(x, 0.1).isfinite().all() and lf.asymptotic_gain(model) <= 1
    far = 1e4 * (x - x.mean())
    assert model(far, 0.1).norm() > 0.6 * far.norm(), "what images have much of passes, whatever the spacing"


def test_wrong_spacings_are_named():
    with pytest.raises(ValueError, match="spacing must be 1, or 2 for kernels of even side, got 2 for a side of 7"):
        MixtureLPN(1, spacing=2)
    with pytest.raises(ValueError, match="got 3 for a side of 6"):
        MixtureLPN(1, 6, spacing=3)
    with pytest.raises(ValueError, match="window is for networks with contexts, this one has none; got 17"):
        MixtureLPN(1, 4, 6).with_spacing(window=17)
    with pytest.raises(ValueError, match="window must be odd and at least 3, got 4"):
        network().with_spacing(window=4)
