"""One network trained with each of three losses on the same noisy images: what the image experiments compare.

    matching   half the steps l1, then proximal matching, gamma = gamma_min sqrt(n) times 8, 4, 2, 1  (arXiv 2310.14344)
    l1, l2     all steps with that loss

The published schedule keeps its rates for 20,000 steps each; a short one, of a few per cent of its images, lets them
fall.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.training import Phase, Trainer, published_phases
from lpn_fast.training.schedule import GAMMA_MIN

LOSSES = ("matching", "l1", "l2")


def short_phases(loss: str, steps: int, entries: int, gamma_min: float = GAMMA_MIN) -> list[Phase]:
    """A schedule of few steps for samples of `entries` numbers: higher rates, which fall."""
    if loss != "matching":
        return [Phase(loss, steps, 2e-3, 1e-5)]
    first, *stages = published_phases(entries, steps, gamma_min=gamma_min)
    rates = (5e-4, 4e-4, 3e-4, 2e-4)
    stages = [replace(s, learning_rate=r, final_learning_rate=r / 4) for s, r in zip(stages, rates, strict=True)]
    return [replace(first, learning_rate=2e-3, final_learning_rate=5e-4), *stages]


def full_phases(loss: str, steps: int, entries: int, gamma_min: float = GAMMA_MIN) -> list[Phase]:
    """The published schedule; l1 and l2 keep its two learning rates, for half the steps each."""
    if loss == "matching":
        return published_phases(entries, steps, gamma_min=gamma_min)
    return [Phase(loss, steps // 2, 1e-3), Phase(loss, steps - steps // 2, 1e-4)]


def train(
    build: Callable[[], lf.LPN],
    sampler: Callable,
    phases: list[Phase],
    *,
    sigma: float,
    batch: int,
    folder: Path,
    card: dict,
    seed: int = 0,
    device: str = "cpu",
) -> lf.LPN:
    """The trained network, its file written to `folder`; a run found there is resumed, a finished one read."""
    card = {"sigma": sigma, "value_range": [0.0, 1.0], **card}
    finished = folder / "model.safetensors"
    if finished.exists() and card.items() <= (model := lf.load(finished, device)).card.items():
        return model.requires_grad_(False)
    torch.manual_seed(seed)
    model = build().to(device)
    Trainer(model, sampler, phases, sigma=sigma, batch_size=batch, seed=seed, out=folder).run()
    model.card = card
    lf.save(model, finished)
    return model.requires_grad_(False)
