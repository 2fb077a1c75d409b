"""Where the rays of a parallel beam run, as the few numbers per angle that the projectors need.

    image      pixel (r, c) is centred at  u = (c - (W - 1)/2) p  to the right,  v = ((H - 1)/2 - r) p  upwards
    ray        angle theta, bin k:  u cos(theta) + v sin(theta) = t_k,      t_k = (k - (B - 1)/2) d
    length     p (pixel), d (spacing) and the line integrals share one unit of length; it is the caller's

Joseph's model (IEEE Trans. Med. Imaging 1, 1982) samples a ray once per row if |cos| >= |sin|, else once
per column, and interpolates linearly along that line; the samples are p / max(|cos|, |sin|) apart:

    rows      column position at row r     = origin + r per_line + k per_bin,    per_bin =  d / (p cos), per_line = tan
    columns   row position at column c     = origin + c per_line + k per_bin,    per_bin = -d / (p sin), per_line = cot
    smear     bin position at pixel (r, c) = origin + r per_row + c per_column   (back-projection of FBP)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ParallelBeamGeometry:
    """Image grid, angles and detector of a parallel-beam scan.

    Attributes
    ----------
    height, width : int
        Pixels of the image.
    pixel : float
        Side of a pixel, in any unit of length.
    angles : tuple of float
        Directions of the detector axis, radians.
    bins : int
        Detector elements, centred on the axis of rotation.
    spacing : float
        Distance of neighbouring bins, in the unit of `pixel`.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> geometry = lf.physics.ParallelBeamCT(32, angles=40, pixel=0.5).geometry
    >>> geometry.height, len(geometry.angles)
    (32, 40)
    """

    height: int
    width: int
    pixel: float
    angles: tuple[float, ...]
    bins: int
    spacing: float

    def views(self) -> Tensor:
        """(angles, 5) float64: origin, per_line, per_bin, scale, and 1 where the lines are rows, else 0."""
        cos, sin = self._directions()
        rows = cos.abs() >= sin.abs()
        # Each angle divides by the larger of the two only, so nothing here is near zero.
        main = torch.where(rows, cos, -sin)
        per_bin = self.spacing / (self.pixel * main)
        per_line = torch.where(rows, sin, cos) / torch.where(rows, cos, sin)
        along = torch.where(rows, self.width - 1.0, self.height - 1.0) / 2  # centre, along the line
        across = torch.where(rows, self.height - 1.0, self.width - 1.0) / 2  # centre, in line numbers
        origin = along - across * per_line - (self.bins - 1) / 2 * per_bin
        return torch.stack([origin, per_line, per_bin, self.pixel / main.abs(), rows.double()], dim=1)

    def smears(self) -> Tensor:
        """(angles, 4) float64: origin, per_row, per_column, and the angle's share of pi."""
        cos, sin = self._directions()
        per_row, per_column = -sin * self.pixel / self.spacing, cos * self.pixel / self.spacing
        origin = (self.bins - 1) / 2 - (self.height - 1) / 2 * per_row - (self.width - 1) / 2 * per_column
        return torch.stack([origin, per_row, per_column, self.angle_shares()], dim=1)

    def angle_shares(self) -> Tensor:
        """(angles,) float64: half the gaps to both neighbours modulo pi; they sum to pi.

        Equidistant angles get pi / count each. A pair of opposite views shares what one would get.
        """
        angles = torch.tensor(self.angles, dtype=torch.float64).remainder(math.pi)
        ordered, order = angles.sort()
        gaps = torch.diff(ordered, append=ordered[:1] + math.pi)  # (angles,) to the next one
        shares = torch.empty_like(angles)
        shares[order] = (gaps + gaps.roll(1)) / 2
        return shares

    def _directions(self) -> tuple[Tensor, Tensor]:
        angles = torch.tensor(self.angles, dtype=torch.float64)
        return angles.cos(), angles.sin()
