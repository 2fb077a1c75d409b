"""MixtureLPN: the posterior mean of a Gaussian mixture per patch; what frames have too is in test_patch_networks.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import perturbed
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import lpn_fast as lf
from lpn_fast.networks.frame import LIMIT
from lpn_fast.networks.mixture import LOG_ODDS


def mixture(size=0.5) -> lf.MixtureLPN:
    """A projected network far from its start, float64."""
    return perturbed(lf.MixtureLPN(1, kernel=3, experts=7).double(), size)


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
    y = F.unfold(F.pad(x / sigma, (k - 1,) * 4), k)  # [N, n, patches]
    flat = y.transpose(1, 2).reshape(-1, n).requires_grad_()
    mean = flat + torch.autograd.grad(density.log_prob(flat).sum(), flat)[0]
    means = basis[:channels]
    mean = mean + LIMIT * flat.detach() @ means.T @ means  # the experts give no mean back: v = 0 there
    patches = mean.view(2, -1, n).transpose(1, 2)
    padded = F.fold(patches, (7 + 2 * (k - 1), 8 + 2 * (k - 1)), k)[..., k - 1 : 1 - k, k - 1 : 1 - k]
    assert torch.allclose(model(x, sigma), sigma * padded / k**2, atol=1e-10)


@torch.no_grad()
def test_projection_limits_the_gain_whatever_was_written_to_the_weights():
    """Steps of `step_` respect the limit by themselves; other optimizers and plain writes do not."""
    model = mixture()
    model.stages[1].core.fill_(1e3)
    assert lf.asymptotic_gain(model) > 100
    assert lf.asymptotic_gain(model.project_()) <= 1


@torch.no_grad()
def test_far_out_f_grows_as_the_gain_says():
    model, sigma = mixture(), 0.1
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
