"""Where contexts of experts start: at what experts are found together in the neighbourhoods of images.

Of noisy images at every knot of the noise level the shares of the experts, p_m, are averaged over windows. k-means of
their square roots finds C neighbourhoods that are typical, and

    V_cm = (share of expert m in neighbourhoods of kind c) / (its share at their noise levels):

a context knows by how much its experts are more frequent than elsewhere. b_c is the logarithm of how frequent it is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.noise import noise_features
from ..algebra.windows import Windows

if TYPE_CHECKING:
    from .mixture import MixtureLPN

IMAGES = 32  # crops at every noise level
NEIGHBOURHOODS = 400  # of each
ROUNDS = 20  # of k-means
EVERYWHERE = 0.1  # share of the experts' usual shares in every context


@torch.no_grad()
def contexts_at_images(
    crops: Callable[[int, torch.Generator], Tensor], model: "MixtureLPN", generator: torch.Generator
) -> dict[str, Tensor]:
    """(core, bias, noise) of the contexts, for the experts that the network has."""
    levels, count = model.spec.noise_levels, model.spec.stages[2].width
    found, usual = [], []
    for sigma in levels:
        images = crops(IMAGES, generator)
        noisy = images + sigma * torch.randn(images.shape, generator=generator)
        shares = [shares_around(model, image[None] / sigma, sigma) for image in noisy]
        usual.append(torch.cat(shares).mean(0).clamp(min=1e-7))
        found.append(torch.cat([s[torch.randperm(len(s), generator=generator)[:NEIGHBOURHOODS]] for s in shares]))
    kinds = kinds_of(torch.cat(found).sqrt(), count, generator).split([len(s) for s in found])
    inside, expected, frequent = torch.zeros(count, len(usual[0])), torch.zeros(count, len(usual[0])), []
    for kind, shares, share in zip(kinds, found, usual, strict=True):
        members = F.one_hot(kind, count).float()
        inside += members.T @ shares
        expected += members.sum(0)[:, None] * share
        frequent.append((members.mean(0) + 0.1 / count).log())
    odds = (inside + EVERYWHERE * expected + 1e-6) / ((1 + EVERYWHERE) * expected + 1e-6)
    by_level = torch.stack(frequent)
    bias = by_level.mean(0)
    return {"core": odds[:, :, None, None], "bias": bias, "noise": (by_level - bias).T}


def shares_around(model: "MixtureLPN", x: Tensor, sigma: float) -> Tensor:
    """Shares of the experts, averaged over the window of every position, [positions, M]; x in units of the noise."""
    first, experts = model.stages[:2]
    k = first.skip.shape[-1]
    phi = noise_features(x.new_tensor([sigma]), model.spec.noise_levels)
    z = F.conv2d(F.pad(x, (k - 1,) * 4, mode="reflect"), first.skip).square()
    u = F.conv2d(z, experts.core, experts.bias + (phi @ experts.noise.T)[0])
    ones = [x.new_ones(side) for side in u.shape[2:]]
    return Windows(model.spec.stages[2].window, *ones)(u.softmax(1))[0].flatten(1).T


def kinds_of(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means: which of `count` centres is nearest to each row, [rows]."""
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    kind = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(ROUNDS):
        kind = torch.cdist(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, kind, rows)
        members = torch.bincount(kind, minlength=len(centres))[:, None]
        elsewhere = rows[torch.randint(len(rows), (len(centres),), generator=generator)]
        centres = torch.where(members > 0, sums / members.clamp(min=1), elsewhere)
    return kind
