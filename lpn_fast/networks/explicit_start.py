"""Where the training of an explicit prior starts."""

import math
from typing import TYPE_CHECKING

import torch

from ..algebra.cosines import cosine_atoms

if TYPE_CHECKING:
    from .explicit import ExplicitLPN

NARROW, BROAD = 0.4, (1.0, 2.0, 4.0, 8.0)  # range of the frequencies that a group sees
LEVELS = (1.2, 4.0)  # root of the energy where the concave part levels off, in units of its mean over noise
BEND = 8.0  # curvature of the convex part over that of the concave one
TAIL = 0.05  # tau - 1


@torch.no_grad()
def draw_start_(model: "ExplicitLPN") -> None:
    """Start: cosine atoms; half of the groups see one of them each, the others many, and half of the budget."""
    spec = model.spec
    for prefix, (k, groups) in model.levels().items():
        atoms, shares, far, bends, tails = model.of_level(prefix)
        cosines, frequencies = cosine_atoms(spec.channels, k, spec.ndim)
        atoms.copy_(cosines.view_as(atoms))
        varied = len(cosines) - spec.channels
        number, narrow = torch.arange(groups), min((groups + 1) // 2, varied)
        breadth = torch.tensor(BROAD)[number % len(BROAD)]
        breadth[:narrow] = NARROW
        centre = torch.randint(varied, number.shape)
        centre[:narrow] = torch.linspace(0, varied - 1, narrow).long()
        scaled = frequencies[spec.channels :] * (7 / k)
        distance = (scaled[centre][:, None] - scaled).square().sum(-1)
        logits = -distance / (2 * breadth[:, None] ** 2) + 0.2 * torch.randn(distance.shape)
        for half in (logits[:narrow], logits[narrow:]):
            half.sub_(half.logsumexp(0) - 2.0)  # both halves alike, against the slack's zero
        shares.copy_(logits.expand_as(shares))
        levels = torch.empty(groups).uniform_(*(math.log(level) for level in LEVELS))
        far.copy_((0.5 * shares[0].double().softmax(0).sum(1).log() + levels).expand_as(far))
        part = (min(BEND, 0.9 * spec.bend + 0.1) - 1) / (spec.bend - 1)
        bends.fill_(math.log(part / (1 - part)))
        tails.fill_(math.log(TAIL))
