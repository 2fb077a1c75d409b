"""MixtureLPN: the posterior mean of a Gaussian mixture per patch; what frames have too is in test_patch_networks.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import perturbed
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import lpn_fast as lf
from lpn_fast import training
from lpn_fast.networks import mixture_start
from lpn_fast.networks.mixture import LIMIT, LOG_ODDS
from lpn_fast.networks.mixture_filters import forms_of_experts, keep_tangents_


def mixture(size=0.5) -> lf.MixtureLPN:
    """A projected network far from its start, float64."""
    return perturbed(lf.MixtureLPN(1, kernel=3, experts=7).double(), size)


def averaged_posterior_mean(density, x, sigma, k, means):
    """y + grad log p(y) of every patch y of x / sigma, put back where it came from; the means pass beside it."""
    n, (height, width) = means.shape[1], x.shape[2:]
    y = F.unfold(F.pad(x / sigma, (k - 1,) * 4), k)  # [N, n, patches]
    flat = y.transpose(1, 2).reshape(-1, n).requires_grad_()
    mean = flat + torch.autograd.grad(density.log_prob(flat).sum(), flat)[0]
    mean = mean + LIMIT * flat.detach() @ means.T @ means  # the experts give no mean back: v = 0 there
    patches = mean.view(len(x), -1, n).transpose(1, 2)
    padded = F.fold(patches, (height + 2 * (k - 1), width + 2 * (k - 1)), k)[..., k - 1 : 1 - k, k - 1 : 1 - k]
    return sigma * padded / k**2


@pytest.mark.parametrize("channels", [1, 2])
def test_f_is_the_posterior_mean_of_each_patch_averaged(channels):
    """Against torch's mixture distribution: y + grad log p(y) of every patch, put back where it came from."""
    torch.manual_seed(1)
    k, experts, sigma = 3, 4, 0.2
    n = channels * k * k
    model = lf.MixtureLPN(channels, k, experts, alpha=0.0).double()
    basis = model.stages[0].skip.detach().flatten(1) * k  # rows a_j
    variance = torch.logspace(-1, 2, experts, dtype=torch.float64)[:, None] * torch.rand(experts, n).double()
    variance[:, :channels] = 0  # means are not the experts' business
    weights = torch.rand(experts).double().softmax(0)
    with torch.no_grad():
        model.stages[1].core.copy_((k * k / 2 * variance / (1 + variance))[:, :, None, None])
        model.stages[1].bias.copy_(weights.log() - 0.5 * torch.log1p(variance).sum(1))
    covariance = torch.einsum("mj,jp,jq->mpq", variance, basis, basis) + torch.eye(n).double()
    density = MixtureSameFamily(Categorical(weights), MultivariateNormal(torch.zeros(n).double(), covariance))

    x = torch.rand(2, channels, 7, 8, dtype=torch.float64)
    means = basis[:channels]
    assert torch.allclose(model(x, sigma), averaged_posterior_mean(density, x, sigma, k, means), atol=1e-10)


def wide(size=0.5) -> lf.MixtureLPN:
    """The same with more filters than a basis has."""
    return perturbed(lf.MixtureLPN(1, kernel=3, experts=7, filters=20).double(), size)


