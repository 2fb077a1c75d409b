"""Where the training of a mixture over more filters than a basis has starts: at Gaussians fitted to patches.

In units of the noise, of patches without their means, expectation maximisation fits

    p(x) = sum_m pi_m(sigma) N(x; 0, V_m)

to patches in the units of every knot of the noise level at once: covariances are shared, weights are each level's own.
The posterior mean of x from y = x + n, n ~ N(0, I), needs the forms V_m (I + V_m)^-1, which become sums of squares of
common filters:

    V_m (I + V_m)^-1  ~  sum_j F_mj a_j a_j^T,    F >= 0,    |a_j| = 1.

Patches carry a little noise of their own in the fit, without which covariances could become singular. With all of it
experts that differ in what noise hides would become one, and the start is a worse denoiser.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.cosines import cosine_atoms
from ..algebra.spec import Spec

PATCHES = 160_000  # in all levels together
ROUNDS = 12  # of expectation maximisation
CHUNK = 2048
LARGEST = 1e3  # variance, in those of the noise: larger ones pass as well
LITTLE = 0.09  # variance of the noise in the fit
PRIOR = 10.0  # patches of that noise alone which every expert has seen beforehand
FIT_ROUNDS = 600  # multiplicative ones

Sampler = Callable[[int, torch.Generator], Tensor]  # crops (count, C, side, side)


@torch.no_grad()
def mixture_at_patches(
    crops: Sampler, spec: Spec, generator: torch.Generator, report: Callable[[str], None] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(filters that are no means, [n - C, C, k, k]; core, bias, noise and head of the experts), fitted to crops."""
    first, last = spec.stages[:2]
    channels, k = spec.channels, first.skip_kernel
    basis = cosine_atoms(channels, k)[0][channels:].float()  # what patches are without their means
    patches = patches_in_noise(crops, basis, k, spec.noise_levels, generator)
    shares, covariances = fit_gaussians(patches, last.width, generator, report)
    values, vectors = torch.linalg.eigh(covariances)
    variances = (values - LITTLE).clamp(0, LARGEST)
    passed = variances / (1 + variances)
    forms = (vectors * passed[:, None]) @ vectors.mT
    atoms = common_directions(vectors, passed, forms, shares.mean(0), first.width - channels, generator)
    core = torch.zeros(last.width, first.width, 1, 1)
    core[:, channels:, 0, 0] = k * k / 2 * nonnegative_fit(forms, atoms)
    levels = shares.clamp(min=1e-8).log() + 0.5 * torch.log1p(-passed).sum(1)  # [levels, M]
    bias = levels.mean(0)
    experts = {
        "core": core,
        "bias": bias,
        "noise": (levels - bias).mT,
        "head": torch.full((1,), (spec.spacing / k) ** 2),
    }
    return (atoms @ basis / k).unflatten(1, (channels, k, k)), experts


def waves(channels: int, k: int, count: int) -> Tensor:
    """Windowed waves of unit norm and without means, [count, C k k]: random directions, lengths, phases, colours."""
    at = torch.arange(k) - (k - 1) / 2
    rows, columns = at[:, None], at[None, :]
    frequency, angle, phase = torch.rand(3, count, 1, 1)
    frequency, angle = 0.5 / k * k**frequency, math.pi * angle  # cycles per pixel
    along = rows * angle.cos() + columns * angle.sin()
    plain = torch.cos(2 * math.pi * (frequency * along + phase)) * torch.exp(-(rows**2 + columns**2) * 4.5 / k**2)
    colours = torch.ones(count, 1) if channels == 1 else 1 + torch.randn(count, channels)
    found = colours[:, :, None, None] * (plain - plain.mean((1, 2), keepdim=True))[:, None]
    return found.flatten(1) / found.flatten(1).norm(dim=1, keepdim=True)


