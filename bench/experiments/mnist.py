"""Handwritten digits, and the published MNIST network trained on them with each loss in minutes.

Noise 0.1, images in [0, 1], rows 0..49999 of the training set, the published start. The published run sees
40,000 batches of 200 images; a run here sees STEPS of BATCH, a quarter of a percent of that, with rates that fall.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import lpn_fast as lf

from . import three_losses
from .three_losses import short_phases

SIGMA = 0.1
BATCH = 16
TRAIN, TEST, VALIDATION = slice(0, 50_000), slice(50_000, 55_000), slice(55_000, 60_000)
ENTRIES = 28 * 28
STEPS = 1200
VARIABLE = "LPN_FAST_DATA"


def add_data_option(parser) -> None:
    """The option --data."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        help=f"mnist.npz with x_train (60000, 28, 28) uint8; default: mnist/mnist.npz or mnist.npz in ${VARIABLE}",
    )


def find_digits(data: str | None) -> Path:
    """The file given, or the one below the folder that the environment names."""
    candidates = [Path(data)] if data else []
    if not data and os.environ.get(VARIABLE):
        folder = Path(os.environ[VARIABLE])
        candidates = [folder / "mnist" / "mnist.npz", folder / "mnist.npz", folder]
    for path in candidates:
        if path.is_file():
            return path
    seen = ", ".join(map(str, candidates)) or f"neither --data nor ${VARIABLE}"
    raise FileNotFoundError(f"no MNIST file: got {seen}; give --data mnist.npz, with x_train (60000, 28, 28) uint8")


def read_digits(path: Path) -> np.ndarray:  # [60000, 28, 28] uint8
    """x_train of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        if "x_train" not in file:
            raise ValueError(f"{path} must hold x_train, got {sorted(file)}")
        digits = file["x_train"]
    if digits.shape != (60_000, 28, 28) or digits.dtype != np.uint8:
        raise ValueError(f"x_train must be uint8 of shape (60000, 28, 28), got {digits.dtype} of {digits.shape}")
    return digits


def as_images(digits: np.ndarray) -> Tensor:  # [N, 28, 28] uint8 -> [N, 1, 28, 28] in [0, 1]
    return torch.from_numpy(digits).float()[:, None] / 255


def sampler(digits: np.ndarray) -> Callable[[int, torch.Generator], Tensor]:
    """Batches of training digits for a Trainer."""
    training = digits[TRAIN]

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return as_images(training[torch.randint(len(training), (count,), generator=generator).numpy()])

    return draw


# The published network, and an explicit prior of patches that see a third of a digit across.
FAMILIES = {
    "published": lambda: lf.paper_network("mnist"),
    "explicit": lambda: lf.ExplicitLPN(1, kernel=9, groups=96, sigma_conditional=(SIGMA,)),
}


def train(loss: str, digits: np.ndarray, steps: int, folder: Path, seed: int = 0, family: str = "published") -> lf.LPN:
    """The network trained with one loss; a run found in `folder` is resumed, a finished one read."""
    return three_losses.train(
        FAMILIES[family],
        sampler(digits),
        short_phases(loss, steps, ENTRIES),
        sigma=SIGMA,
        batch=BATCH,
        folder=folder,
        card={"data": "MNIST", "loss": loss, "steps": steps},
        seed=seed,
    )


def sigma_of(model: lf.LPN) -> float | None:
    """What a call of the network takes."""
    return SIGMA if model.is_noise_conditional else None


@torch.no_grad()
def denoising_psnr(model: lf.LPN, clean: Tensor) -> float:
    """Mean PSNR in dB of f(x + noise) at the noise level of training, seeded noise."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2024))
    denoised = torch.cat([model(x, sigma_of(model)) for x in (clean + SIGMA * noise).split(64)])
    return lf.metrics.psnr(denoised, clean).mean().item()
