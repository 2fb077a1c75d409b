"""The amortised prior: close to the certified value where it was trained, enclosed by proof everywhere."""

import pytest
import torch

import lpn_fast as lf

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(dim=2, alpha=0.2):
    torch.manual_seed(3)
    model = lf.MLPLPN(dim, hidden=10, layers=1, beta=5.0, alpha=alpha)
    with torch.no_grad():
        for stage in model.stages:
            stage.skip.mul_(1.5)
    return model.requires_grad_(False)


def points(count, generator):
    return torch.randn(count, 2, generator=generator)


@pytest.fixture(scope="module")
def trained():
    """(model, amortised prior, points x of the range of f)."""
    model = make_model()
    torch.manual_seed(0)
    fast = lf.AmortisedPrior.train(
        model, points, network=lf.MLPLPN(2, hidden=30, layers=1, beta=5.0), steps=700, learning_rate=2e-2
    )
    return model, fast, model(points(200, torch.Generator().manual_seed(9)))


def test_the_estimate_is_close_to_the_certified_value(trained):
    model, fast, x = trained
    truth = lf.prior(model, x, tol=1e-6).value
    estimate = fast(x).value
    assert (estimate - truth).square().mean().sqrt() < 0.05 * truth.std()
    assert (estimate - truth).abs().median() < 0.02 * truth.std()


def test_the_interval_holds_the_value_whatever_the_network_says(trained):
    model, fast, x = trained
    torch.manual_seed(1)
    for one in (fast, lf.AmortisedPrior(model, lf.MLPLPN(2, hidden=5), offset=3.0)):
        estimate, truth = one(x), lf.prior(model, x, tol=1e-6)
        slack = 1e-5 + truth.value_bound
        assert (estimate.lower <= truth.value + slack).all() and (truth.value <= estimate.upper + slack).all()
        assert ((estimate.value - truth.value).abs() <= estimate.error_bound + slack).all()
        residual = (model(estimate.preimage) - x).norm(dim=1) / x.norm(dim=1)
        assert torch.allclose(estimate.residual, residual.double(), rtol=1e-3, atol=1e-6)


def test_validation_reports_the_error_on_points_it_has_not_seen(trained):
    model, fast, _ = trained
    u = points(5000, torch.Generator().manual_seed(77))
    x, exact = model.prox_and_prior(u)
    estimate = fast(x)
    rms = (estimate.value - exact).square().mean().sqrt().item()
    assert rms == pytest.approx(fast.validation["value_rms"], rel=0.5)
    assert (estimate.preimage - u).square().mean().sqrt().item() == pytest.approx(
        fast.validation["preimage_rms"], rel=0.5
    )
    assert fast.validation["preimage_rms"] < 0.2 * fast.validation["preimage_rms_of_x"]


def test_a_warm_start_saves_steps_changes_nothing_else_and_reports_its_error(trained):
    model, fast, x = trained
    cold, warm = lf.prior(model, x, tol=1e-3), lf.prior(model, x, tol=1e-3, warm_start=fast)
    assert warm.converged.all()
    assert warm.inversion.iterations.sum() < cold.inversion.iterations.sum()
    assert torch.allclose(warm.value, cold.value, atol=1e-4)
    assert torch.allclose(warm.amortised_error, fast(x).value - warm.value)
    distance = (fast(x).preimage - warm.preimage).norm(dim=1) / warm.preimage.norm(dim=1)
    assert torch.allclose(warm.inversion.start_error, distance.double(), atol=1e-5)
    assert cold.amortised_error is None and cold.inversion.start_error is None


def test_a_useless_warm_start_still_ends_at_the_preimage(trained):
    model, _, x = trained
    torch.manual_seed(1)
    wild = lf.MLPLPN(2, hidden=5)
    with torch.no_grad():
        wild.linear.fill_(1e3)
    result = lf.invert(model, x, warm_start=lf.AmortisedPrior(model, wild))
    assert result.converged.all() and (result.start_error > 10).all()
    with torch.no_grad():
        wild.linear.fill_(torch.finfo(torch.float32).max)
        wild.stages[-1].head.fill_(torch.finfo(torch.float32).max)
    assert lf.invert(model, x, warm_start=lf.AmortisedPrior(model, wild)).converged.all()


def test_without_strong_convexity_there_is_no_upper_bound_and_none_is_claimed():
    model = make_model(alpha=0.0)
    estimate = lf.AmortisedPrior(model, lf.MLPLPN(2, hidden=5))(model(points(4, None)))
    assert estimate.upper is None and estimate.error_bound is None and estimate.lower.isfinite().all()


def test_images_too():
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), beta=10.0, alpha=0.3).requires_grad_(False)
    draw = lambda count, generator: torch.rand(count, 1, 8, 8, generator=generator)  # noqa: E731
    fast = lf.AmortisedPrior.train(model, draw, steps=60, batch_size=8)
    x = model(torch.rand(3, 1, 8, 8))
    result = lf.prior(model, x, warm_start=fast, batch_size=2)
    assert result.converged.all() and result.amortised_error.shape == (3,)


def test_it_is_saved_and_loaded(trained, tmp_path):
    model, fast, x = trained
    path = fast.save(tmp_path / "fast.safetensors")
    again = lf.AmortisedPrior.load(model, path)
    assert torch.equal(again(x).value, fast(x).value) and again.validation == fast.validation
    lf.save(model, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="no amortised prior"):
        lf.AmortisedPrior.load(model, tmp_path / "plain.safetensors")


def test_wrong_use_is_named(trained):
    model, fast, x = trained
    with pytest.raises(ValueError, match="x0 and warm_start"):
        lf.invert(model, x, x0=x, warm_start=fast)
    with pytest.raises(ValueError, match="network"):
        lf.AmortisedPrior(model, lf.MLPLPN(3))
    with pytest.raises(ValueError, match="noise"):
        conditional = lf.ConvLPN(1, hidden=2, sigma_conditional=True)
        lf.AmortisedPrior(conditional, conditional)
    with pytest.raises(ValueError, match="steps"):
        lf.AmortisedPrior.train(model, points, steps=0)
