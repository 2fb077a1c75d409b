"""Image folders as samplers of clean crops.

Every image is decoded once and kept as bytes (500 photographs of 481 x 321 are 77 MB in gray); a batch is cut,
flipped and turned from there. All randomness comes from the generator that the trainer hands in.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


class ImageCrops:
    """Sampler of random crops: ``crops(count, generator)`` -> (count, channels, crop, crop) in [0, 1].

    Parameters
    ----------
    sources : list of path
        Image files or folders; folders are searched for images, not recursively.
    crop : int
        Side of a crop in pixels. Images smaller than that are an error that names them.
    channels : 1 or 3
        Gray (ITU-R 601 luma) or colour.
    exclude : list of str
        File stems never to read: test sets that lie in the same folders.
    contrast : float
        Each crop's contrast about its mean is multiplied by a factor drawn from [1/contrast, contrast],
        uniform in the logarithm: a prior meets under- and overshoot in a solver. 1 switches it off.

    Raises
    ------
    ValueError
        No image found, an unreadable or too small image, bad crop or channels.

    Examples
    --------
    >>> crops = ImageCrops(["photos"], crop=64)  # doctest: +SKIP
    >>> crops(16, torch.Generator()).shape  # doctest: +SKIP
    torch.Size([16, 1, 64, 64])
    """

    def __init__(
        self,
        sources: list[str | Path],
        crop: int = 64,
        channels: int = 1,
        exclude: list[str] | None = None,
        contrast: float = 1.0,
    ):
        if crop < 1:
            raise ValueError(f"crop must be at least 1, got {crop}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (colour), got {channels}")
        if not contrast >= 1:
            raise ValueError(f"contrast must be at least 1, got {contrast}")
        self.crop, self.contrast = crop, contrast
        self.paths = find_images(sources, exclude)
        self.images = [read_gray_or_colour(path, channels) for path in self.paths]  # uint8 [C, H, W] each
        for path, image in zip(self.paths, self.images, strict=True):
            if min(image.shape[1:]) < crop:
                raise ValueError(f"{path} is {tuple(image.shape[1:])} pixels, smaller than the crop of {crop}")

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Crops, float32 (count, channels, crop, crop)."""
        which = torch.randint(len(self.images), (count,), generator=generator).tolist()
        where = torch.rand(count, 2, generator=generator).tolist()
        turns = torch.randint(8, (count,), generator=generator).tolist()
        crops = []
        for index, (row, column), turn in zip(which, where, turns, strict=True):
            image = self.images[index]
            top = int(row * (image.shape[1] - self.crop + 1))
            left = int(column * (image.shape[2] - self.crop + 1))
            cut = image[:, top : top + self.crop, left : left + self.crop]
            cut = torch.rot90(cut, turn % 4, (1, 2))
            crops.append(cut.flip(2) if turn >= 4 else cut)
        batch = torch.stack(crops).float().div_(255)
        if self.contrast == 1:
            return batch
        exponent = 2 * torch.rand(count, 1, 1, 1, generator=generator) - 1
        mean = batch.mean((1, 2, 3), keepdim=True)
        return mean + self.contrast**exponent * (batch - mean)


def find_images(sources: list[str | Path], exclude: list[str] | None = None) -> list[Path]:
    """Image files of the sources, sorted by folder and name; ValueError if there is none."""
    banned, paths = set(exclude or ()), []
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"there is no image or folder {source}")
        found = sorted(source.iterdir()) if source.is_dir() else [source]
        paths += [p for p in found if p.suffix.lower() in SUFFIXES and p.stem not in banned]
    if not paths:
        raise ValueError(f"no images ({', '.join(sorted(SUFFIXES))}) in {[str(s) for s in sources]}")
    return paths


def read_gray_or_colour(path: str | Path, channels: int) -> Tensor:
    """An image as uint8 (channels, H, W); ValueError naming the file if it cannot be read."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except OSError as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    return torch.from_numpy(np.array(pixels)).reshape(*pixels.shape[:2], channels).permute(2, 0, 1)


def validation_batch(sources: list[str | Path], channels: int = 1, side: int = 160) -> Tensor:
    """Centre crops of `side` pixels of every image of the sources, float32 (count, channels, side, side)."""
    crops = []
    for path in find_images(sources):
        image = read_gray_or_colour(path, channels)
        top, left = ((n - side) // 2 for n in image.shape[1:])
        if min(top, left) < 0:
            raise ValueError(f"{path} is {tuple(image.shape[1:])} pixels, smaller than the validation side of {side}")
        crops.append(image[:, top : top + side, left : left + side])
    return torch.stack(crops).float().div_(255)
