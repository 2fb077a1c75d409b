"""Augmentation of a batch, on its device, all randomness from the generator that is handed in."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import check_name

SYMMETRIES = ("all", "mirror", "none")


@dataclass(frozen=True)
class Augment:
    """What is varied.

    Parameters
    ----------
    symmetries : "all", "mirror" or "none"
        The eight of the square, or the mirror image only: exact, they move pixels.
    degrees, zoom, probability : float
        A share of the samples is rotated by [-degrees, degrees] and magnified by [1/zoom, zoom], uniform in the
        logarithm: bilinear, reflected at the borders.
    contrast : float
        x <- mean + c (x - mean), c in [1/contrast, contrast], uniform in the logarithm: a prior meets the under- and
        overshoot that a solver shows it.
    """

    symmetries: str = "all"
    degrees: float = 0.0
    zoom: float = 1.0
    probability: float = 1.0
    contrast: float = 1.0

    def __post_init__(self):
        check_name("symmetries", self.symmetries, SYMMETRIES)
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"degrees must lie in [0, 180], got {self.degrees}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")
        for name in ("zoom", "contrast"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def turns(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers of symmetries, (count,); see `symmetry_table`."""
        turns = torch.randint(8, (count,), generator=generator)
        return {"all": turns, "mirror": turns // 4 * 4, "none": torch.zeros_like(turns)}[self.symmetries]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of a batch, each (count,)."""
        drawn = {}
        if self.degrees or self.zoom > 1:
            uniform = torch.rand(3, count, generator=generator)
            chosen = uniform[2] < self.probability
            drawn["angle"] = chosen * (2 * uniform[0] - 1) * math.radians(self.degrees)
            drawn["zoom"] = torch.where(chosen, self.zoom ** (2 * uniform[1] - 1), 1.0)
        if self.contrast > 1:
            drawn["exponent"] = 2 * torch.rand(count, 1, 1, 1, generator=generator) - 1
        return drawn

    def apply(self, batch: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """The varied batch, (N, C, H, W), from what `draw` gave for its rows."""
        if "angle" in drawn:
            batch = rotated(batch, drawn["angle"], drawn["zoom"])
        if "exponent" in drawn:
            mean = batch.mean((1, 2, 3), keepdim=True)
            batch = mean + self.contrast ** drawn["exponent"].to(batch.device) * (batch - mean)
        return batch


def symmetry_table(side: int) -> Tensor:
    """[8, side^2]: for each symmetry of a square of pixels, the place each output pixel is read from.

    Number k < 4 turns by k quarters counter-clockwise; k >= 4 mirrors the result of k - 4 left to right.
    """
    places = torch.arange(side * side).view(side, side)
    turned = [torch.rot90(places, k) for k in range(4)]
    return torch.stack([t.reshape(-1) for t in (*turned, *(t.flip(1) for t in turned))])


def rotated(batch: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Samples (N, C, H, W) rotated by angle (N,) in radians and magnified by zoom (N,), about their centres."""
    cos, sin = (f(angle) / zoom for f in (torch.cos, torch.sin))
    height, width = batch.shape[-2:]
    # coordinates of affine_grid run over [-1, 1] on both axes: undo that for images that are not square
    rows = torch.stack([cos, -sin * height / width, torch.zeros_like(cos)], 1)
    columns = torch.stack([sin * width / height, cos, torch.zeros_like(cos)], 1)
    matrices = torch.stack([rows, columns], 1).to(batch)  # [N, 2, 3]
    grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
