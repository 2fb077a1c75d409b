"""A network on an image or a volume too large to be evaluated at once: tile by tile, exactly.

A unit sees pixels within `extent` of each other, so f at a pixel depends on x within that distance and no further. The
axis is cut at p_1 < p_2 < ..; f between two cuts is read from a tile that reaches a halo h >= extent beyond them. Cuts
and halo are multiples of the network's whole stride, so that a tile's units are the image's. At the border of the image
tiles end where it ends, and the network continues a tile there as it does the image. psi is a sum over units, and units
whose view the end of a tile cuts off are wrong there:

    psi(x) = sum_k psi(tile_k) - sum_k psi(overlap_k),      overlap_k = p_k - h .. p_k + h,     along one axis,

each wrong unit of a tile is wrong in the same way in the overlap at that end, and what two tiles both see is counted
once; with several axes the signs multiply. So f and psi are those of the whole image, up to rounding, and f is the
same exact prox: this is no average of patches (nothing is blended).
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..algebra.spec import Spec, ceil_div
from ..per_sample import dot
from .lpn import LPN

SIDE = {2: 512, 3: 64}  # pixels of a tile along an axis, without its halo: of images and of volumes


class InTiles:
    """Evaluate a fully convolutional network on large images or volumes in bounded memory.

    Beyond input and output the memory is that of one evaluation on a tile, whatever the image and the batch. It is what
    the solvers take for a prior, at strength 1. Gradients are not kept.

    Parameters
    ----------
    model : LPN
        Convolutional, of any image size.
    side : int, optional
        Pixels per side of a tile without its halo, rounded up to a multiple of the stride. None is 512 for images
        and 64 for volumes.
    on_share : callable, optional
        Told the share of the tiles that is done, after each.

    Attributes
    ----------
    halo : int
        Pixels around a tile that are read as well: what is computed more than once.

    Raises
    ------
    ValueError
        A dense network, one of a fixed image size, one whose stages do not keep step with the image, or a bad side.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.InTiles(lf.ConvLPN(1, hidden=8), side=64)
    >>> model(torch.rand(1, 1, 200, 150)).shape
    torch.Size([1, 1, 200, 150])
    """

    def __init__(self, model: LPN, side: int | None = None, on_share: Callable[[float], None] | None = None):
        side = SIDE[model.spec.ndim] if side is None else side
        if not isinstance(side, int) or side < 1:
            raise ValueError(f"side must be a positive whole number of pixels, got {side!r}")
        extent, stride = _view(model.spec)
        self.model, self.on_share = model, on_share
        self.side = ceil_div(side, stride) * stride
        self.halo = ceil_div(extent, stride) * stride
        self.card, self.alpha, self.is_noise_conditional = model.card, model.alpha, model.is_noise_conditional

    def __repr__(self) -> str:
        return f"InTiles of {self.side} pixels a side, halo {self.halo}, of {self.model!r}"

    def parameters(self):
        """Those of the network."""
        return self.model.parameters()

    def __call__(self, x: Tensor, sigma=None) -> Tensor:
        """f(x), of x's shape (N, C, H, W) or (N, C, D, H, W); sigma as for `LPN.forward`.

        x may lie on another device than the network: tiles go there one by one, and the result lies where x does.
        """
        return self._evaluate(x, sigma, with_value=False)[1]

    def potential_and_prox(self, x: Tensor, sigma=None) -> tuple[Tensor, Tensor]:
        """(psi(x), f(x)), shapes (N,) in float64 and x's. Arguments as for `__call__`."""
        return self._evaluate(x, sigma, with_value=True)

    def prox_and_prior(self, z: Tensor, strength: float | Tensor = 1.0, sigma=None) -> tuple[Tensor, Tensor]:
        """x = f(z) and R(x) = <z, x> - 1/2 |x|^2 - psi(z), shapes z's and (N,) in float64."""
        if strength != 1.0:
            raise ValueError(f"strength must be 1 in tiles, got {strength}: below it every pixel depends on all")
        psi, x = self.potential_and_prox(z, sigma)
        return x, dot(torch.add(z, x, alpha=-0.5), x) - psi

    @torch.no_grad()
    def _evaluate(self, x: Tensor, sigma, with_value: bool) -> tuple[Tensor | None, Tensor]:
        spec = self.model.spec
        if not isinstance(x, Tensor) or x.dim() != 2 + spec.ndim:
            seen = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor (N, {spec.channels}, {', '.join(spec.axes)}), got {seen}")
        if isinstance(sigma, Tensor) and sigma.dim() and sigma.shape not in ((1,), (len(x),)):
            raise ValueError(f"sigma must have shape () or ({len(x)},), got {tuple(sigma.shape)}")
        f = torch.empty_like(x, memory_format=torch.contiguous_format)
        psi = x.new_zeros(len(x), dtype=torch.float64)
        done, tiles = 0, len(x) * math.prod(ceil_div(size, self.side) for size in x.shape[2:])
        for n in range(len(x)):
            level = sigma[n : n + 1] if isinstance(sigma, Tensor) and sigma.dim() and len(sigma) > 1 else sigma
            for region in itertools.product(*(self._regions(size, with_value) for size in x.shape[2:])):
                read = tuple(slice(start, end) for start, end, _ in region)
                part = x[(slice(n, n + 1), slice(None), *read)].to(self.model.stages[0].skip.device)
                owned = [cut for _, _, cut in region]
                if None in owned:  # an overlap along some axis: only its psi is needed
                    psi[n] += (-1) ** owned.count(None) * self.model.potential(part, level)[0].double()
                    continue
                if with_value:
                    value, result = self.model.potential_and_prox(part, level)
                    psi[n] += value[0].double()
                else:
                    result = self.model(part, level)
                inside = tuple(slice(a - start, b - start) for (start, _, _), (a, b) in zip(region, owned, strict=True))
                written = tuple(slice(a, b) for a, b in owned)
                f[(n, slice(None), *written)] = result[(0, slice(None), *inside)].to(f)
                done += 1
                if self.on_share is not None:
                    self.on_share(done / tiles)
        return psi if with_value else None, f

    def _regions(self, length: int, with_overlaps: bool) -> list[tuple[int, int, tuple[int, int] | None]]:
        """(start, end, (first, end) of the pixels it owns) of the tiles along an axis, None for those of overlaps."""
        regions = []
        for cut in range(0, length, self.side):
            end = min(cut + self.side, length)
            regions.append((max(0, cut - self.halo), min(length, end + self.halo), (cut, end)))
            if with_overlaps and cut and self.halo:
                regions.append((max(0, cut - self.halo), min(length, cut + self.halo), None))
        return regions


