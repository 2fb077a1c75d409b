"""The one experiment whose answer is known: a Laplacian prior in one dimension.

    x ~ Laplace(0, 1),  y = x + n,  n ~ N(0, 1):   the MAP denoiser is soft thresholding at 1,

the prox of |x|. Proximal matching recovers it; l1 and l2 training converge to the conditional median and
mean instead (arXiv 2310.14344, section on the 1-D Laplacian).
"""

import torch
from torch import Tensor

from ..networks import LPN, MLPLPN
from .schedule import Phase
from .trainer import Trainer

BATCH = 4000


def soft_threshold(y: Tensor, threshold: float = 1.0) -> Tensor:
    """prox of threshold |x|: sign(y) max(|y| - threshold, 0), elementwise."""
    return y.sign() * (y.abs() - threshold).clamp(min=0)


def sample_laplace(count: int, generator: torch.Generator) -> Tensor:
    """Stratified samples of Laplace(0, 1) in rising order, shape (count, 1): one per quantile interval."""
    position = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    quantile = (torch.arange(count, dtype=torch.float64)[:, None] + position) / count - 0.5
    return (-quantile.sign() * torch.log1p(-2 * quantile.abs())).float()


def golden_normal(shape: torch.Size, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Standard normal samples of `shape` (count, 1) whose quantiles step by the golden ratio from a random start.

    Paired with stratified samples they fill the plane of (x, noise) evenly. A loss over some thousand such pairs
    varies far less than over independent ones, which decides how well small gammas train: there only the few
    pairs with |f(y) - x| < gamma carry any gradient.
    """
    step = (5**0.5 - 1) / 2
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    quantile = (start + step * torch.arange(shape.numel(), dtype=torch.float64)) % 1
    return torch.special.ndtri(quantile.clamp(1e-12, 1 - 1e-12)).reshape(shape).to(dtype)


def train_laplacian(loss: str = "matching", steps: int = 2500, seed: int = 0, progress: bool = True) -> LPN:
    """A dense 1-D network trained with one loss.

    Parameters
    ----------
    loss : "matching", "l1" or "l2"
        "matching" starts with l1 for a fifth of the steps, then lowers gamma from 0.5 to 0.028.
    steps : int
    seed : int
    progress : bool

    Returns
    -------
    LPN
        In evaluation mode; `sup_error` measures it.
    """
    return train_scalar(sample_laplace, 1.0, loss, steps, seed, progress)


def train_scalar(
    sampler,
    sigma: float,
    loss: str = "matching",
    steps: int = 2500,
    seed: int = 0,
    progress: bool = True,
    gamma_min: float = 0.028,
) -> LPN:
    """The same for other scalars: `sampler(count, generator)` -> (count, 1), noise level `sigma`.

    Widths of proximal matching are in units of `sigma`, none is below `gamma_min`: a density without kinks has
    little bias to lose by small ones, and their gradients are noisy.
    """
    torch.manual_seed(seed)
    model = MLPLPN(dim=1, hidden=32, layers=1, beta=30.0, squared_head=True)
    Trainer(
        model,
        sampler,
        _phases(loss, steps, sigma, gamma_min),
        sigma=sigma,
        batch_size=BATCH,
        seed=seed,
        noise=golden_normal,
        gamma_factor=sparse_is_wide,
        ema_decay=min(0.995, 1 - 10 / (steps + 20)),
        progress=progress,
    ).run()
    return model


def sparse_is_wide(y: Tensor) -> Tensor:
    """Factors for gamma, (N,) for scalars y (N, 1): (median density / density)^(1/2), in [1/4, 4].

    Proximal matching looks for the mode of p(x | y) by a kernel of width gamma, whose variance grows like
    1 / (density of y * gamma^3). As in Abramson's rule for kernel density estimates, the kernel is wide where
    samples are few; its bias is small there unless p(x | y) has a kink. Densities are read off the batch, from the
    distance between neighbours of order 1 in 40.
    """
    order = y.flatten().argsort()
    values = y.flatten()[order]
    reach = max(1, len(values) // 80)
    index = torch.arange(len(values), device=y.device)
    high, low = (index + reach).clamp(max=len(values) - 1), (index - reach).clamp(min=0)
    spacing = (values[high] - values[low]) / (high - low).clamp(min=1)
    factor = (spacing / spacing.median().clamp_min(1e-12)).sqrt().clamp(0.25, 4.0)
    return torch.empty_like(factor).scatter_(0, order, factor)


@torch.no_grad()
def sup_error(model: LPN, limit: float = 4.0) -> float:
    """sup over [-limit, limit] of |f - soft threshold|, on a grid of step 0.001."""
    grid = torch.arange(-limit, limit + 5e-4, 1e-3)[:, None]  # [points, 1]
    return (model(grid) - soft_threshold(grid)).abs().max().item()


def _phases(loss: str, steps: int, sigma: float, gamma_min: float) -> list[Phase]:
    if loss != "matching":
        return [Phase(loss, steps, 1e-2, 1e-5)]
    # share of the steps, learning rate at both ends, gamma / sigma. Rates fall with gamma: the fewer pairs lie
    # within gamma of their target, the noisier the gradient. At a kink the minimiser of the loss itself is off by
    # 0.075 for gamma 0.06, 0.043 for 0.03 (numerical integration for Laplace(0, 1) at y = 1)
    plan = [
        (0.20, 1e-2, 1e-3, None),
        (0.08, 2e-3, 1e-3, 0.5),
        (0.12, 1e-3, 1e-3, 0.25),
        (0.15, 5e-4, 5e-4, 0.12),
        (0.15, 5e-4, 2e-4, 0.056),
        (0.30, 2e-4, 1e-6, 0.028),
    ]
    return [
        Phase(
            "l1" if gamma is None else "matching",
            max(1, round(share * steps)),
            first,
            last,
            gamma=None if gamma is None else max(gamma, gamma_min) * sigma,
        )
        for share, first, last, gamma in plan
    ]
