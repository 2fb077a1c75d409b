"""How near f comes to the MAP denoiser, measured without knowing p.

    hits(gamma) = mean over (x, y) of exp(-|f(y) - x|^2 / gamma^2),       y = x + sigma n

For small gamma this is, up to a factor that depends on gamma alone, the mean over y of the posterior density
p(x | y) at x = f(y), seen through a Gaussian of width gamma. The MAP denoiser makes it largest, and MAP is the prox of
-sigma^2 log p; so of two networks the one with more hits has the R that is nearer to the log-prior, at the
resolution gamma. For large gamma the order is that of the mean square, where l2 training wins.
Proximal matching maximises it at its own gamma: what counts is the held-out data, and how it goes on below.

`reach` is |f(y) - x| / gamma, in the mean. Where that is far below one, 1 - exp(-d^2) is d^2 but for d^4 / 2, and
matching at this gamma can do no more than l2 training does.
"""

from pathlib import Path

import torch
from torch import Tensor

from .figures import axes_row

WIDTHS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.16, 0.32)  # gamma, in units of sqrt(n)
SEED = 77


@torch.no_grad()
def distances(model, clean: Tensor, sigma: float, batch: int = 32) -> Tensor:
    """|f(x + sigma n) - x| in units of sqrt(n), float64 (N,), for clean x (N, C, H, W); the noise is seeded."""
    own = next(model.parameters())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    parts = []
    for x, n in zip(clean.split(batch), noise.split(batch), strict=True):
        x = x.to(own)
        parts.append((model(x + sigma * n.to(own)) - x).double().square().flatten(1).mean(1).sqrt().cpu())
    return torch.cat(parts)


def rows(distance: Tensor, entries: int) -> list[dict]:
    """A row per width, from distances in units of sqrt(n), n = entries."""
    return [
        {
            "gamma_per_root_n": width,
            "hits": torch.exp(-((distance / width).square())).mean().item(),
            "reach": (distance / width).mean().item(),
            "samples": len(distance),
            "entries": entries,
        }
        for width in WIDTHS
    ]


def draw(table: list[dict], path: Path, trained_at: float) -> None:
    """Hits of every loss over those of l2 training, against gamma; the last gamma of the training is marked."""
    with axes_row(path, 1, width=5.0, height=3.4) as (axes,):
        reference = {r["gamma_per_root_n"]: r["hits"] for r in table if r["loss"] == "l2"}
        for loss in dict.fromkeys(row["loss"] for row in table):
            mine = [r for r in table if r["loss"] == loss and reference.get(r["gamma_per_root_n"], 0) > 1e-12]
            axes.plot(
                [r["gamma_per_root_n"] for r in mine],
                [r["hits"] / reference[r["gamma_per_root_n"]] for r in mine],
                marker="o", ms=3, label=loss,
            )  # fmt: skip
        axes.axvline(trained_at, color="k", ls=":", lw=1)
        axes.set_xscale("log")
        axes.set_xlabel("gamma / sqrt(n)")
        axes.set_title("hits within gamma, over those of l2")
        axes.legend()
