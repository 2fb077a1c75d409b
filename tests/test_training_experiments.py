"""The experiments about training: a small run of each, and the pieces of theirs that can be wrong."""

import pytest
import torch
from tables import rows_of

import lpn_fast as lf
from bench.experiments import gaussian_mixture, laplacian, training_speed
from bench.experiments.__main__ import main
from lpn_fast.networks.initialise import STARTS, initialise_as_
from lpn_fast.training.laplacian import sparse_is_wide

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("lpn_fast.training.laplacian.BATCH", 200)
    monkeypatch.setattr(laplacian, "QUICK_STEPS", 6)
    monkeypatch.setattr("bench.experiments.initialisation.QUICK_STEPS", 10)
    monkeypatch.setattr(training_speed, "BLOCK", 1)


@pytest.mark.parametrize(
    "command, rows, figure",
    [
        (["laplacian", "--quick"], 3, "laplacian.png"),
        (["gaussian-mixture", "--quick"], 3, "gaussian_mixture.png"),
        (["initialisation", "--quick", "--threads", "1"], 6, "initialisation.png"),
        (["training-speed", "--made-up", "--rounds", "1", "--batch", "2", "--threads", "1"], 3, None),
    ],
)
def test_experiments_write_a_table_and_a_figure(tmp_path, command, rows, figure):
    assert main([*command, "--out", str(tmp_path)]) == 0
    table = rows_of(tmp_path / "results.csv")
    assert len(table) == rows and {"device", "commit", "config_json"} <= table[0].keys()
    assert figure is None or (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_quick_runs_do_not_overwrite_results(capsys):
    for name in ("laplacian", "gaussian-mixture", "initialisation", "faces", "ct", "cs"):
        assert main([name, "--quick"]) == 2 and "--out" in capsys.readouterr().err


class Known(torch.nn.Module):
    """f and psi in closed form, as `prior_rms` calls them: soft thresholding."""

    def potential_and_prox(self, y):
        excess = (y.abs() - 1).clamp(min=0)
        return 0.5 * excess.square()[:, 0], y.sign() * excess


def test_the_prior_of_soft_thresholding_is_the_absolute_value():
    assert laplacian.prior_rms(Known()) < 1e-6


def test_the_interpolated_mmse_prior_is_the_closed_form():
    y = torch.linspace(-3, 3, 13, dtype=torch.float64)
    mixture, sigma = gaussian_mixture.MIXTURE, gaussian_mixture.SIGMA
    values = gaussian_mixture.mmse_prior(mixture, mixture.posterior_mean(y, sigma))
    assert torch.allclose(values, mixture.mmse_prior(y, sigma), atol=1e-6)


def test_stratified_samples_lie_in_their_quantile_intervals():
    x = gaussian_mixture.stratified(gaussian_mixture.MIXTURE)(50, torch.Generator().manual_seed(0))[:, 0].double()
    edges = gaussian_mixture.MIXTURE.quantile(torch.arange(1, 50) / 50)
    assert (x[:-1] <= edges + 1e-3).all() and (x[1:] >= edges - 1e-3).all()


def test_sparse_regions_get_wide_wells():
    y = torch.cat([torch.linspace(-1, 1, 800), torch.linspace(3, 11, 200)])[torch.randperm(1000), None]
    factor = sparse_is_wide(y)
    dense, sparse = factor[y[:, 0].abs() < 0.9], factor[y[:, 0] > 3.9]
    assert torch.allclose(dense, torch.ones(()), atol=0.01)
    assert torch.allclose(sparse, torch.tensor(4.0), atol=0.01)  # 16 times as sparse, the square root


@pytest.mark.parametrize("start", STARTS)
def test_every_start_is_an_exact_prox_and_differs(start):
    torch.manual_seed(0)
    model = initialise_as_(lf.ConvLPN(1, hidden=8), start)
    assert all((p >= 0).all() for n, p in model.named_parameters() if n.endswith(("core", "head", "head_squared")))
    assert lf.verify(model, torch.rand(2, 1, 16, 16)).all_hold
    with pytest.raises(ValueError, match="start must be one of"):
        initialise_as_(model, "random")


def test_the_principled_start_keeps_the_moments_of_pre_activations():
    """Variance one and correlation one half, from stage to stage, for standard normal ones before."""
    torch.manual_seed(0)
    model = initialise_as_(lf.MLPLPN(4, hidden=300, layers=1), "principled")
    core, bias = model.stages[1].core.detach(), model.stages[1].bias.detach()
    shared, own = torch.randn(4000, 1), torch.randn(4000, 300)
    u = (shared + own) / 2**0.5  # variance 1, correlation 1/2
    v = u.clamp(min=0) @ core.T + bias
    covariance = torch.cov(v.T)
    variance = covariance.diagonal()
    off = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
    assert v.mean().abs() < 0.1
    assert off.mean() == pytest.approx(0.5, rel=0.1) and (v.square().mean(0)).mean() == pytest.approx(1, rel=0.15)
    assert variance.mean() > off.mean()


@pytest.mark.parametrize(("channels", "hidden"), [(1, 50), (3, 150), (1, 70)])
def test_a_squared_head_starts_as_the_identity(channels, hidden):
    torch.manual_seed(0)
    model = lf.ConvLPN(channels, hidden=hidden, beta=2000.0)
    x, inside = torch.rand(1, channels, 16, 18), (..., slice(4, -4), slice(4, -4))
    with torch.no_grad():
        for stage in model.stages:
            stage.head.zero_()
    error = (model(x) - x)[inside].abs().max().item()
    # 20 rows of a basis that is not complete add 5 % of what they see
    assert error < (2e-3 if hidden == 50 * channels else 0.06)


@pytest.mark.parametrize("conditional", [False, True])
def test_thresholds_of_the_start_follow_the_noise(conditional):
    """A told noise level and one that comes with every call lead to the same f, which denoises; constants pass."""
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=50, beta=1000.0, alpha=0.0, sigma_conditional=conditional)
    level = 0.1 if conditional else None  # a knot
    if not conditional:
        initialise_as_(model, "default", 0.1)
    with torch.no_grad():
        for stage in model.stages:
            stage.head.zero_()
    flat = torch.full((1, 1, 32, 32), 0.5)
    denoised = model(flat + 0.1 * torch.randn(flat.shape), level)[..., 4:-4, 4:-4]
    assert (model(flat, level)[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.01
    assert (denoised - 0.5).square().mean().sqrt() < 0.04
    wanted = torch.full((48,), -0.13)
    stage = model.stages[0]
    assert torch.allclose(stage.noise[2:50, 5] if conditional else stage.bias[2:50], wanted)


def test_the_published_start_has_no_basis():
    torch.manual_seed(0)
    model = initialise_as_(lf.ConvLPN(1, hidden=50), "published", 0.1)
    first = model.stages[0]
    assert not torch.allclose(first.skip[::2], -first.skip[1::2]) and not first.bias.any()
    assert first.head_squared.log().mean().item() == pytest.approx(-10, abs=0.1)
