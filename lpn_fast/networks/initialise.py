"""Where training starts from.

    core and head weights   log-normal with mean 1 / fan-in   (each unit averages what it reads; std of the log 1)
    skips and K             normal with variance 1 / fan-in
    biases, c, c0           zero

Averages keep the scale of z from stage to stage although no weight is negative.

Where the first stage has a squared head, the network starts as (nearly) the identity: the rows of A_1 are
the atoms of a random orthonormal basis of patches with both signs and g = 1 / H, so that

    grad sum_j g max(a_j . x, 0)^2 = 2 / H sum_pairs a a^T x = x        (sharp softplus, H = 2 C k^2 rows)

and the other heads start DAMPED so as not to drown it. A denoiser then only has to learn where to differ
from the identity.

Other starts, by name through `initialise_as_`:

    published     non-negative weights exp(N(-10, 0.1)), as the published code: f starts as (nearly) c + alpha x
    principled    cores log-normal with mean mu and variance 1 / N, biases -N mu / sqrt(2 pi), N = fan-in, and
                  mu^2 = 6 pi / (N (6 (pi - 1) + (N - 1) (3 sqrt 3 + 2 pi - 6)))

The last one (Hoedt and Klambauer, arXiv 2312.12474) keeps variance 1 and correlation 1/2 of pre-activations from
stage to stage: with z = max(u, 0) of such u, cov(z_i, z_j) = (3 sqrt 3 + 2 pi - 6) / (12 pi) and var z = (pi - 1) /
(2 pi); equal means mu make the covariance of two units of the next stage mu^2 (N var + N (N - 1) cov) = 1/2, the
spread 1 / N of the weights adds N E z^2 / N = 1/2 to the variance, and the bias removes the mean N mu / sqrt(2 pi).

`python -m bench.experiments initialisation` measures them at equal steps (bench/results/initialisation): on the MNIST
network "principled" reaches after 100 steps what the others need about 300 for, on multiscale networks it is level
with the first one, and the published one is last on both. So the command `lpn-fast train` takes "principled" where a
family has no start of its own; a network made in Python has the first one until `initialise_as_` is called.
"""

import math

import torch
from torch import Tensor, nn

from ..algebra.parameters import layout

LOG_STD = 1.0
DAMPED = 0.05
STARTS = ("default", "published", "principled")


@torch.no_grad()
def initialise_(model: nn.Module) -> nn.Module:
    """Draw all parameters of an LPN in place from torch's global generator."""
    near_identity = "squared" in model.spec.stages[0].heads
    for slot in layout(model.spec):
        parameter = model.get_parameter(slot.name)
        name = slot.name.rsplit(".", 1)[-1]
        fan_in = math.prod(slot.shape[1:]) if len(slot.shape) > 1 else slot.shape[0]
        if slot.nonnegative:
            # mean of exp(N(m, s^2)) is exp(m + s^2 / 2)
            parameter.normal_(-math.log(fan_in) - LOG_STD**2 / 2, LOG_STD).exp_()
            if near_identity:
                if slot.name == "stages.0.head_squared":
                    parameter.fill_(1 / fan_in)
                elif name.startswith("head"):
                    parameter.mul_(DAMPED)
        elif near_identity and slot.name == "stages.0.skip":
            parameter.copy_(_signed_frame(slot.shape[0], fan_in).reshape(slot.shape))
        elif name in ("skip", "quadratic"):
            parameter.normal_(0, fan_in**-0.5)
        else:
            parameter.zero_()
    return model


def _signed_frame(rows: int, entries: int) -> Tensor:
    """[rows, entries]: atoms of random orthonormal bases, each followed by its negative."""
    bases = [torch.linalg.qr(torch.randn(entries, entries))[0] for _ in range(-(-rows // (2 * entries)))]
    atoms = torch.cat(bases)
    return torch.stack([atoms, -atoms], 1).flatten(0, 1)[:rows]


@torch.no_grad()
def published_start_(model: nn.Module) -> nn.Module:
    """Redraw the non-negative weights as the published code does: exp(N(-10, 0.1))."""
    for slot in layout(model.spec):
        if slot.nonnegative:
            model.get_parameter(slot.name).normal_(-10, 0.1).exp_()
    return model


@torch.no_grad()
def principled_start_(model: nn.Module) -> nn.Module:
    """Redraw everything as `initialise_` does, then cores and the biases beside them as the equations above say."""
    initialise_(model)
    for index, stage in enumerate(model.stages):
        core = getattr(stage, "core", None)
        if core is None:
            continue
        n = core[0].numel()
        spread = 6 * (math.pi - 1) + (n - 1) * (3 * 3**0.5 + 2 * math.pi - 6)
        mean = math.sqrt(6 * math.pi / (n * spread))
        log_variance = math.log1p(1 / (n * mean**2))  # of a log-normal with that mean and variance 1 / n
        core.normal_(math.log(mean) - log_variance / 2, log_variance**0.5).exp_()
        if model.spec.stages[index].bias:
            stage.bias.fill_(-n * mean / math.sqrt(2 * math.pi))
    return model


def initialise_as_(model: nn.Module, start: str) -> nn.Module:
    """Draw all parameters in place from the named start, one of STARTS."""
    if start not in STARTS:
        raise ValueError(f"start must be one of {STARTS}, got {start!r}")
    if start == "principled":
        return principled_start_(model)
    initialise_(model)
    return published_start_(model) if start == "published" else model
