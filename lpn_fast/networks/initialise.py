"""Where training starts from.

    core and head weights   log-normal with mean 1 / fan-in   (each unit averages what it reads; std of the log 1)
    skips and K             normal with variance 1 / fan-in
    biases, c, c0           zero

Averages keep the scale of z from stage to stage although no weight is negative.

Where the first stage has a squared head, f starts as soft thresholding of the coefficients of all patches in an
orthonormal basis, the cosine basis for images. Its atoms a come with both signs, the constant ones with t = 0:

    grad  sum_a g (max(a . x - t, 0)^2 + max(-a . x - t, 0)^2)  =  2 g sum_a shrink_t(a . x) a,      g = 1 / (2 k^2)

in sharp softplus, summed over the k^2 places of a patch that cover a pixel (g = 1/2 in dense networks). t is SHRINK
times the noise level: at the knots of a noise-conditional network, else that of the training, where it is told; with
t = 0 f is (nearly) the identity. Few rows drop the highest frequencies; many bring further bases, rotated at random,
with a share of g, and of a basis that is not complete little (DAMPED). So start the other heads, not to drown it.

Other starts, by name through `initialise_as_`:

    published     non-negative weights exp(N(-10, 0.1)) as the published code, no basis: f starts as c + alpha x
    principled    cores log-normal with mean mu and variance 1 / N, biases -N mu / sqrt(2 pi), N = fan-in, and
                  mu^2 = 6 pi / (N (6 (pi - 1) + (N - 1) (3 sqrt 3 + 2 pi - 6)))

The last one (Hoedt and Klambauer, arXiv 2312.12474) keeps variance 1 and correlation 1/2 of pre-activations from
stage to stage: with z = max(u, 0) of such u, cov(z_i, z_j) = (3 sqrt 3 + 2 pi - 6) / (12 pi) and var z = (pi - 1) /
(2 pi); equal means mu make the covariance of two units of the next stage mu^2 (N var + N (N - 1) cov) = 1/2, the
spread 1 / N of the weights adds N E z^2 / N = 1/2 to the variance, and the bias removes the mean N mu / sqrt(2 pi).

`python -m bench.experiments initialisation` and `study` measure them (bench/results). `lpn-fast train` takes
`best_start` where a family has no start of its own; a network made in Python has the first one, and knows of no noise
level, until `initialise_as_` is called.
"""

import math

import torch
from torch import Tensor, nn

from ..algebra.cosines import cosine_atoms
from ..algebra.parameters import layout

LOG_STD = 1.0
DAMPED = 0.05
SHRINK = 1.3  # thresholds of the first stage in standard deviations of the noise
STARTS = ("default", "published", "principled")


@torch.no_grad()
def initialise_(model: nn.Module, noise: float | None = None) -> nn.Module:
    """Draw all parameters of an LPN in place from torch's global generator; see `initialise_as_` for `noise`."""
    _drawn_(model)
    if "squared" in model.spec.stages[0].heads:
        _shrinking_(model, noise)
    return model


def _drawn_(model: nn.Module) -> nn.Module:
    """The draws of the table, without a basis."""
    for slot in layout(model.spec):
        parameter = model.get_parameter(slot.name)
        fan_in = math.prod(slot.shape[1:]) if len(slot.shape) > 1 else slot.shape[0]
        if slot.nonnegative:
            # mean of exp(N(m, s^2)) is exp(m + s^2 / 2)
            parameter.normal_(-math.log(fan_in) - LOG_STD**2 / 2, LOG_STD).exp_()
        elif slot.name.endswith(("skip", "quadratic")):
            parameter.normal_(0, fan_in**-0.5)
        else:
            parameter.zero_()
    return model


def _shrinking_(model: nn.Module, noise: float | None) -> None:
    """The basis in the first stage, its squared head, its thresholds; the other heads damped."""
    spec, first = model.spec, model.stages[0]
    rows, entries = len(first.skip), first.skip[0].numel()
    if spec.is_dense:
        constants, covering = 0, 1
        bases = [_rotated(torch.eye(entries), 0)]
    else:
        constants, covering = spec.channels, entries // spec.channels
        atoms, frequencies = cosine_atoms(spec.channels, first.skip.shape[-1], axes=first.skip.dim() - 2)
        rising = frequencies[constants:].square().sum(1).argsort(stable=True) + constants
        bases = [torch.cat([atoms[:constants], atoms[rising]]).float()]
    while len(bases) * 2 * entries < rows:
        bases.append(_rotated(bases[0], constants))
    atoms = torch.cat(bases)
    first.skip.copy_(torch.stack([atoms, -atoms], 1).flatten(0, 1)[:rows].view(first.skip.shape))
    whole = max(1, rows // (2 * entries))  # bases that share g; what is begun of another adds little
    first.head_squared.fill_(1 / (2 * covering * whole))
    first.head_squared[2 * entries * whole :] *= DAMPED
    for stage in model.stages:
        if hasattr(stage, "head"):
            stage.head.mul_(DAMPED)
    if spec.is_dense or not spec.stages[0].bias:
        return
    varied = (torch.arange(rows) // 2) % entries >= constants
    if spec.noise_levels:
        first.noise[varied] = -SHRINK * torch.tensor(spec.noise_levels).to(first.noise)
    elif noise is not None:
        first.bias[varied] = -SHRINK * noise


def _rotated(basis: Tensor, constants: int) -> Tensor:
    """Another orthonormal basis: the first atoms stay, the others are rotated at random among themselves."""
    rest = len(basis) - constants
    return torch.cat([basis[:constants], torch.linalg.qr(torch.randn(rest, rest))[0] @ basis[constants:]])


@torch.no_grad()
def published_start_(model: nn.Module) -> nn.Module:
    """Draw everything as `initialise_` does, but without a basis, and non-negative weights as the published code."""
    _drawn_(model)
    for slot in layout(model.spec):
        if slot.nonnegative:
            model.get_parameter(slot.name).normal_(-10, 0.1).exp_()
    return model


@torch.no_grad()
def principled_start_(model: nn.Module, noise: float | None = None) -> nn.Module:
    """Redraw everything as `initialise_` does, then cores and the biases beside them as the equations above say."""
    initialise_(model, noise)
    for index, stage in enumerate(model.stages):
        core = getattr(stage, "core", None)
        if core is None:
            continue
        n = core[0].numel()
        spread = 6 * (math.pi - 1) + (n - 1) * (3 * 3**0.5 + 2 * math.pi - 6)
        mean = math.sqrt(6 * math.pi / (n * spread))
        log_variance = math.log1p(1 / (n * mean**2))  # log-normal with that mean and variance 1 / n
        core.normal_(math.log(mean) - log_variance / 2, log_variance**0.5).exp_()
        if model.spec.stages[index].bias:
            stage.bias.fill_(-n * mean / math.sqrt(2 * math.pi))
    return model


def best_start(model: nn.Module) -> str:
    """The start that trains fastest: "default" with a squared head, and the basis that comes with it."""
    return "default" if "squared" in model.spec.stages[0].heads else "principled"


def initialise_as_(model: nn.Module, start: str, noise: float | None = None) -> nn.Module:
    """Draw all parameters in place from torch's global generator.

    Parameters
    ----------
    model : LPN
    start : one of STARTS
    noise : float, optional
        The noise level of the training to come, for thresholds of networks that are not told it with every call.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {STARTS}, got {start!r}")
    if start == "principled":
        return principled_start_(model, noise)
    if start == "default":
        return initialise_(model, noise)
    return published_start_(model)
