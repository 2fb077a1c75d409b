"""Images made up, so that training works with nothing downloaded. Everything is a function of a seed.

dead leaves    discs of random gray that occlude each other, radii with density ~ r^-3: the power spectrum,
               the edges and the flat regions of photographs (Lee, Mumford, Huang 2001)
ellipses       sums of random ellipses inside a disc, as in training sets for tomography
phantoms       the modified Shepp-Logan head, every ellipse of it varied at random
"""

import math

import numpy as np
import torch

from ..contract import check_name
from .augment import Augment
from .images import ImageCrops, ImageStore

SUPERSAMPLING = 2  # per axis, for soft edges

# Modified Shepp-Logan: intensity, half axes, centre, rotation in degrees; on [-1, 1]^2 (Toft 1996)
SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


def synthetic_images(kind: str, count: int, side: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """`count` images of one kind, float32 (count, channels, side, side) in [0, 1].

    With 3 channels "dead-leaves" have colours; "ellipses" and "phantoms" repeat their plane.

    Examples
    --------
    >>> synthetic_images("ellipses", count=2, side=32).shape
    (2, 1, 32, 32)
    """
    check_name("kind", kind, KINDS)
    if count < 1 or side < 8:
        raise ValueError(f"count must be at least 1 and side at least 8, got {count} and {side}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (colour), got {channels}")
    rng = np.random.default_rng(seed)
    fine = np.stack([KINDS[kind](rng, SUPERSAMPLING * side, channels) for _ in range(count)])
    return fine.reshape(count, channels, side, SUPERSAMPLING, side, SUPERSAMPLING).mean((3, 5), dtype=np.float32)


def synthetic_crops(
    kind: str,
    crop: int = 64,
    channels: int = 1,
    *,
    pool: int = 64,
    side: int = 192,
    seed: int = 0,
    augment: Augment | None = None,
    device: str | torch.device = "cpu",
) -> ImageCrops:
    """A sampler of crops of `pool` such images of `side` pixels, quantised to bytes; the rest is as for `ImageCrops`.

    Examples
    --------
    >>> crops = synthetic_crops("dead-leaves", crop=16, pool=2, side=32)
    >>> crops(5, torch.Generator()).shape
    torch.Size([5, 1, 16, 16])
    """
    images = np.rint(255 * synthetic_images(kind, pool, side, channels, seed)).astype(np.uint8)
    name = f"{kind} {pool} {side} {channels} {seed}"
    return ImageCrops.of_store(ImageStore(list(images), device=device), crop, augment or Augment(), name)


def _dead_leaves(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """Front to back: a disc colours what nothing before it has covered, until all is covered."""
    image = np.zeros((channels, side, side), np.float32)
    free = np.ones((side, side), bool)
    smallest, largest = side / 100, side / 2
    for _ in range(4000):
        # inverse of the distribution function of density ~ r^-3 on [smallest, largest]
        u = rng.random()
        radius = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
        y, x = rng.uniform(-radius, side + radius, 2)
        rows = slice(max(0, math.floor(y - radius)), min(side, math.ceil(y + radius) + 1))
        columns = slice(max(0, math.floor(x - radius)), min(side, math.ceil(x + radius) + 1))
        dy, dx = np.ogrid[rows, columns]
        mask = ((dy - y) ** 2 + (dx - x) ** 2 <= radius**2) & free[rows, columns]
        image[:, rows, columns][:, mask] = rng.random((channels, 1), dtype=np.float32)
        free[rows, columns][mask] = False
        if not free.any():
            break
    image[:, free] = rng.random((channels, 1), dtype=np.float32)
    return image


def _ellipses(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """A body with up to some tens of ellipses in it, brighter and darker, scaled into [0, 1]."""
    body = rng.uniform(0.65, 0.9, 2)
    image = _ellipse(side, 0.5, *body, 0.0, 0.0, rng.uniform(0, 180))
    inside = image > 0
    for _ in range(rng.poisson(25)):
        axes = rng.exponential(0.2, 2).clip(0.01, 0.6)
        image += _ellipse(side, rng.uniform(-0.3, 0.3), *axes, *rng.uniform(-0.7, 0.7, 2), rng.uniform(0, 180)) * inside
    return _unit(image, channels)


def _phantom(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    image = np.zeros((side, side), np.float32)
    for value, a, b, x, y, degrees in SHEPP_LOGAN:
        scale, shift = rng.normal(1, 0.05, 3), rng.normal(0, 0.02, 2)
        turned = degrees + rng.normal(0, 5)
        image += _ellipse(side, value * scale[0], a * scale[1], b * scale[2], x + shift[0], y + shift[1], turned)
    return _unit(image, channels)


def _ellipse(side: int, value: float, a: float, b: float, x: float, y: float, degrees: float) -> np.ndarray:
    """An ellipse of half axes a, b about (x, y) on [-1, 1]^2, [side, side]."""
    grid = (np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1
    v, u = np.meshgrid(-grid, grid, indexing="ij")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = (u - x) * cos + (v - y) * sin, (v - y) * cos - (u - x) * sin
    return np.float32(value) * ((along / a) ** 2 + (across / b) ** 2 <= 1)


def _unit(image: np.ndarray, channels: int) -> np.ndarray:
    image = image - image.min()
    image /= max(float(image.max()), 1e-6)
    return np.repeat(image[None].astype(np.float32), channels, 0)


KINDS = {"dead-leaves": _dead_leaves, "ellipses": _ellipses, "phantoms": _phantom}