def test_with_filters_of_its_own_for_each_expert_f_is_the_posterior_mean_of_any_mixture():
    """Covariances without a common eigenvector; against torch's mixture distribution, patch by patch."""
    torch.manual_seed(1)
    k, experts, sigma = 3, 4, 0.2
    n = k * k
    model = lf.MixtureLPN(1, k, experts, alpha=0.0, filters=1 + experts * (n - 1)).double().project_()
    means = torch.full((1, n), 1 / k, dtype=torch.float64)
    without = torch.linalg.qr(torch.cat([means, torch.eye(n, dtype=torch.float64)]).T)[0].T[1:]
    turned = [torch.linalg.qr(torch.randn(n - 1, n - 1).double())[0] @ without for _ in range(experts)]
    variance = torch.logspace(-1, 2, experts, dtype=torch.float64)[:, None] * torch.rand(experts, n - 1).double()
    signal = [a.T @ (v[:, None] * a) for a, v in zip(turned, variance, strict=True)]
    covariance = torch.eye(n).double() + torch.stack(signal)
    weights = torch.rand(experts).double().softmax(0)
    with torch.no_grad():
        model.stages[0].skip.copy_((torch.cat([means, *turned]) / k).view_as(model.stages[0].skip))
        own = torch.block_diag(*(v[None] for v in variance / (1 + variance)))
        model.stages[1].core.copy_((k * k / 2 * torch.cat([torch.zeros(experts, 1), own], 1))[:, :, None, None])
        model.stages[1].bias.copy_(weights.log() - 0.5 * torch.log1p(variance).sum(1))
    before = model.packed().clone()
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9, atol=1e-12), "no mixture is beyond the limits"
    density = MixtureSameFamily(Categorical(weights), MultivariateNormal(torch.zeros(n).double(), covariance))

    x = torch.rand(2, 1, 7, 8, dtype=torch.float64)
    assert torch.allclose(model(x, sigma), averaged_posterior_mean(density, x, sigma, k, means), atol=1e-10)


@torch.no_grad()
def test_it_starts_at_a_mixture_that_suits_its_data(monkeypatch):
    """Textures of two directions: half a decibel better than where training starts without data."""
    monkeypatch.setattr(mixture_start, "PATCHES", 16_000)
    generator, sigma, k = torch.Generator().manual_seed(0), 0.1, 4

    def crops(count, _):
        rough = 0.3 * torch.randn(count, 1, 20, 20, generator=generator)
        along = torch.cumsum(rough, -1) / 3
        flip = torch.arange(count) % 2 == 0
        return torch.where(flip.view(-1, 1, 1, 1), along, along.mT)

    model = lf.MixtureLPN(1, k, experts=6, filters=40, border="mirror").eval()
    x = crops(64, None)
    y = x + sigma * torch.randn(x.shape, generator=generator)
    drawn = lf.metrics.psnr(model(y, sigma), x).mean()
    lines = []
    model.start_from_(crops, seed=0, report=lines.append)
    fitted = lf.metrics.psnr(model(y, sigma), x).mean()
    assert fitted > drawn + 0.5 and len(lines) == mixture_start.ROUNDS
    assert lf.asymptotic_gain(model) <= 1
    again = lf.MixtureLPN(1, k, experts=6, filters=40, border="mirror").eval()
    generator.manual_seed(0)
    crops(64, None), torch.randn(x.shape, generator=generator)
    again.start_from_(crops, seed=0)
    assert torch.equal(again.packed(), model.packed()), "the same from the same data and seed"
    with pytest.raises(ValueError, match="more filters than a basis has, or contexts, got neither"):
        mixture().start_from_(crops)
    many = lf.MixtureLPN(1, k, experts=2, filters=70).start_from_(crops)  # than two experts have directions
    assert len(many.stages[0].skip.flatten(1).unique(dim=0)) == 70


def test_a_run_starts_at_its_data_once(tmp_path, monkeypatch, capsys):
    """A run that goes on does not fit again."""
    monkeypatch.setattr(mixture_start, "PATCHES", 4000)
    table = {
        "out": str(tmp_path / "run"), "sigma": 0.1, "batch_size": 2, "verify": False,
        "data": {"synthetic": "dead-leaves", "crop": 16},
        "model": {"family": "mixture", "skip_kernel": 3, "hidden": 4, "filters": 12},
        "schedule": {"steps": 2},
    }  # fmt: skip
    model = training.train(training.from_dict(table), progress=True)
    assert "round 12 of 12" in capsys.readouterr().out and len(model.stages[0].skip) == 12
    training.train(training.from_dict(table), progress=True)
    assert "round" not in capsys.readouterr().out


