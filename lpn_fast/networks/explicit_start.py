"""Where the training of an explicit prior starts."""

import math
from typing import TYPE_CHECKING

import torch

from ..algebra.cosines import cosine_atoms
from .explicit_filters import start_of_seeds

if TYPE_CHECKING:
    from .explicit import ExplicitLPN

NARROW, BROAD = 0.4, (1.0, 2.0, 4.0, 8.0)  # range of the frequencies that a group sees
LEVELS = (1.2, 4.0)  # root of the energy where the concave part levels off, in units of its mean over noise
BEND = 8.0  # curvature of the convex part over that of the concave one
TAIL = 0.05  # tau - 1
APART = 40.0  # distance squared, on the scale of NARROW and BROAD, of filters without a common frequency


@torch.no_grad()
def draw_start_(model: "ExplicitLPN") -> None:
    """Start: half of the groups see one coefficient each, the others many, and half of the budget.

    Atoms are cosines, or filters waves of all directions, for which three quarters of the groups see one.
    """
    spec = model.spec
    if spec.blocks:
        return _draw_blocks_(model)
    for prefix, (k, groups) in model.levels().items():
        if spec.filters:
            model.seeds.copy_(start_of_seeds(spec.channels, k, spec.filters // 4))
        atoms, shares, far, bends, tails = model.of_level(prefix)
        if spec.filters:
            apart, sizes = _between_spectra(atoms), atoms.flatten(1).square().sum(1)
        else:
            cosines, frequencies = cosine_atoms(spec.channels, k, spec.ndim)
            atoms.copy_(cosines.view_as(atoms))
            scaled = frequencies[spec.channels :] * (7 / k)
            apart, sizes = (scaled[:, None] - scaled).square().sum(-1), scaled.new_ones(len(scaled))
        varied = len(apart)
        alone = (3 * groups + 3) // 4 if spec.filters else (groups + 1) // 2
        number, narrow = torch.arange(groups), min(alone, varied)
        breadth = torch.tensor(BROAD)[number % len(BROAD)]
        breadth[:narrow] = NARROW
        centre = torch.randint(varied, number.shape)
        centre[:narrow] = torch.linspace(0, varied - 1, narrow).long()
        logits = -apart[centre] / (2 * breadth[:, None] ** 2)
        logits = logits + 0.2 * torch.randn(logits.shape)
        for half in (logits[:narrow], logits[narrow:]):
            half.sub_(half.logsumexp(0) - 2.0)  # both halves alike, against the slack's zero
        shares.copy_(logits.expand_as(shares))
        levels = torch.empty(groups).uniform_(*(math.log(level) for level in LEVELS))
        noise = shares[0].double().softmax(0) @ sizes.double()  # energies of a group
        far.copy_((0.5 * noise.log() + levels).expand_as(far))
        _draw_tips_(bends, tails, spec.bend)


def _draw_blocks_(model: "ExplicitLPN") -> None:
    """Start of groups in blocks: the first of a block see one seed each, the others and the joint ones many."""
    spec = model.spec
    model.seeds.copy_(start_of_seeds(spec.channels, spec.kernel, spec.filters // 4))
    atoms, shares, far, bends, tails = model.of_level("")
    apart = _between_spectra(atoms)[::4].unflatten(0, (spec.blocks, -1))  # [blocks, seeds of a block, n]
    seeds, own = apart.shape[1], spec.own // 4
    rows = torch.arange(own)
    breadth = torch.tensor(BROAD)[rows % len(BROAD)]
    breadth[:seeds] = NARROW
    block = torch.arange(spec.filters) // (4 * seeds)  # of every filter
    alone = apart[block, :, torch.arange(spec.filters)].T[rows % seeds]  # [own rows, n]
    joint = apart.flatten(0, 1)[torch.randint(spec.filters // 4, (spec.joint // 4,))]
    wide = torch.tensor(BROAD)[torch.arange(len(joint)) % len(BROAD)]
    for part, scale, at in ((alone, breadth, slice(0, own)), (joint, wide, slice(own, None))):
        logits = -part / (2 * scale[:, None] ** 2)
        logits = logits + 0.2 * torch.randn(logits.shape)
        if len(logits):  # both parts alike, against the slack's zero
            total = logits.unflatten(1, (-1, 4)).logsumexp((0, 2))
            logits = logits - (total.repeat_interleave(4) - 2.0)
        shares[:, at] = logits
    levels = torch.empty(spec.groups // 4).uniform_(*(math.log(level) for level in LEVELS))
    energies = model.potentials(torch.tensor(spec.noise_levels[:1])).energies[0, ::4].double()
    noise = energies @ atoms.flatten(1).square().sum(1).double()
    far.copy_((0.5 * noise.log() + levels).expand_as(far))
    _draw_tips_(bends, tails, spec.bend)


def _draw_tips_(bends: torch.Tensor, tails: torch.Tensor, bend: float) -> None:
    part = (min(BEND, 0.9 * bend + 0.1) - 1) / (bend - 1)
    bends.fill_(math.log(part / (1 - part)))
    tails.fill_(math.log(TAIL))


def _between_spectra(filters: torch.Tensor) -> torch.Tensor:
    """Distances squared between filters, [n, n], by what their spectra have in common."""
    side = 4 * filters.shape[-1]
    energy = torch.fft.rfft2(filters.double(), s=(side, side)).abs().square().flatten(1)
    energy = energy / energy.norm(dim=1, keepdim=True)
    return (APART * (1 - energy @ energy.T)).float()
