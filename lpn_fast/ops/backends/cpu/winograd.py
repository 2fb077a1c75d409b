"""3 x 3 correlations with fewer multiplications: minimal filtering on the CPU (csrc/cpu/isa/winograd.h).

    W z     V = B^T d B per tile of 4 x 4 outputs;   M = V U^T, one matrix product per plane;   u = A^T M A
    W^T e   M = A e A^T;                             V = M U;                                   a = B V B^T
    dW      U' = sum over tiles of M^T V;                                                       dW = G^T U' G

U = G W G^T. Stride 1 has 36 planes and a quarter of the multiplications of 9 taps, stride 2 has 81 planes and
9/16 of them. Sums are shorter than those of a direct convolution (C terms instead of 9 C), and with the
non-negative z and W of an LPN, where a sum's rounding grows with its length, the result is more accurate.
Rows of tiles go through in groups whose planes stay in the cache. U is packed twice, as forward and as transposed
factor, with the same roundings.
"""

import importlib
import math

import torch
from torch import Tensor

from ....algebra.spec import Stage, ceil_div
from . import memory

PLANES = {1: 36, 2: 81}
TILE = 4  # outputs per side
CHANNEL_MULTIPLE = 16  # lanes of the widest instruction set
PANEL = 32  # columns of a packed right factor, csrc/cpu/isa/panels.h

# Floats in the planes of z that go through together: with those of W z 5 MB in the caches. Fewer tiles make thin
# matrix products, more push the planes out.
PLANE_FLOATS = 36 * 64 * 256
LEAST_TILES = 48  # four tiles of the product

# Small images of few channels: each thread has planes of its own for so many tiles of whole images, if those of z and
# of W z together are no more than this and stay in its cache.
OWN_TILES = 32
OWN_FLOATS = 320 * 1024

# Fewest channels at which a stride was faster than the library's convolution: the two maps, on small images with planes
# of the threads' own, and the weight gradient. AVX-512, two threads, float32, milliseconds of library / of these:
#
#   stride 1   256 ch. 4 x 64^2 38 / 14,  128 ch. 2 x 128^2 20 / 9,   64 ch. 2 x 128^2 4.9 / 3.5,  48 ch. 2.7 / 2.5,
#              32 ch. 1.2 / 1.7;  small: 64 ch. 64 x 14^2 1.85 / 1.1, 32 ch. 64 x 28^2 2.2 / 1.2
#   stride 2   256 ch. 4 x 128^2 forward 40 / 43, transposed 61 / 46, less what packing 21 MB takes; 128 ch. 5.2 / 5.8
#   gradient   256 ch. stride 1 51 / 25, stride 2 246 / 74;  64 ch. 64 x 14^2 2.3 / 2.9
#
# Other instruction sets: AVX2, two threads.
NEVER = 1 << 30
FASTER_FROM = {"avx512": {1: 64, 2: NEVER}, "other": {1: 48, 2: 128}}
SMALL_FASTER_FROM = {"avx512": {1: 32, 2: NEVER}, "other": {1: 48, 2: 128}}
GRADIENT_FASTER_FROM = {"avx512": {1: 128, 2: 128}, "other": {1: 48, 2: 128}}


def supports(stage: Stage, channels: int, out_size: tuple[int, int], isa: str, gradient: bool = False) -> bool:
    """Whether these kernels do the core of `stage` on inputs of so many channels, and faster than a library."""
    if (stage.kernel, stage.padding) != (3, 1) or stage.stride not in PLANES:
        return False
    if channels % CHANNEL_MULTIPLE or stage.width % CHANNEL_MULTIPLE:
        return False
    small = _own_tiles(out_size, channels + stage.width, stage.stride) is not None
    table = GRADIENT_FASTER_FROM if gradient else SMALL_FASTER_FROM if small else FASTER_FROM
    return min(channels, stage.width) >= table.get(isa, table["other"])[stage.stride]


def _own_tiles(out_size: tuple[int, int], channels: int, stride: int) -> int | None:
    """Tiles of whole images for which a thread has planes of its own, None where those would be too large.

    channels: of z and of W z together.
    """
    of_image = math.prod(ceil_div(n, TILE) for n in out_size)
    tiles = ceil_div(OWN_TILES, of_image) * of_image
    return tiles if PLANES[stride] * tiles * channels <= OWN_FLOATS else None