@torch.no_grad()
def test_more_filters_are_of_unit_norm_and_without_means_and_the_gain_is_held():
    model = wide()
    atoms = model.stages[0].skip.flatten(1) * 3
    assert torch.allclose(atoms.norm(dim=1), torch.ones(20).double()) and atoms[1:].sum(1).abs().max() < 1e-12
    assert torch.allclose(atoms[:9] @ atoms[:9].T, torch.eye(9).double())
    assert torch.allclose(atoms[0], torch.full((9,), 1 / 3).double())
    assert lf.asymptotic_gain(model) <= 1
    before = model.packed().clone()
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9, atol=1e-12), "projecting twice changes nothing"


def test_gradients_of_more_filters_turn_them():
    model = wide(size=0.05)
    (model(torch.rand(2, 1, 11, 12, dtype=torch.float64), 0.1) - 0.5).square().mean().backward()
    model.project_gradients_()
    g, atoms = model.stages[0].skip.grad.flatten(1), model.stages[0].skip.flatten(1)
    assert g.abs().max() > 0 and (g[0] == 0).all()
    assert (g * atoms).sum(1).abs().max() < 1e-12 * g.abs().max() and g.sum(1).abs().max() < 1e-12
    turn = g[:9] @ atoms[:9].T
    assert turn.any() and torch.allclose(turn, -turn.T, atol=1e-12), "those of the basis rotate it"


@pytest.mark.parametrize("build", [mixture, wide])
@torch.no_grad()
def test_projection_limits_the_gain_whatever_was_written_to_the_weights(build):
    """Steps of `step_` respect the limit by themselves; other optimizers and plain writes do not."""
    model = build()
    model.stages[1].core.fill_(1e3)
    assert lf.asymptotic_gain(model) > 100
    assert lf.asymptotic_gain(model.project_()) <= 1


@pytest.mark.parametrize("build", [mixture, wide])
@torch.no_grad()
def test_far_out_f_grows_as_the_gain_says(build):
    model, sigma = build(), 0.1
    model.stages[1].core.mul_(5)  # more than means pass, hence the experts decide
    x = torch.randn(4, 1, 12, 13, dtype=torch.float64)
    for _ in range(60):  # towards the direction in which f grows most
        x = 1e5 * x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        grown = model(x, sigma)
        growth, x = grown.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1), grown
    gain = lf.asymptotic_gain(model)
    assert 0.6 * gain < growth.max() <= (1 + 1e-3) * gain


def test_gradients_are_in_log_odds_of_the_gain_and_in_the_logarithm_of_w():
    model = mixture(size=0.05)
    last = model.stages[1]
    logs = {"odds": torch.logit(last.core * last.head / model._budget), "w": last.head.log()}
    odds, w = (t.detach().clone().requires_grad_() for t in logs.values())
    x = torch.rand(2, 1, 11, 12, dtype=torch.float64)

    def loss(**weights):
        f = torch.func.functional_call(model, {f"stages.1.{name}": p for name, p in weights.items()}, (x, 0.1))
        return (f - 0.5).square().mean()

    loss(core=model._budget / w.exp() * odds.sigmoid(), head=w.exp()).backward()
    loss(core=last.core, head=last.head).backward()
    model.project_gradients_()
    assert odds.grad.abs().max() > 0 and w.grad != 0
    assert torch.allclose(last.core.grad[:, 1:], odds.grad[:, 1:], rtol=1e-8, atol=1e-15), "but for the patch mean"
    assert torch.allclose(last.head.grad, w.grad, rtol=1e-8)


