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

BATCH = 2000


def soft_threshold(y: Tensor, threshold: float = 1.0) -> Tensor:
    """prox of threshold |x|: sign(y) max(|y| - threshold, 0), elementwise."""
    return y.sign() * (y.abs() - threshold).clamp(min=0)


def sample_laplace(count: int, generator: torch.Generator) -> Tensor:
    """Samples of Laplace(0, 1), shape (count, 1)."""
    uniform = torch.rand(count, 1, generator=generator, dtype=torch.float64) - 0.5
    return (-uniform.sign() * torch.log1p(-2 * uniform.abs())).float()


def train_laplacian(loss: str = "matching", steps: int = 6000, seed: int = 0, progress: bool = True) -> LPN:
    """A dense 1-D network trained with one loss.

    Parameters
    ----------
    loss : "matching", "l1" or "l2"
        "matching" starts with l1 for a third of the steps, then lowers gamma from 0.5 to 0.1.
    steps : int
    seed : int
    progress : bool

    Returns
    -------
    LPN
        In evaluation mode; `sup_error` measures it.
    """
    torch.manual_seed(seed)
    model = MLPLPN(dim=1, hidden=50, layers=4, beta=10.0)
    Trainer(
        model,
        sample_laplace,
        _phases(loss, steps),
        sigma=1.0,
        batch_size=BATCH,
        seed=seed,
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
        return [Phase(loss, steps, 2e-3, 1e-5)]
    pre, gammas = steps // 3, (0.5, 0.4, 0.3, 0.2, 0.1)
    each = (steps - pre) // len(gammas)
    rates = (1e-3, 1e-3, 1e-3, 5e-4, 2e-4)
    stages = [Phase("matching", each, r, r / 5, gamma=g) for r, g in zip(rates, gammas, strict=True)]
    return [Phase("l1", pre, 2e-3, 1e-3), *stages]
