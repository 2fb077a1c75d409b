"""The three maps between images and sinograms: compiled on the CPU, in torch operations anywhere.

    project      y[a, k]  = scale_a sum_l x[l, p(a, l, k)]                  linear interpolation along the line l
    transpose    x[l, i]  = sum_{a, k} scale_a max(0, 1 - |p(a, l, k) - i|) y[a, k]
    backproject  x[r, c]  = sum_a share_a y[a, q(a, r, c)]                  linear interpolation along the detector

p and q are affine in their indices (geometry.py). The torch functions are the specification of the
compiled ones (csrc/cpu/projector.h) and serve every other device. Both write each transpose as a sum
that one pixel collects, never as scattered additions whose order would depend on the threads.
"""

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from .geometry import ParallelBeamGeometry

_cpu: Any  # the compiled module, or None
try:
    _cpu = importlib.import_module("lpn_fast._cpu")
    _why = None if hasattr(_cpu, "ct_project") else "the compiled module is older than the projector; build it again"
except ImportError as error:  # a source tree that was never built, or an unusable binary
    _cpu, _why = None, f"the compiled module could not be imported ({error}); build it with `pip install .`"

BACKENDS = ("auto", "cpu", "torch")


class Projector:
    """Project, transpose and backproject for one geometry.

    Parameters
    ----------
    geometry : ParallelBeamGeometry
    backend : "auto", "cpu" or "torch"
        Which implementation: compiled, torch operations, or compiled where it can run.

    Raises
    ------
    ValueError
        An unknown backend.
    RuntimeError
        "cpu" where the compiled module cannot be used; the message says why.
    """

    def __init__(self, geometry: ParallelBeamGeometry, backend: str = "auto"):
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        if backend == "cpu" and _why:
            raise RuntimeError(f"backend 'cpu' cannot be used: {_why}")
        self.geometry = geometry
        self.backend = backend
        self.views = geometry.views()  # (angles, 5)
        self.smears = geometry.smears()  # (angles, 4)

    def project(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, angles, bins)
        if self._compiled(x):
            return self._run(_cpu.ct_project, self.views, x, self._sinogram_size())
        return _project(self.geometry, self.views, x)

    def transpose(self, y: Tensor) -> Tensor:  # (N, C, angles, bins) -> (N, C, H, W)
        if self._compiled(y):
            return self._run(_cpu.ct_project_transposed, self.views, y, self._image_size())
        return _transpose(self.geometry, self.views, y)

    def backproject(self, y: Tensor) -> Tensor:  # (N, C, angles, bins) -> (N, C, H, W)
        # The compiled map has no derivative of its own, and FBP inside a graph is rare.
        if self._compiled(y) and not (torch.is_grad_enabled() and y.requires_grad):
            return self._run(_cpu.ct_backproject, self.smears, y, self._image_size())
        return _backproject(self.geometry, self.smears, y)

    def _compiled(self, tensor: Tensor) -> bool:
        """Whether the compiled maps serve this tensor."""
        if self.backend == "cpu" and tensor.device.type != "cpu":
            raise ValueError(f"backend 'cpu' needs tensors on the CPU, got {tensor.device}")
        return self.backend != "torch" and _why is None and tensor.device.type == "cpu"

    def _sinogram_size(self) -> tuple[int, int]:
        return len(self.geometry.angles), self.geometry.bins

    def _image_size(self) -> tuple[int, int]:
        return self.geometry.height, self.geometry.width

    def _run(self, kernel, table: Tensor, source: Tensor, size: tuple[int, int]) -> Tensor:
        source = source.detach().contiguous()
        result = source.new_empty(*source.shape[:2], *size)
        images = math.prod(source.shape[:2])
        shape = _cpu.ProjectorShape(images, *self._image_size(), *self._sinogram_size())
        threads = torch.get_num_threads()
        kernel(table.data_ptr(), source.data_ptr(), result.data_ptr(), shape, source.element_size(), threads)
        return result


# ---------------------------------------------------------------- the same in torch operations


