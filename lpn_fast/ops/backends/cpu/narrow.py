"""Correlations of few input channels on the CPU (csrc/cpu/isa/narrow.h): skips A_l, and whole first stages.

    stage     z = softplus(W z' + A x + b)  or  dz = (W dz' + A v) s(z), the product never leaving the registers
    adjoint   A^T e
    gradient  e (x) x

x and A stay in float32 whatever z is stored in: what is cheap to keep exact is.
"""

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ....algebra.spec import Stage, ceil_div
from . import memory
from .winograd import PANEL

# Above so many taps per output the library's convolution is as fast and needs no fold.
MAX_TAPS = 256


def supports(stage: Stage, channels: int) -> bool:
    """Whether these kernels do the skip of `stage` on images of so many channels."""
    return 0 < stage.skip_kernel**2 * channels <= MAX_TAPS


def padded(x: Tensor, padding: int) -> Tensor:
    """x (N, C, H, W) with zeros around, contiguous (N, H + 2 p, W + 2 p, C)."""
    return F.pad(x, (padding,) * 4).permute(0, 2, 3, 1).contiguous()


class NarrowSkip:
    """One skip A.

    Parameters
    ----------
    skip : Tensor, shape (H, C, k, k), float32
    stride, padding : int
    """

    def __init__(self, skip: Tensor, stride: int, padding: int):
        self._cpu = importlib.import_module("lpn_fast._cpu")
        self.units, self.channels, self.kernel, _ = skip.shape
        self.stride, self.padding = stride, padding
        rows = skip.permute(0, 2, 3, 1).reshape(self.units, -1)  # [H, k k C], as patches lie in memory
        self.panels = _panels(rows.T)
        self.adjoint_panels = _panels(rows)

    def product(self, image: Tensor) -> "NarrowProduct":
        """A x, to be formed where it is used; x as `padded` gives it."""
        return NarrowProduct(self, image)

    def adjoint(self, e: Tensor, size: tuple[int, int]) -> Tensor:
        """A^T e, (N, C, *size) float32, from e (N, H, h, w) channels-last."""
        x = torch.empty(len(e), self.channels, *size, device=e.device)
        self.run("adjoint", e.dtype, e, self.adjoint_panels, x, shape=(len(e), *size))
        return x

    def gradient(self, e: Tensor, image: Tensor) -> Tensor:
        """e (x) x summed over batch and pixels, (H, C, k, k); e (N, H, h, w) channels-last, x as `padded` gives it."""
        total = torch.zeros(self.kernel, self.kernel, self.channels, self.units, device=e.device)
        self.run("gradient", e.dtype, image, e, total, shape=self.inner_shape(image))
        return total.permute(3, 2, 0, 1)

    def inner_shape(self, image: Tensor) -> tuple[int, int, int]:
        """(N, H, W) of x without the zeros around it."""
        images, height, width, _ = image.shape
        return images, height - 2 * self.padding, width - 2 * self.padding

    def run(self, name: str, storage: torch.dtype, *arguments, shape: tuple[int, int, int]) -> None:
        """Call csrc's function of that name for tensors of `storage`."""
        suffix = "_bfloat16" if storage == torch.bfloat16 else ""
        addresses = [a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in arguments]
        problem = self._cpu.Narrow(*shape, self.channels, self.units, self.kernel, self.stride, self.padding)
        getattr(problem, name + suffix)(*addresses, torch.get_num_threads())


class NarrowProduct:
    """A x that was not formed yet: `epilogues.py`'s operand `rest` for the fused kernels."""

    def __init__(self, skip: NarrowSkip, image: Tensor):
        self.skip, self.image = skip, image

    def softplus(self, u: Tensor | None, b: Tensor | None, beta: float, storage: torch.dtype) -> Tensor:
        """softplus(u + A x + b), in place of u where there is one; b [1, H], [N, H] or None."""
        out = self._empty(storage) if u is None else u
        b = None if b is None else b.contiguous()
        self._stage(u, b, 0 if b is None else len(b), None, out, beta)
        return out

    def tangent(self, a: Tensor | None, z: Tensor, beta: float) -> Tensor:
        """(a + A x) s(z), in place of a where there is one."""
        out = self._empty(z.dtype) if a is None else a
        self._stage(a, None, 0, z, out, beta)
        return out

    def _stage(self, core, bias, biases: int, z, out: Tensor, beta: float) -> None:
        shape = self.skip.inner_shape(self.image)
        self.skip.run(
            "stage", out.dtype, self.image, self.skip.panels, core, bias, biases, z, out, beta, shape=shape
        )  # fmt: skip

    def _empty(self, storage: torch.dtype) -> Tensor:
        images, *padded_size, _ = self.image.shape
        size = [(n - self.skip.kernel) // self.skip.stride + 1 for n in padded_size]
        return memory.empty((images, self.skip.units, *size), storage, channels_last=True)


def _panels(factor: Tensor) -> Tensor:
    """A right factor [K, columns] as panels [ceil(columns / 32), K, 32], zeros in the rest of the last one."""
    depth, columns = factor.shape
    count = ceil_div(columns, PANEL)
    return F.pad(factor, (0, count * PANEL - columns)).view(depth, count, PANEL).transpose(0, 1).contiguous()
