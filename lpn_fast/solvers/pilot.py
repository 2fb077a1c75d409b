"""A first reconstruction by a falling noise level: where the descent on a fixed objective begins.

    x = argmin_x 1/2 ||x - (z - u)||^2 + gamma_k / 2 ||A x - y||^2,     gamma_k = TRUST sigma_k^2 / s^2
    z = f(x + u; sigma_k),     u <- u + x - z

ADMM whose network level sigma_k falls from HIGHEST to what the noise s in y is in units of the image, s / ||A||, in
LEVELS geometric steps. A non-convex objective has minimisers that a start far away falls into: at a high level the
network fills in what the operator misses, at lower ones it sharpens. A sample stays at its level until it has settled,

    rms(z - z_before) < SETTLED sigma_k,

or PATIENCE iterations have passed: blurs need one or two a level, compressed sensing ten. Every sample falls by itself.
No theorem covers a level that changes; what holds is said of the descent that follows. TRUST is the square of the true
noise over the one that the network is told: as denoisers, networks are trained to remove all of it, and minimise
better with a quarter of the weight (`python -m bench.reconstruction`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..per_sample import norm
from .automatic import trained_levels
from .problem import InverseProblem, data_prox, subset

TRUST = 4.0
HIGHEST = 0.1  # images in [0, 1]
LEVELS = 10
SETTLED = 0.1
PATIENCE = 10


@dataclass(frozen=True)
class Pilot:
    """Where a falling noise level ended.

    Attributes
    ----------
    x : Tensor, shape (N, C, H, W)
        The last network output.
    sigma : Tensor, shape (N,)
        The last level, where the descent goes on.
    iterations : Tensor, shape (N,), int64
    """

    x: Tensor
    sigma: Tensor
    iterations: Tensor


@torch.no_grad()
def fly(problem: InverseProblem, model, noise: float | Tensor) -> Pilot:
    """The pilot of a problem.

    Parameters
    ----------
    problem : InverseProblem
    model : noise-conditional LPN
    noise : float or Tensor, shape (N,)
        Standard deviation s of the noise in y, positive.
    """
    y, samples = problem.y, len(problem.y)
    s, gain = (torch.as_tensor(v).to(y).expand(samples) for v in (noise, problem.norm))
    low, high = trained_levels(model) or (0.0, HIGHEST)
    top = torch.full_like(s, min(HIGHEST, high))
    last = torch.minimum((s / gain).clamp(low, high), top)  # (N,)
    images, level = problem.x0, torch.zeros(samples, dtype=torch.int64, device=y.device)
    iterations, spent = torch.zeros_like(level), torch.zeros_like(level)
    active = torch.arange(samples, device=y.device)
    z, u, physics = images, torch.zeros_like(images), problem.physics
    while len(active):
        k = level[active] / (LEVELS - 1)  # (n,) from 0 to 1
        sigma = top[active] * (last[active] / top[active]) ** k.to(y)
        gamma = TRUST * (sigma / s[active]).square()
        x = data_prox(physics)(z - u, y[active], gamma)
        before, z = z, model(x + u, sigma)
        u = u + x - z
        iterations[active] += 1
        spent[active] += 1
        settled = norm(z - before) < SETTLED * sigma * z[0].numel() ** 0.5  # (n,)
        falls = active[settled | (spent[active] >= PATIENCE)]
        level[falls] += 1
        spent[falls] = 0
        done = level[active] >= LEVELS
        if bool(done.any()):
            images = images.index_copy(0, active[done], z[done])
            active = active[~done]
            if len(active):
                z, u, physics = z[~done], u[~done], subset(physics, ~done)
    return Pilot(images, last, iterations)
