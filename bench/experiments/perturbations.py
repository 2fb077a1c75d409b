"""R of perturbed images: does the learned prior find them less likely than the clean ones?

    noise    clip(x + s n, 0, 1)          s in 0, .05, .1, .2, .3
    blur     Gaussian of deviation s      s in 0, .5, 1, 2, 4 pixels, zero outside the image
    mix      (1 - s) x + s x'             s in 0, .25, .5, .75, 1; x' is the image at the mirrored place of the list
    degraded (1 - s) x + s d              the same s; d is what a measurement shows of x without a prior

Noise makes an image less likely. Mixing and blurring need not: a prior of smoothness alone falls with both. One that
knows digits rises from both ends towards the middle of a mix, which no convex R does. R is evaluated by certified
inversion (lf.prior); it is known up to a constant that differs between networks, so figures subtract the mean over the
unperturbed images.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import lpn_fast as lf

from .figures import axes_row

LEVELS = {
    "noise": (0.0, 0.05, 0.1, 0.2, 0.3),
    "blur": (0.0, 0.5, 1.0, 2.0, 4.0),
    "mix": (0.0, 0.25, 0.5, 0.75, 1.0),
    "degraded": (0.0, 0.25, 0.5, 0.75, 1.0),
}
UNITS = {
    "noise": "deviation of the noise",
    "blur": "deviation of the blur in pixels",
    "mix": "weight of second image",
    "degraded": "weight of the degraded image",
}
TOL = 1e-3  # values are then certain to about a hundredth, see value_bound_max in the CSV; R moves by tens


def perturb(x: Tensor, kind: str, level: float, degraded: Tensor | None = None) -> Tensor:
    """Images (N, C, H, W), perturbed; noise is seeded."""
    if level == 0:
        return x
    if kind == "noise":
        return (x + level * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    if kind == "blur":
        return gaussian_blur(x, level)
    return torch.lerp(x, x.flip(0) if kind == "mix" else degraded, level)


def gaussian_blur(x: Tensor, deviation: float) -> Tensor:
    """Separable convolution with a sampled Gaussian of unit sum, cut at four deviations; zero outside."""
    radius = int(4 * deviation + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)  # [2 radius + 1]
    taps = (taps / taps.sum()).view(1, 1, -1, 1)
    planes = x.flatten(0, 1)[:, None]  # [N C, 1, H, W]
    planes = F.conv2d(F.conv2d(planes, taps, padding=(radius, 0)), taps.mT, padding=(0, radius))
    return planes.view(x.shape)


def evaluate(
    model: lf.LPN, clean: Tensor, tol: float = TOL, degraded: Tensor | None = None, sigma: float | None = None
) -> Iterator[dict]:
    """A row per perturbation and level, started from the preimages of the level before.

    Parameters
    ----------
    model : LPN
    clean : Tensor, shape (N, C, H, W)
    tol : float
        Of the inversion, relative residual.
    degraded : Tensor, shape of clean, optional
        Without it there are no rows of that kind.
    sigma : float, optional
        For noise-conditional networks.
    """
    own = next(model.parameters())
    for kind, levels in LEVELS.items():
        if kind == "degraded" and degraded is None:
            continue
        start = None
        for level in levels:
            x = perturb(clean, kind, level, degraded).to(own)
            result = lf.prior(model, x, sigma=sigma, tol=tol, x0=start)
            start = torch.where(result.preimage.isfinite(), result.preimage, x)
            value = result.value[result.converged]
            yield {
                "perturbation": kind,
                "level": level,
                "images": len(x),
                "converged": int(result.converged.sum()),
                "mean": value.mean().item(),
                "std": value.std().item() if len(value) > 1 else 0.0,
                "residual_max": result.residual.max().item(),
                "value_bound_max": float("nan") if result.value_bound is None else result.value_bound.max().item(),
                "iterations_mean": result.inversion.iterations.double().mean().item(),
            }


def line(row: dict) -> str:
    """A row of `evaluate` for the terminal."""
    return (
        f"  {row['perturbation']:8s} {row['level']:<5g} R = {row['mean']:9.3f} +- {row['std']:7.3f}   "
        f"{row['converged']} of {row['images']} converged, error of R <= {row['value_bound_max']:.1e}"
    )


def rises(means: dict[float, float], kind: str) -> bool:
    """Whether mean R rises with every level; for a mix, from both ends to the middle."""
    levels = sorted(means)
    values = [means[level] for level in levels]
    if kind == "mix":
        middle = len(values) // 2
        return _increasing(values[: middle + 1]) and _increasing(values[middle:][::-1])
    return _increasing(values)


def _increasing(values: list[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def report(rows: list[dict], claimed: tuple[str, ...] = ("noise", "mix")) -> bool:
    """Say for each network and perturbation whether R rises; True if it does under those claimed, after matching."""
    verdict = True
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    for loss in losses:
        for kind in dict.fromkeys(row["perturbation"] for row in rows):
            mine = [row for row in rows if row["loss"] == loss and row["perturbation"] == kind]
            yes = rises({row["level"]: row["mean"] for row in mine}, kind)
            words = (
                "towards the middle of a mix" if kind == "mix" else f"with {kind.replace('degraded', 'degradation')}"
            )
            print(f"{loss}: R {'rises' if yes else 'does NOT rise'} {words}")
            if kind in claimed and loss in ("matching", losses[0]):
                verdict &= yes
        lost = sum(row["images"] - row["converged"] for row in rows if row["loss"] == loss)
        if lost:
            print(f"{loss}: {lost} inversions did not converge; their values are left out")
    return verdict


def draw(rows: list[dict], path: Path) -> None:
    """R against perturbation, mean +- std over the images, one line per loss."""
    kinds = list(dict.fromkeys(row["perturbation"] for row in rows))
    with axes_row(path, len(kinds), width=3.3) as panels:
        for axes, kind in zip(panels, kinds, strict=True):
            for loss in dict.fromkeys(row["loss"] for row in rows):
                mine = [row for row in rows if row["loss"] == loss and row["perturbation"] == kind]
                means = [row["mean"] - mine[0]["mean"] for row in mine]
                spread = [row["std"] for row in mine]
                axes.errorbar([row["level"] for row in mine], means, spread, label=loss, capsize=3, marker="o", ms=3)
            axes.set_xlabel(UNITS[kind])
            axes.set_title(kind)
        panels[0].set_ylabel("R - mean R(clean)")
        panels[0].legend()
