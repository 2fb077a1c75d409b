"""A first reconstruction by a falling noise level: where the descent on a fixed objective begins.

    x = argmin_x 1/2 ||x - (z - u)||^2 + gamma_k / 2 ||A x - y||^2,     gamma_k = trust sigma_k^2 / s^2
    z = f(x + u; sigma_k),     u <- u + x - z

ADMM whose network level sigma_k falls from how far off the start is (`highest_level`) to what the noise s in y is in
units of the image, s / ||A||, in LEVELS geometric steps. A non-convex objective has minimisers that a start far away
falls into: at a high level the network fills in what the operator misses, at lower ones it sharpens. A sample
stays at its level until it has settled,

    rms(z - z_before) < SETTLED sigma_k,

or PATIENCE iterations have passed: blurs need one or two a level, compressed sensing ten. Every sample falls by itself.
No theorem covers a level that changes; what holds is said of the descent that follows. `trust` is the square of the
true noise over the one that the network is told: as denoisers, networks are trained to remove all of it, and minimise
better with a quarter of the weight, TRUST = 4 (`python -m bench.reconstruction`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..per_sample import dot, norm
from ..physics import Downsampling, LinearOperator, has_start, seen
from ..physics.noise import without_noise
from .automatic import trained_levels, white_level
from .noise import noise_level
from .problem import InverseProblem, checked_problem, data_prox, random_like, subset
from .protocol import ProxModel
from .prox import LearnedProx

TRUST = 4.0
# Highest levels, over the white level of the images. Rows that are orthogonal and of one length (masks, Fourier lines,
# compressed sensing) say all or nothing of a direction: what they miss is far off at the start. Others attenuate, and
# their starts are close where the operator has a start of its own.
MISSING, ATTENUATED, UNKNOWN = 0.2, 0.05, 0.1
ORTHOGONAL = 0.02  # |A A^T v - c v| / |A A^T v| of a random v, over entries that A can reach
LEVELS = 10
SETTLED = 0.1
ACCURACY = 0.01  # for a data prox that is an iteration, root mean square over the level
PATIENCE = 10
LEAST_NOISE = 1e-4  # over ||A||: a fortieth of a gray level of 255


@dataclass(frozen=True)
class Pilot:
    """Where a falling noise level ended.

    Attributes
    ----------
    x : Tensor, shape (N, C, H, W)
        The last network output: an `x0` for the solvers.
    sigma : Tensor, shape (N,)
        The last level, where a descent goes on.
    trust : Tensor, shape (N,), float64
    iterations : Tensor, shape (N,), int64
    """

    x: Tensor
    sigma: Tensor
    trust: Tensor
    iterations: Tensor

    @property
    def penalty(self) -> Tensor:  # (N,)
        """rho of HQS that weighs the data as the last iteration did, for noise 1: times s^2."""
        return 1 / (self.trust * self.sigma.double().square())


@torch.no_grad()
def pilot(
    y: Tensor,
    physics: LinearOperator,
    model: ProxModel,
    *,
    noise: float | Tensor | None = None,
    x0: Tensor | None = None,
    progress: bool = False,
) -> Pilot:
    """Images from a falling noise level: the start that operators with a large null space need.

    Parameters
    ----------
    y, physics, noise, x0, progress
        As for `lf.reconstruct`.
    model : noise-conditional LPN

    Returns
    -------
    Pilot

    Raises
    ------
    ValueError
        A network without noise levels; otherwise as the solvers.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> physics = lf.physics.Inpainting.random(32, seen=0.5)
    >>> y = physics.A(torch.full((1, 1, 32, 32), 0.5))
    >>> start = lf.solvers.pilot(y, physics, lf.pretrained("fast-gray"), noise=0.01)
    >>> result = lf.solvers.pgd(y, physics, lf.pretrained("fast-gray"), noise=0.01, x0=start.x, max_iter=5)
    """
    problem = checked_problem(y, physics, x0=x0)
    return follow_levels(problem, model, working_noise(problem, noise), progress)


def highest_level(problem: InverseProblem) -> float:
    """Where the fall begins: MISSING, ATTENUATED or UNKNOWN, by what kind the operator is of."""
    physics = without_noise(problem.physics)
    reached = seen(physics, problem.y)
    v = random_like(problem.y).where(reached, 0.0)
    w = physics.A(physics.A_adjoint(v)).where(reached, 0.0)
    c = float(dot(v, w).sum() / dot(v, v).sum())
    if bool((norm(w - c * v) <= ORTHOGONAL * norm(w)).all()) and not isinstance(physics, Downsampling):
        return MISSING
    return ATTENUATED if has_start(physics) else UNKNOWN


def working_noise(problem: InverseProblem, given: float | Tensor | None) -> Tensor:  # (N,) float64
    """The noise of every sample, and for exact measurements one that nobody sees, as the weights need one."""
    gain = torch.as_tensor(problem.norm, dtype=torch.float64, device=problem.y.device)
    return torch.maximum(noise_level(problem.physics, problem.y, given), LEAST_NOISE * gain)


@torch.no_grad()
def follow_levels(
    problem: InverseProblem,
    model: ProxModel,
    noise: Tensor,
    progress: bool | Callable[[int], object] = False,
    trust: float | Tensor = TRUST,
) -> Pilot:
    """The pilot of a problem whose noise and trust, (N,) float64, are known; `progress` as for `lf.reconstruct`."""
    known = trained_levels(model)
    if not getattr(model, "is_noise_conditional", False) or known is None:
        raise ValueError("model must be conditioned on the noise level (sigma_conditional), got one of a single level")
    low, high = known
    y, samples, prox = problem.y, len(problem.y), LearnedProx.of(model)
    s, gain = (torch.as_tensor(v).to(y).expand(samples) for v in (noise, problem.norm))
    trust = torch.as_tensor(trust, dtype=torch.float64, device=y.device).expand(samples)
    top = torch.full_like(s, min(highest_level(problem) * white_level(model), high))
    last = torch.minimum((s / gain).clamp(low, high), top)  # (N,)
    images, level = problem.x0, torch.zeros(samples, dtype=torch.int64, device=y.device)
    iterations, spent = torch.zeros_like(level), torch.zeros_like(level)
    active = torch.arange(samples, device=y.device)
    x, z, u, physics = images, images, torch.zeros_like(images), problem.physics
    with tqdm(total=LEVELS * samples, desc="pilot", unit="level", disable=progress is not True) as bar:
        while len(active):
            k = level[active] / (LEVELS - 1)  # (n,) from 0 to 1
            sigma = top[active] * (last[active] / top[active]) ** k.to(y)
            gamma = trust[active].to(y) * (sigma / s[active]).square()
            error = ACCURACY * sigma * z[0].numel() ** 0.5  # (n,)
            x = data_prox(physics, z - u, y[active], gamma, near=x, error=error)
            before, (z, _, _) = z, prox(x + u, 1.0, sigma, None)
            u = u + x - z
            iterations[active] += 1
            spent[active] += 1
            if callable(progress):
                progress(int(iterations.max()))
            settled = norm(z - before) < SETTLED * sigma * z[0].numel() ** 0.5  # (n,)
            falls = active[settled | (spent[active] >= PATIENCE)]
            level[falls] += 1
            spent[falls] = 0
            bar.update(len(falls))
            done = level[active] >= LEVELS
            if bool(done.any()):
                images = images.index_copy(0, active[done], z[done])
                active = active[~done]
                if len(active):
                    x, z, u, physics = x[~done], z[~done], u[~done], subset(physics, ~done)
    return Pilot(images, last, trust, iterations)