@torch.no_grad()
def test_steps_are_taken_in_logarithms():
    model = mixture(size=0.05)
    last, before = model.stages[1], model.packed().clone()
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.step_(zero)
    assert torch.allclose(model.project_().packed(), before, rtol=1e-9, atol=1e-12), "no step, no change"
    share = last.core * last.head / model._budget
    w = last.head.clone()
    model.step_(zero | {f"stages.1.{name}": torch.full_like(getattr(last, name), 0.5) for name in ("core", "head")})
    assert torch.allclose(last.head, w * math.exp(0.5))
    moved = last.core * last.head / model._budget
    expected = (torch.logit(share[:, 1:]) + 0.5).clamp(-LOG_ODDS, LOG_ODDS).sigmoid()
    assert torch.allclose(moved[:, 1:], expected, rtol=1e-8)
    last.core.zero_()
    model.step_(zero | {"stages.1.core": torch.full_like(last.core, 4.0)})
    assert (last.core > 0).all(), "what had vanished can come back"


def held(model, core, skip):
    """Effective weights L W_m / lambda_m of experts beyond or at the limit L, differentiable; atoms of unit norm."""
    atoms = skip.flatten(1) / skip.flatten(1).norm(dim=1, keepdim=True)
    forms = torch.einsum("mj,ji,jk->mik", core.flatten(1), atoms, atoms)
    largest, most = torch.linalg.eigvalsh(forms)[:, -1], model._budget / model.stages[1].head.detach()
    return core * (most / largest).clamp(max=1).view(-1, 1, 1, 1), atoms.view_as(skip) / 3


def test_gradients_at_the_limit_are_those_of_experts_that_are_scaled_to_it():
    """Against differentiation through the largest eigenvalue: else steps wear experts off, and training gets worse."""
    model = wide(size=0.05)
    first, last = model.stages
    with torch.no_grad():
        last.core[:3].mul_(5000)  # beyond the limit; the others stay below
        model.project_()
    beyond = torch.tensor([0, 1, 2, 6])  # the last from its start on
    core, skip = (t.detach().clone().requires_grad_() for t in (last.core, first.skip))
    with torch.no_grad():
        core[beyond] *= 1.01
    x = torch.rand(2, 1, 11, 12, dtype=torch.float64)

    def loss(**weights):
        return (torch.func.functional_call(model, weights, (x, 0.1)) - 0.5).square().mean()

    effective, atoms = held(model, core, skip)
    loss(**{"stages.1.core": effective, "stages.0.skip": atoms}).backward()
    loss(**{"stages.1.core": last.core, "stages.0.skip": first.skip, "stages.1.head": last.head}).backward()
    model.project_gradients_()
    share = last.core * last.head / model._budget
    in_logs = core.grad * core  # of a factor on W; log-odds move W by 1 - share of that
    assert torch.equal(model._at_limit, beyond)
    assert torch.allclose(last.core.grad[:, 1:], (in_logs * (1 - share))[:, 1:], rtol=1e-6, atol=1e-12)
    keep_tangents_(skip)
    assert torch.allclose(first.skip.grad, skip.grad, rtol=1e-6, atol=1e-12)


@torch.no_grad()
def test_turning_filters_wears_no_expert_off():
    """Random turns of the filters, thirty times: experts at the limit are there still; cut each time they sink."""
    model = wide(size=0.05)
    model.stages[1].core.mul_(5000)
    model.project_()
    torch.manual_seed(0)
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def largest():
        forms = forms_of_experts(model.stages[0].skip, model.stages[1].core)
        return torch.linalg.eigvalsh(forms)[:, -1] * model.stages[1].head / model._budget

    assert (largest() > 1 - 1e-6).all()
    for _ in range(30):
        with torch.enable_grad():
            model.zero_grad()
            (model(torch.rand(1, 1, 9, 9, dtype=torch.float64), 0.1)).square().mean().backward()
        model.project_gradients_()
        model.step_(zero | {"stages.0.skip": 0.02 * torch.randn_like(model.stages[0].skip)})
        model.project_()
    assert (largest() > 1 - 2e-4).all()
    assert lf.asymptotic_gain(model) <= 1
