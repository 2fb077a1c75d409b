"""Images that a study of priors trains and tests on: faces in colour, slices of CT.

    faces    4,700 aligned faces, 128 x 128 x 3: the first 4,400 train. A stand-in for the published CelebA: figures are
             indicative only
    mayo     113 slices of 9 patients, 512 x 512, 8 bits; the published 128 test slices are not among them

Nothing of them becomes part of the project: figures show numbers, pictures go to the folder of the training runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.reconstruction import data
from lpn_fast.data import Augment, ImageCrops, ImageStore

FACES_CENTRE = 128


@dataclass(frozen=True)
class Domain:
    """Where images come from."""

    name: str
    channels: int
    network: str  # the published one
    images: Callable[[Path, str, int, int], Tensor]  # (data folder, part, count, side) -> (count, C, side, side)
    crops: Callable[[Path, int, int, str], ImageCrops]  # (data folder, side of images, crop, device)


def face_crops(root: Path, side: int, crop: int, device: str) -> ImageCrops:
    """Crops of the training faces, unvaried, as published."""
    return ImageCrops(
        [root / data.FACES],
        crop,
        3,
        augment=Augment("none"),
        centre=side,
        samples=data.FACE_SAMPLES["train"],
        device=device,
    )


def slice_crops(root: Path, side: int, crop: int, device: str) -> ImageCrops:
    """Crops of the training slices, averaged down to `side` pixels, mirrored, turned and zoomed."""
    images = data.slices(root, "train", len(data.slice_paths(root, "train")), side)
    arrays = list(torch.round(255 * images).byte().numpy())
    augment = Augment("mirror", degrees=180, zoom=1.1, probability=0.8)
    return ImageCrops.of_store(ImageStore(arrays, device=device), crop, augment, f"mayo {side}")


def gray_levels(images: Tensor) -> np.ndarray:
    """How often each of the 256 levels occurs in images with values k / 255, [256] int64."""
    return np.bincount(torch.round(255 * images).byte().numpy().reshape(-1), minlength=256)


FACES = Domain("faces", 3, "celeba", data.faces, face_crops)
MAYO = Domain("mayo", 1, "mayoct", data.slices, slice_crops)