class Workspace:
    """Memory that the cores of one sweep take in turn, for planes and for U: new pages cost a tenth of a sweep."""

    def __init__(self):
        self._pool: list[Tensor | None] = [None, None, None]
        self._holds: object = None  # whose U lies in buffer 2

    def take(self, which: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Buffer `which` (0, 1 for planes, 2 for U) as a tensor of `shape`; what it holds is not defined."""
        size = math.prod(shape)
        if self._pool[which] is None or self._pool[which].numel() < size:
            self._pool[which] = memory.empty((size,), like.dtype)
        return self._pool[which][:size].view(shape)

    def packed(self, owner: object, shape: tuple[int, ...], like: Tensor, pack) -> Tensor:
        """Buffer 2 with what `pack(buffer)` puts there, unless it is `owner`'s already."""
        buffer = self.take(2, shape, like)
        if self._holds != owner:
            pack(buffer)
            self._holds = owner
        return buffer


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
        self._core = core
        self.units, self.channels = core.shape[:2]
        self.size, self.out_size, self.stride = size, out_size, stride
        self._tile_rows, self._tile_columns = (ceil_div(n, TILE) for n in out_size)
        self._tiles_of_image = self._tile_rows * self._tile_columns

    def panels(self, transposed: bool) -> Tensor:
        """U as right factor of the forward or of the transposed product, until the next one is asked for.

        Packed when it is used: kept for all stages, U takes four times the memory of the cores.
        """
        columns, depth = (self.channels, self.units) if transposed else (self.units, self.channels)

        def pack(panels: Tensor) -> None:
            wanted = (0, panels.data_ptr()) if transposed else (panels.data_ptr(), 0)
            self._cpu.winograd_pack(
                self._core.data_ptr(), *wanted, self.units, self.channels, self.stride, torch.get_num_threads()
            )

        shape = (PLANES[self.stride], ceil_div(columns, PANEL), depth, PANEL)
        return self.workspace.packed((self, transposed), shape, self._core, pack)

    def forward(self, z: Tensor) -> Tensor:
        """W z, (N, H, *out_size), from z (N, C, *size); both channels-last."""
        u = memory.empty((len(z), self.units, *self.out_size), z.dtype, channels_last=True)
        self._run("forward", z, self.panels(transposed=False), u)
        return u

    def adjoint(self, e: Tensor) -> Tensor:
        """W^T e, (N, C, *size), from e (N, H, *out_size); both channels-last."""
        a = memory.empty((len(e), self.channels, *self.size), e.dtype, channels_last=True)
        self._run("adjoint", e, self.panels(transposed=True), a)
        return a

    def gradient(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) z over the pairs (e, z), the batch and the pixels, (H, C, 3, 3)."""
        planes = memory.empty((PLANES[self.stride], self.units, self.channels), torch.float32).zero_()
        for e, z in pairs:
            self._run("gradient", e, z, planes, shared=True)
        core = planes.new_empty(self.units, self.channels, 3, 3)
        self._cpu.winograd_unpack_gradient(
            planes.data_ptr(), core.data_ptr(), self.units, self.channels, self.stride, torch.get_num_threads()
        )
        return core

    def _run(self, name: str, first: Tensor, second: Tensor, out: Tensor, shared: bool = False) -> None:
        images, planes, threads = len(first), PLANES[self.stride], torch.get_num_threads()
        own = None if shared else self._own_rows(images, threads)
        rows, sets = (self._shared_rows(images), 1) if own is None else (own, threads)
        V = self.workspace.take(0, (sets, planes, rows, self.channels), first)
        M = self.workspace.take(1, (sets, planes, rows, self.units), first)
        getattr(self._cpu, f"winograd_{name}")(
            first.data_ptr(), second.data_ptr(), out.data_ptr(), V.data_ptr(), M.data_ptr(), rows, sets, images,
            *self.size, self.channels, self.units, self.stride, threads,
        )  # fmt: skip

    def _own_rows(self, images: int, threads: int) -> int | None:
        """Rows of a plane where each thread takes whole images, None where those are too large."""
        tiles, of_image = _own_tiles(self.out_size, self.channels + self.units, self.stride), self._tiles_of_image
        return tiles and _odd(min(tiles, max(1, images // threads) * of_image))

    def _shared_rows(self, images: int) -> int:
        """Rows of a plane that all threads share: whole rows of tiles."""
        tiles = max(LEAST_TILES, PLANE_FLOATS // (PLANES[self.stride] * max(self.channels, self.units)))
        tile_rows = min(max(1, tiles // self._tile_columns), images * self._tile_rows)
        return _odd(max(1, tile_rows * self._tile_columns))


def _odd(rows: int) -> int:
    """At least so many: planes a power of two apart share a set of the cache."""
    return rows // 2 * 2 + 1
