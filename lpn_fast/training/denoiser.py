"""Training an image denoiser from folders, and the card that tells what was trained.

The result is f = prox_R at the noise level(s) of training: the MMSE denoiser with l2, close to the MAP one
after proximal matching.
"""

import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..metrics import UNIFORM_SIDE, psnr, ssim
from ..networks import LPN, asymptotic_gain, save
from .schedule import Phase
from .trainer import Trainer


def train_denoiser(
    model: LPN,
    crops,
    phases: list[Phase],
    *,
    sigma: float | tuple[float, float],
    out: str | Path,
    batch_size: int = 16,
    validation: Tensor | None = None,
    data_description: str = "",
    config: dict | None = None,
    **options,
) -> LPN:
    """Train `model` on clean crops; write model.safetensors, card.md and log.csv to `out`.

    Parameters
    ----------
    model : LPN
    crops : callable
        `crops(count, generator)` -> (count, C, H, W), see `lpn_fast.data.ImageCrops`, or (count, C, D, H, W).
    phases : list of Phase
    sigma : float or (float, float)
        Noise level, or the range for a noise-conditional model.
    out : path
        Folder; a run found there is resumed.
    validation : Tensor, shape (M, C, H, W) or (M, C, D, H, W), optional
        Clean images for PSNR and SSIM in log and card; of volumes, PSNR.
    data_description : str
        Goes into the card.
    config : dict, optional
        The configuration of the run, recorded in the card.
    **options
        All others of `Trainer`.

    Returns
    -------
    LPN
        `model`, in evaluation mode, its card filled in.
    """
    levels = validation_levels(sigma)
    validate = None if validation is None else lambda m: denoising_figures(m, validation, levels)
    trainer = Trainer(model, crops, phases, sigma=sigma, batch_size=batch_size, out=out, validate=validate, **options)
    result = trainer.run()
    model.card = {
        "sigma": sigma if isinstance(sigma, float | int) else list(sigma),
        "value_range": [0.0, 1.0],
        "data": data_description,
        "phases": [asdict(phase) for phase in phases],
        "batch_size": batch_size,
        "task": "denoise" if trainer.problems is None else repr(trainer.problems),
        "seed": trainer.seed,
        "expansion_weight": trainer.expansion_weight,
        "asymptotic_gain": round(asymptotic_gain(model), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(next(model.parameters()).device),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "clip_norm": trainer.clip_norm,
        "margin": trainer.margin,
        "ema_decay": options.get("ema_decay"),
        "precision": trainer.precision,
        "rollbacks": trainer.rollbacks,
        "result": result,
    }
    if config is not None:
        model.card["config"] = config
    if trainer.group.leads:
        write_result(model, out)
    return model


def write_result(model: LPN, out: str | Path) -> None:
    """Write model.safetensors and card.md to the folder `out`."""
    save(model, Path(out) / "model.safetensors")
    (Path(out) / "card.md").write_text(card_text(model, Path(out).name))


def card_text(model: LPN, name: str, licence: str | None = None) -> str:
    """The model's card as Markdown: what it is, what it saw, what it reached; of shipped weights also their licence."""
    card = dict(model.card) | ({"licence": licence} if licence else {})
    lines = [f"# {name}", "", f"`{model.extra_repr()}`", "", "| | |", "|---|---|"]
    result = card.pop("result", {})
    for key, value in (card | {f"result: {k}": v for k, v in result.items()}).items():
        lines.append(f"| {key.replace('_', ' ')} | {value if isinstance(value, str) else json.dumps(value)} |")
    note = "psnr@s, ssim@s: mean PSNR in dB and SSIM of f(x + s n) on the validation images, n seeded, range 1."
    return "\n".join([*lines, "", note, ""])


def validation_levels(sigma: float | tuple[float, float]) -> list[float]:
    """Noise levels to validate at: the one, or four spread over the range in log sigma."""
    if isinstance(sigma, float | int):
        return [float(sigma)]
    low, high = sigma
    return [round(low * (high / low) ** (i / 3), 4) for i in range(4)]


@torch.no_grad()
def denoising_figures(model: LPN, images: Tensor, levels: list[float]) -> dict[str, float]:
    """Mean PSNR and SSIM of f(x + noise) over `images` (M, C, H, W) at each noise level, seeded noise.

    There is no SSIM for volumes (M, C, D, H, W).
    """
    figures = {}
    own = next(model.parameters())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2024))
    has_ssim = images.dim() == 4 and min(images.shape[-2:]) >= UNIFORM_SIDE
    for level in levels:
        decibels, similarities = [], []
        for x, n in zip(images.split(4), noise.split(4), strict=True):
            x, n = x.to(own), n.to(own)
            denoised = model(x + level * n, level if model.is_noise_conditional else None)
            decibels.append(psnr(denoised, x))
            if has_ssim:
                similarities.append(ssim(denoised, x))
        figures[f"psnr@{level:g}"] = round(torch.cat(decibels).mean().item(), 3)
        if has_ssim:
            figures[f"ssim@{level:g}"] = round(torch.cat(similarities).mean().item(), 4)
    return figures