def _view(spec: Spec) -> tuple[int, int]:
    """(extent, stride): the largest distance of two pixels that one unit sees, and pixels per unit of the last stage.

    Unit j of stage l sees at most the pixels s j + low .. s j + high, its own pixel s j among them.
    """
    if spec.kind == "explicit":
        raise TypeError("InTiles requires a network with f in one pass, got ExplicitLPN, whose prox is a solve: every "
                        "pixel depends on all; its own memory is some twenty images")  # fmt: skip
    if spec.is_dense or spec.image_size is not None:
        what = "a dense one" if spec.is_dense else f"one of {spec.image_size} pixels"
        raise ValueError(f"InTiles requires a convolutional network for images of any size, got {what}")
    extent, stride, low, high = max(0, spec.quadratic_kernel - 1), 1, 0, 0
    for index, stage in enumerate(spec.stages):
        views, strides = [], set()
        if index:
            views.append((low - stride * stage.padding, high + stride * (stage.kernel - 1 - stage.padding)))
            strides.add(stride * stage.stride)
        if stage.skip_kernel:
            last = stage.skip_kernel - 1 - stage.skip_padding
            views.append((-stage.resize * stage.skip_padding, stage.resize * last + stage.resize - 1))
            strides.add(stage.resize * stage.skip_stride)
        if stage.window:  # what it gives depends on how far the border is
            views.append((low - stride * stage.window, high + stride * stage.window))
        if len(strides) > 1:
            raise ValueError(f"stage {index}: the strides of core and skip must agree, got {sorted(strides)} pixels")
        stride = strides.pop()
        low, high = min(0, *(a for a, _ in views)), max(0, *(b for _, b in views))
        extent = max(extent, high - low)
    return extent, stride