def patches_in_noise(
    crops: Sampler, basis: Tensor, k: int, levels: tuple[float, ...], generator: torch.Generator
) -> list[Tensor]:
    """Coefficients in `basis` of patches in units of the noise, and a little of it, [P, d] for each level."""
    found = []
    for sigma in levels:
        wanted = PATCHES // len(levels)
        parts: list[Tensor] = []
        while sum(len(part) for part in parts) < wanted:
            images = crops(64, generator)
            cut = images.unfold(2, k, 1).unfold(3, k, 1).movedim(1, 3).flatten(0, 2).flatten(1)  # (pixel, [C, k, k])
            parts.append(cut[torch.randperm(len(cut), generator=generator)[: max(wanted // 32, 1)]])
        clean = torch.cat(parts)[:wanted] @ basis.T / sigma
        found.append(clean + LITTLE**0.5 * torch.randn(clean.shape, generator=generator))
    return found


def fit_gaussians(
    patches: list[Tensor], experts: int, generator: torch.Generator, report: Callable[[str], None] | None
) -> tuple[Tensor, Tensor]:
    """(weights [levels, M], covariances [M, d, d] of at least LITTLE) of the likeliest mixture, of means zero."""
    everything = torch.cat(patches)
    d = everything.shape[1]
    noise = LITTLE * torch.eye(d, dtype=torch.float64)
    drawn = everything[torch.randperm(len(everything), generator=generator)[:experts]].double()
    pooled = (everything.T @ everything).double()
    contrast = (drawn.square().mean(1) - LITTLE).clamp(min=0.01)
    covariances = noise + 0.5 * contrast[:, None, None] * (pooled * (d / pooled.trace()))
    covariances = covariances + 0.2 * drawn[:, :, None] * drawn[:, None]
    logs = torch.full((len(patches), experts), -math.log(experts), dtype=torch.float64)
    rows, columns = torch.triu_indices(d, d)
    for done in range(ROUNDS):
        # of patches only the products of their coefficients matter: both steps are one matrix product with them
        inverses = torch.linalg.inv(covariances)[:, rows, columns] * torch.where(rows == columns, 0.5, 1.0)
        constants = -0.5 * torch.logdet(covariances)
        moments, counts = torch.zeros_like(inverses), torch.zeros_like(logs)
        likelihood = 0.0
        for level, of_level in enumerate(patches):
            for y in of_level.double().split(CHUNK):
                products = y[:, rows] * y[:, columns]
                u = logs[level] + constants - products @ inverses.T
                total = u.logsumexp(1, keepdim=True)
                p = (u - total).exp()
                likelihood += total.sum().item()
                counts[level] += p.sum(0)
                moments += p.T @ products
        sums = moments.new_zeros(experts, d, d)
        sums[:, rows, columns] = sums[:, columns, rows] = moments
        covariances = (sums + PRIOR * noise) / (counts.sum(0) + PRIOR)[:, None, None]
        values, vectors = torch.linalg.eigh(covariances)
        covariances = (vectors * values.clamp(min=LITTLE)[:, None]) @ vectors.mT
        logs = (counts / counts.sum(1, keepdim=True)).clamp(min=1e-8).log()
        if report is not None:
            report(f"mixture of {experts} Gaussians, round {done + 1} of {ROUNDS}: {likelihood / len(everything):.3f}")
    return logs.exp().float(), covariances.float()


def common_directions(
    vectors: Tensor, passed: Tensor, forms: Tensor, frequent: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Unit vectors [count, d]: a basis, and what many eigenvectors [M, d, d] that experts pass are near to."""
    basis = torch.linalg.eigh(forms.mean(0))[1].mT
    weights = (passed * frequent.sqrt()[:, None]).flatten()
    lines = vectors.mT.flatten(0, 1)
    more = count - len(basis)
    drawn = torch.multinomial(weights.clamp(min=1e-12), more, replacement=more > len(weights), generator=generator)
    centres = F.normalize(lines[drawn] + 0.01 * torch.randn(more, len(basis), generator=generator), dim=1)
    for _ in range(15):  # k-means of lines, whose ends are alike
        products = lines @ centres.T
        near = products.abs().argmax(1)
        strength = products.gather(1, near[:, None])[:, 0]
        pull = (weights * strength.sign() * strength**4)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, near, lines * pull)
        size = sums.norm(dim=1, keepdim=True)
        centres = torch.where(size > 1e-6, sums / size.clamp(min=1e-6), centres)
    return torch.cat([basis, centres])


def nonnegative_fit(forms: Tensor, atoms: Tensor) -> Tensor:
    """F >= 0, [M, n], with sum_j F_mj a_j a_j^T near each form [M, d, d], by multiplicative least squares.

    It begins in the basis that the first d atoms are, where an expert that passes everything has its place.
    """
    gram = (atoms @ atoms.T).square()
    wanted = torch.einsum("ji,mik,jk->mj", atoms, forms, atoms).clamp(min=1e-6)
    fitted = torch.cat([wanted[:, : forms.shape[1]], 0.05 * wanted[:, forms.shape[1] :]], 1)
    for _ in range(FIT_ROUNDS):
        fitted = fitted * (wanted / (fitted @ gram))
    return fitted