def _project(geometry: ParallelBeamGeometry, views: Tensor, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    images = x.reshape(n * c, geometry.height, geometry.width)
    by_rows = _padded(images)  # (N C, H, W + 2)
    by_columns = _padded(images.transpose(1, 2))  # (N C, W, H + 2)
    bins = torch.arange(geometry.bins, dtype=torch.float64, device=x.device)
    sums = []
    for origin, per_line, per_bin, scale, rows in views.tolist():
        lines = by_rows if rows else by_columns
        line = torch.arange(lines.shape[1], dtype=torch.float64, device=x.device)
        positions = origin + line[:, None] * per_line + bins * per_bin  # (lines, bins)
        sums.append(scale * _interpolate(lines, positions).sum(dim=1))  # (N C, bins)
    return torch.stack(sums, dim=1).reshape(n, c, len(sums), geometry.bins)


def _transpose(geometry: ParallelBeamGeometry, views: Tensor, y: Tensor) -> Tensor:
    """Every pixel collects from the few bins whose crossing lies within one pixel of it."""
    n, c = y.shape[:2]
    sinogram = y.reshape(n * c, len(geometry.angles), geometry.bins)
    height, width = geometry.height, geometry.width
    by_rows = y.new_zeros(n * c, height, width)
    by_columns = y.new_zeros(n * c, width, height)
    for a, (origin, per_line, per_bin, scale, rows) in enumerate(views.tolist()):
        image = by_rows if rows else by_columns
        line = torch.arange(image.shape[1], dtype=torch.float64, device=y.device)[:, None]
        pixel = torch.arange(image.shape[2], dtype=torch.float64, device=y.device)
        start = origin + line * per_line  # (lines, 1), crossing of bin 0
        nearest = ((pixel - start) / per_bin).floor()  # (lines, positions)
        reach = math.ceil(1 / abs(per_bin))
        for offset in range(1 - reach, reach + 1):
            bin_ = nearest + offset
            weight = (1 - (start + bin_ * per_bin - pixel).abs()).clamp_min(0)
            weight = weight * ((bin_ >= 0) & (bin_ < geometry.bins))
            values = sinogram[:, a, bin_.clamp(0, geometry.bins - 1).long()]  # (N C, lines, positions)
            image += (scale * weight).to(y.dtype) * values
    return (by_rows + by_columns.transpose(1, 2)).reshape(n, c, height, width)


def _backproject(geometry: ParallelBeamGeometry, smears: Tensor, y: Tensor) -> Tensor:
    n, c = y.shape[:2]
    padded = _padded(y.reshape(n * c, len(geometry.angles), geometry.bins))  # (N C, angles, bins + 2)
    row = torch.arange(geometry.height, dtype=torch.float64, device=y.device)[:, None]
    column = torch.arange(geometry.width, dtype=torch.float64, device=y.device)
    image = y.new_zeros(n * c, 1, geometry.height * geometry.width)
    for a, (origin, per_row, per_column, share) in enumerate(smears.tolist()):
        positions = (origin + row * per_row + column * per_column).reshape(1, -1)  # (1, H W)
        image = image + share * _interpolate(padded[:, a : a + 1], positions)
    return image.reshape(n, c, geometry.height, geometry.width)


def _padded(lines: Tensor) -> Tensor:
    """(images, lines, positions) with one zero before and one after every line."""
    return torch.nn.functional.pad(lines, (1, 1))


def _interpolate(
    lines: Tensor,  # (images, lines, positions + 2), zeros at both ends
    positions: Tensor,  # (lines, samples) float64, 0 is the first element after the zero
) -> Tensor:  # (images, lines, samples)
    last = lines.shape[2] - 1
    shifted = (positions + 1).clamp(0, last)
    low = shifted.floor().clamp_max(last - 1)  # (lines, samples)
    weight = (shifted - low).to(lines.dtype)
    index = low.long().expand(len(lines), -1, -1)
    return (1 - weight) * lines.gather(2, index) + weight * lines.gather(2, index + 1)
