"""3 x 3 correlations with fewer multiplications: minimal filtering on the CPU (csrc/cpu/isa/winograd.h).

    W z     V = B^T d B per tile of 4 x 4 outputs;   M = V U^T, one matrix product per plane;   u = A^T M A
    W^T e   M = A e A^T;                             V = M U;                                   a = B V B^T
    dW      U' = sum over tiles of M^T V;                                                       dW = G^T U' G

U = G W G^T. Stride 1 has 36 planes and a quarter of the multiplications of 9 taps, stride 2 has 81 planes and
9/16 of them. Sums are shorter than those of a direct convolution (C terms instead of 9 C), and with the
non-negative z and W of an LPN, where a sum's rounding grows with its length, the result is more accurate.
Images go through in groups whose planes stay in the cache.
"""

import importlib
import math

import torch
from torch import Tensor

from ..algebra.spec import Stage

PLANES = {1: 36, 2: 81}
TILE = 4  # outputs per side
CHANNEL_MULTIPLE = 16  # lanes of the widest instruction set

# Tiles that go through together: 256 tiles x 256 channels x 36 planes are 9 MB, and as much again of products.
# Fewer make the matrix products thin, more push the planes out of the last-level cache.
TILES = 256


# Fewest channels at which each stride was faster than the library's convolution.
FASTER_FROM = {1: 48, 2: 128}


def supports(stage: Stage, channels: int) -> bool:
    """Whether these kernels do the core of `stage` on inputs of so many channels, and faster than a library."""
    return (
        (stage.kernel, stage.padding) == (3, 1)
        and stage.stride in PLANES
        and channels % CHANNEL_MULTIPLE == stage.width % CHANNEL_MULTIPLE == 0
        and min(channels, stage.width) >= FASTER_FROM[stage.stride]
    )


class Workspace:
    """Memory for planes that the cores of one sweep take in turn: touching new pages costs a tenth of a sweep."""

    def __init__(self):
        self._pool: list[Tensor | None] = [None, None]

    def take(self, which: int, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """Buffer `which` (0 or 1) as a tensor of `shape`; what it holds is not defined."""
        size = math.prod(shape)
        if self._pool[which] is None or self._pool[which].numel() < size:
            self._pool[which] = like.new_empty(size)
        return self._pool[which][:size].view(shape)


class WinogradCore:
    """One core W on inputs of one size.

    Parameters
    ----------
    core : Tensor, shape (H, C, 3, 3), contiguous, float32
    size, out_size : tuple of int
        (h, w) of z and of W z.
    stride : 1 or 2
    workspace : Workspace
    """

    def __init__(
        self, core: Tensor, size: tuple[int, int], out_size: tuple[int, int], stride: int, workspace: Workspace
    ):
        self.workspace = workspace
        self._cpu = importlib.import_module("lpn_fast._cpu")
        self.units, self.channels = core.shape[:2]
        self.size, self.out_size, self.stride = size, out_size, stride
        self.tiles = -(-out_size[0] // TILE) * -(-out_size[1] // TILE)  # of one image
        self.images_per_group = max(1, TILES // self.tiles)
        self.weights = core.new_empty(PLANES[stride], self.units, self.channels)  # U
        self._cpu.winograd_weights(
            core.data_ptr(), self.weights.data_ptr(), self.units, self.channels, stride, torch.get_num_threads()
        )

    def forward(self, z: Tensor) -> Tensor:
        """W z, (N, H, *out_size), from z (N, C, *size); both channels-last."""
        u = _empty(z, self.units, self.out_size)
        V, M = self._planes(z)
        for group in self._groups(z):
            self._run("inputs", z[group], V)
            torch.bmm(V, self.weights.transpose(1, 2), out=M)
            self._run("outputs", u[group], M)
        return u

    def adjoint(self, e: Tensor) -> Tensor:
        """W^T e, (N, C, *size), from e (N, H, *out_size); both channels-last."""
        a = _empty(e, self.channels, self.size)
        V, M = self._planes(e)
        for group in self._groups(e):
            self._run("outputs_adjoint", e[group], M)
            torch.bmm(M, self.weights, out=V)
            self._run("inputs_adjoint", a[group], V)
        return a

    def gradient(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) z over the pairs (e, z), the batch and the pixels, (H, C, 3, 3)."""
        total = torch.zeros_like(self.weights)
        V, M = self._planes(pairs[0][1])
        for e, z in pairs:
            for group in self._groups(z):
                for planes in (V, M):  # rows that no tile fills
                    planes[:, len(z[group]) * self.tiles :].zero_()
                self._run("inputs", z[group], V)
                self._run("outputs_adjoint", e[group], M)
                total.baddbmm_(M.transpose(1, 2), V)
        core = total.new_empty(self.units, self.channels, 3, 3)
        self._cpu.winograd_weights_adjoint(
            core.data_ptr(), total.data_ptr(), self.units, self.channels, self.stride, torch.get_num_threads()
        )
        return core

    def _groups(self, images: Tensor) -> list[slice]:
        """Samples that go through together, in turn."""
        step = self.images_per_group
        return [slice(first, first + step) for first in range(0, len(images), step)]

    def _planes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """V [planes, rows, C] and M [planes, rows, H], for the largest group.

        The number of rows is odd: planes a power of two apart would fall on one set of the cache.
        """
        rows = min(len(images), self.images_per_group) * self.tiles // 2 * 2 + 1
        planes = PLANES[self.stride]
        V = self.workspace.take(0, (planes, rows, self.channels), images)
        return V, self.workspace.take(1, (planes, rows, self.units), images)

    def _run(self, name: str, pixels: Tensor, planes: Tensor) -> None:
        _, rows, channels = planes.shape
        getattr(self._cpu, f"winograd_{name}")(
            pixels.data_ptr(), planes.data_ptr(), rows * channels, len(pixels), *self.size, channels, self.stride,
            torch.get_num_threads(),
        )  # fmt: skip


def _empty(like: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.empty(
        (len(like), channels, *size), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
