"""Experts that compete in contexts: averages over windows, torch's kernels, the family, and where training starts."""

import math

import pytest
import torch
from cases import perturbed

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.patches import Patches
from lpn_fast.algebra.spec import Spec, Stage, from_dict, to_dict
from lpn_fast.algebra.windows import Windows
from lpn_fast.networks.mixture import LOG_CONTEXT, SHARPNESSES
from lpn_fast.ops import registry
from lpn_fast.ops.backends import experts


def in_contexts(border="zero", channels=1, size=0.5, **options) -> lf.MixtureLPN:
    """A projected network far from its start, float64."""
    options = {"kernel": 3, "window": 5} | options
    model = lf.MixtureLPN(channels, experts=7, contexts=4, border=border, **options)
    return perturbed(model.double(), size)


def problem(model, images=3, height=9, width=11):
    """(x, P, features, v, p); every image at another noise level."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    features = draw(images, len(model.spec.noise_levels)).softmax(1)
    shape = images, model.spec.channels, height, width
    return 2 * draw(*shape), model.packed().detach(), features, draw(*shape), draw(images)


@pytest.mark.parametrize("weights", ["ones", "mirrored"])
@pytest.mark.parametrize("side, height, width", [(5, 9, 12), (17, 6, 4), (3, 1, 30)])
def test_averages_give_every_position_all_its_weight_back(weights, side, height, width):
    like = torch.rand(0, dtype=torch.float64)
    rows, columns = torch.ones(height).double(), torch.ones(width).double()
    if weights == "mirrored":
        rows, columns = (Patches((n, n), 4, like).axis_weights[0] for n in (height, width))
    average, w = Windows(side, rows, columns), rows[:, None] * columns
    a, b = torch.rand(2, 3, *w.shape).double(), torch.rand(2, 3, *w.shape).double()
    assert torch.allclose((average(a) * b).sum(), (a * average.adjoint(b)).sum())
    assert torch.allclose(average.adjoint(w.expand(1, 1, -1, -1))[0, 0], w, rtol=1e-12)
    assert (average(a) >= 0).all()


@pytest.mark.parametrize("border", ["zero", "mirror"])
@pytest.mark.parametrize("kept", [1 << 28, 0], ids=["kept", "again"])
@pytest.mark.parametrize("positions", [10, 300])
@pytest.mark.parametrize("spacing", [1, 2])
def test_kernels_agree_with_the_reference(border, kept, positions, spacing, monkeypatch):
    """In blocks of one row or of all, of single images or several, with energies kept or computed twice."""
    monkeypatch.setattr(experts, "POSITIONS", positions)
    monkeypatch.setattr(experts, "KEPT_BYTES", kept)
    wide = {"kernel": 4, "filters": 34, "spacing": 2, "window": 9}
    model = in_contexts(border, channels=2, **({"filters": 20} if spacing == 1 else wide))
    x, packed, features, v, p = problem(model)
    x = x / spacing  # larger energies cost the reference digits
    psi, f = experts.value_prox(model.spec, x, packed, features, True)
    assert torch.allclose(psi, reference.potential(model.spec, x, packed, features), rtol=1e-12)
    assert torch.allclose(f, reference.prox(model.spec, x, packed, features), rtol=1e-10, atol=1e-12)
    hv = experts.hvp(model.spec, x, packed, features, v)
    assert torch.allclose(hv, reference.hvp(model.spec, x, packed, features, v), rtol=1e-9, atol=1e-11)
    for given in ((p, v), (p, None), (None, v)):
        found = experts.vjp(model.spec, x, packed, features, *given)
        for mine, right in zip(found, reference.vjp(model.spec, x, packed, features, *given), strict=True):
            assert (mine - right).abs().max() <= 1e-10 * right.abs().max()


def test_contexts_without_a_preference_change_nothing():
    """Odds of one: f of the mixture without contexts, whatever the window and the sharpness."""
    plain, model = (in_contexts(filters=14).eval() for _ in range(2))
    plain = lf.MixtureLPN(1, kernel=3, experts=7, filters=14).double().eval()
    state = {name.replace("stages.2.head", "stages.1.head"): t for name, t in model.state_dict().items()}
    plain.load_state_dict({name: t for name, t in state.items() if "stages.2" not in name})
    x = torch.rand(2, 1, 12, 9, dtype=torch.float64)
    assert not torch.allclose(model(x, 0.1), plain(x, 0.1), atol=1e-4)
    with torch.no_grad():
        model.stages[2].odds.fill_(1.0)
    assert torch.allclose(model(x, 0.1), plain(x, 0.1), atol=1e-12)


def test_a_context_is_decided_by_the_neighbourhood():
    """Two experts that a patch alone cannot tell apart: the energy around a plain place decides for it."""
    model = lf.MixtureLPN(1, kernel=2, experts=2, contexts=2, window=9, sigma_conditional=(0.1,)).double()
    with torch.no_grad():
        model.stages[1].core[0, 1:], model.stages[1].core[1, 1:] = 0.05, 1.5
        model.stages[1].bias.copy_(torch.tensor([0.0, -3.0]))
        model.stages[2].odds.copy_(torch.tensor([[[1.0, 1e-3], [1e-3, 1.0]]]))
    model.project_()
    x = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    rough = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rough[..., 9:12, 9:12] = 0
    bump = torch.zeros_like(x)
    bump[..., 10, 10] = 0.01
    passed = [(model(around + bump, 0.1) - model(around, 0.1))[0, 0, 10, 10] / 0.01 for around in (x, rough)]
    assert passed[1] > 2 * passed[0]


@pytest.mark.parametrize("border", ["zero", "mirror"])
def test_gain_is_that_of_the_experts(border):
    model = in_contexts(border, filters=14)
    gain = lf.asymptotic_gain(model)
    assert 0.5 < gain <= 1
    x = 1e5 * torch.randn(4, 1, 12, 9, dtype=torch.float64)
    assert (model(x, 0.1).flatten(1).norm(dim=1) <= (gain + 1e-3) * x.flatten(1).norm(dim=1)).all()


def test_float32_loses_no_digits_to_what_experts_share():
    """Energies of thousands, sharpened, leave slopes as exact as those of a plain mixture are."""
    model = in_contexts("mirror", filters=14, size=0.2)
    with torch.no_grad():
        model.stages[2].sharpness.fill_(math.log(50))
    x, packed, features, v, _ = problem(model)
    x = 40 * x
    right = experts.value_prox(model.spec, x, packed, features, True)
    single = [t.float() for t in (x, packed, features)]
    found = experts.value_prox(model.spec, *single, True)
    for mine, exact in zip(found, right, strict=True):
        assert (mine.double() - exact).abs().max() < 2e-4 * exact.abs().max()
    hv, hw = (experts.hvp(model.spec, *single, t.float()).double() for t in (v, v.flip(2)))
    asymmetry = (hv * v.flip(2) - hw * v).sum((1, 2, 3)).abs()
    assert (asymmetry < 1e-6 * hv.norm() * v.norm()).all()


def test_steps_are_in_logarithms_and_end_at_the_limits():
    model = in_contexts()
    before = model.stages[2].odds.clone()
    steps = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    steps["stages.2.odds"] += 0.5
    model.step_(steps)
    assert torch.allclose(model.stages[2].odds, before * math.exp(0.5))
    for way in (100.0, -100.0):
        steps["stages.2.odds"].fill_(way)
        steps["stages.2.sharpness"] = torch.full_like(model.stages[2].sharpness, way)
        model.step_(steps)
        model.project_()
        assert math.isclose(model.stages[2].odds.max().log().item(), math.copysign(LOG_CONTEXT, way), rel_tol=1e-6)
        assert math.isclose(model.stages[2].sharpness.max().exp().item(), SHARPNESSES[way > 0], rel_tol=1e-6)
        assert model(torch.rand(1, 1, 8, 8).double(), 0.1).isfinite().all()
    model.stages[2].odds.grad = torch.ones_like(model.stages[2].odds)
    model.project_gradients_()
    assert torch.equal(model.stages[2].odds.grad, model.stages[2].odds)


def test_contexts_start_at_what_is_found_together():
    """Images half plain, half rough: fitted contexts denoise better than the same experts without them."""
    generator = torch.Generator().manual_seed(0)
    sigma = 0.1

    def crops(count, _):
        rough = 0.3 * torch.randn(count, 1, 40, 40, generator=generator)
        rough[..., :20] *= 0.02
        return 0.5 + rough

    def model_of(count):
        torch.manual_seed(0)
        return lf.MixtureLPN(1, 2, experts=12, contexts=count, sigma_conditional=(sigma,), border="mirror")

    x = crops(16, None)
    y = x + sigma * torch.randn(x.shape, generator=generator)
    plain, model = model_of(0).eval(), model_of(4).eval()
    assert model.has_start_from_data and not plain.has_start_from_data
    model.start_from_(crops)
    better = lf.metrics.psnr(model(y, sigma), x).mean() - lf.metrics.psnr(plain(y, sigma), x).mean()
    assert better > 0.05, better
    with pytest.raises(ValueError, match="or contexts, got neither"):
        plain.start_from_(crops)


def test_wrong_contexts_are_named():
    with pytest.raises(ValueError, match="contexts must be at least 2, or 0 for none, got 1"):
        lf.MixtureLPN(1, contexts=1)
    with pytest.raises(ValueError, match="window must be odd and at least 3, got 6"):
        lf.MixtureLPN(1, contexts=4, window=6)
    spec = lf.MixtureLPN(1, kernel=3, experts=7, contexts=4).spec
    first, experts, last = spec.stages
    alone = {"square_first": True, "noise_levels": (0.1,), "noise_units": True}
    with pytest.raises(ValueError, match="a window requires competing units, after experts without a head"):
        Spec("conv", 1, (first, Stage(4, 1, skip_kernel=0, heads=("linear",), competing=True, window=5)), 1.0, **alone)
    with pytest.raises(ValueError, match="stage 1: only a last stage has a window"):
        Spec("conv", 1, (first, Stage(4, 1, skip_kernel=0, window=5), last), 1.0, **alone)
    with pytest.raises(ValueError, match="beta must be 1"):
        Spec("conv", 1, spec.stages, 2.0, **alone)


def test_specs_without_contexts_are_written_as_before():
    assert "window" not in lf.MixtureLPN(1).spec.encoded
    spec = lf.MixtureLPN(1, contexts=4).spec
    assert from_dict(to_dict(spec)) == spec and lf.MixtureLPN.has_form_of(spec)


def test_triton_refuses():
    if "triton" in registry._absent:
        pytest.skip(registry._absent["triton"])
    reason = registry.reasons(in_contexts().float().spec, torch.zeros(1, 1, 9, 9))["triton"]
    assert reason == "experts that compete in contexts are not covered"
