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
        "matching" starts with l1 for a fifth of the steps, then lowers gamma from 0.5 to 0.06.
    steps : int
    seed : int
    progress : bool

    Returns
    -------
    LPN
        In evaluation mode; `sup_error` measures it.
    """
    torch.manual_seed(seed)
    model = MLPLPN(dim=1, hidden=32, layers=1, beta=30.0, squared_head=True)
    Trainer(
        model,
        sample_laplace,
        _phases(loss, steps),
        sigma=1.0,
        batch_size=BATCH,
        seed=seed,
        noise=golden_normal,
        progress=progress,
    ).run()
    return model


@torch.no_grad()
def sup_error(model: LPN, limit: float = 4.0) -> float:
    """sup over [-limit, limit] of |f - soft threshold|, on a grid of step 0.001."""
    grid = torch.arange(-limit, limit + 5e-4, 1e-3)[:, None]  # [points, 1]
    return (model(grid) - soft_threshold(grid)).abs().max().item()


def _phases(loss: str, steps: int) -> list[Phase]:
    if loss != "matching":
        return [Phase(loss, steps, 1e-2, 1e-5)]
    # share of the steps, learning rate at both ends, gamma. Rates fall with gamma: the fewer pairs lie within
    # gamma of their target, the noisier the gradient, most of all at large |y|
    plan = [
        (0.20, 1e-2, 1e-3, None),
        (0.08, 2e-3, 1e-3, 0.5),
        (0.12, 1e-3, 1e-3, 0.25),
        (0.20, 5e-4, 5e-4, 0.12),
        (0.40, 5e-4, 1e-6, 0.06),
    ]
    return [
        Phase("l1" if gamma is None else "matching", max(1, round(share * steps)), first, last, gamma=gamma)
        for share, first, last, gamma in plan
    ]
