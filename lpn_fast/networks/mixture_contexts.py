"""Where contexts of experts start: at what experts are found together in the neighbourhoods of images.

Of images in noise, at every knot of the noise level, the shares p_m of the experts are averaged over windows. k-means
of their square roots finds C neighbourhoods that are typical, from one level to the next starting at the same
places of the same images, and

    V_cm = (share of expert m in neighbourhoods of kind c) / (its share everywhere):

a context knows by how much its experts are more frequent than elsewhere. b_c is the logarithm of how frequent it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.noise import noise_features
from ..algebra.parameters import unpack
from ..algebra.spec import Spec
from ..algebra.windows import Windows
from .mixture_start import Sampler

IMAGES = 48
NEIGHBOURHOODS = 400  # of each
ROUNDS = 20  # of k-means
EVERYWHERE = 0.1  # share of the experts' usual shares in every context


@torch.no_grad()
def contexts_at_images(crops: Sampler, spec: Spec, packed: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """(odds, bias, noise) of the contexts, for the experts that P has."""
    count, images, parameters = spec.stages[2].width, crops(IMAGES, generator), unpack(spec, packed)
    positions = math.prod(spec.stage_sizes(*images.shape[2:])[0])
    places = torch.randperm(positions, generator=generator)[:NEIGHBOURHOODS]
    kind, odds, frequent = None, [], []
    for sigma in spec.noise_levels:
        noisy = images + sigma * torch.randn(images.shape, generator=generator)
        found, usual = [], torch.zeros(spec.stages[1].width)
        for image in noisy:
            shares = shares_around(spec, parameters, image[None] / sigma, sigma)
            usual += shares.mean(0) / IMAGES
            found.append(shares[places])
        shares = torch.cat(found)
        kind = kinds_of(shares.sqrt(), count, kind, generator)
        members = F.one_hot(kind, count).float()
        expected = members.sum(0)[:, None] * usual.clamp(min=1e-7)
        odds.append((members.T @ shares + EVERYWHERE * expected + 1e-6) / ((1 + EVERYWHERE) * expected + 1e-6))
        frequent.append((members.mean(0) + 0.1 / count).log())
    by_level = torch.stack(frequent)
    bias = by_level.mean(0)
    return {"odds": torch.stack(odds), "bias": bias, "noise": (by_level - bias).T}


def shares_around(spec: Spec, parameters, x: Tensor, sigma: float) -> Tensor:
    """Shares of the experts, averaged over the window of every position, [positions, M]; x in units of the noise."""
    first, experts = parameters.stages[:2]
    phi, border = noise_features(x.new_tensor([sigma]), spec.noise_levels), spec.stages[0].skip_padding
    z = F.conv2d(F.pad(x, (border,) * 4, mode="reflect"), first.skip, stride=spec.spacing).square()
    u = F.conv2d(z, experts.core, experts.bias + (phi @ experts.noise.T)[0])
    ones = [x.new_ones(side) for side in u.shape[2:]]
    return Windows(spec.stages[2].window, *ones)(u.softmax(1))[0].flatten(1).T


def kinds_of(rows: Tensor, count: int, kind: Tensor | None, generator: torch.Generator) -> Tensor:
    """k-means from kinds [rows], or from any rows: which of `count` centres is nearest to each row, [rows]."""
    if kind is None:
        centres = rows[torch.randint(len(rows), (count,), generator=generator)]
        kind = torch.cdist(rows, centres).argmin(1)
    for _ in range(ROUNDS):
        sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, kind, rows)
        members = torch.bincount(kind, minlength=count)[:, None]
        elsewhere = rows[torch.randint(len(rows), (count,), generator=generator)]
        kind = torch.cdist(rows, torch.where(members > 0, sums / members.clamp(min=1), elsewhere)).argmin(1)
    return kind
