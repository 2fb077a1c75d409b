"""The linear maps of a convolutional network on the CPU, each by the kernel that is fastest for its shape.

cores   3 x 3 in float32: minimal filtering (ops/winograd.py) where there are channels enough; else the library's
        convolution, which in bfloat16 runs at the machine's peak
skips   few taps: ops/narrow.py, fused with what follows; else the library's convolution
"""

import functools
import importlib

import torch
from torch import Tensor

from ....algebra.parameters import Parameters
from ....algebra.spec import Spec
from ...maps import ConvMaps, SkipsAdjoint
from . import narrow, winograd

# W_2^T e_2 is as large as z_1, the largest tensor there is, and when nobody keeps e_1 it is needed for a moment only.
# Images go through that moment in slices of so many bytes, which stay in the last cache.
SLICE_BYTES = 16 << 20


class CpuConvMaps(ConvMaps):
    """`ConvMaps` with the package's own kernels; activations in float32 or bfloat16."""

    epilogues: object  # ops/epilogues.py's steps, for what goes through in slices

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor, storage: torch.dtype):
        super().__init__(spec, parameters, x, storage)
        workspace = winograd.Workspace()
        isa = importlib.import_module("lpn_fast._cpu").isa()
        self._fast: list[winograd.WinogradCore | None] = []
        self._fast_gradient: list[winograd.WinogradCore | None] = []
        self._narrow: list[narrow.NarrowSkip | None] = []
        for l, (stage, weights) in enumerate(zip(spec.stages, parameters.stages, strict=True)):
            maps, gradient, skip = None, None, None
            if l and storage == torch.float32:
                channels = spec.stages[l - 1].width
                fast = functools.partial(
                    winograd.WinogradCore, weights.core, self.sizes[l - 1], self.sizes[l], stage.stride, workspace
                )
                supports = functools.partial(winograd.supports, stage, channels, self.sizes[l], isa)
                maps = fast() if supports() else None
                gradient = (maps or fast()) if supports(gradient=True) else None
            if narrow.supports(stage, spec.channels) and not (spec.square_first and l == 0) and not stage.competing:
                skip = narrow.NarrowSkip(weights.skip, stage.skip_stride, stage.skip_padding)
            self._fast.append(maps)
            self._fast_gradient.append(gradient)
            self._narrow.append(skip)

    def _skip_form(self, l: int) -> tuple:
        return ("padded", self._narrow[l].padding) if self._narrow[l] else super()._skip_form(l)

    def _skip_input(self, l: int, image: Tensor) -> Tensor:
        return narrow.padded(image, self._narrow[l].padding) if self._narrow[l] else super()._skip_input(l, image)

    def stage(self, l: int, z: Tensor | None, x_l: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(u, rest) with W_l z + A_l x_l = u + rest; rest may be a NarrowProduct, and then u may be None."""
        if self._narrow[l] is None:
            return super().stage(l, z, x_l)
        return None if self.cores[l] is None else self._core(l, z), self._narrow[l].product(x_l)

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        if self._narrow[l] is None:
            return super().skip_gradient(l, pairs)
        first, *others = [self._narrow[l].gradient(e, x) for e, x in pairs]
        return sum(others, start=first)

    def _skip_adjoint(self, l: int, e: Tensor) -> tuple[int, Tensor] | None:
        if self._narrow[l] is None:
            return super()._skip_adjoint(l, e)
        factor = self.spec.stages[l].resize
        return factor, self._narrow[l].adjoint(e, self.resized(factor))

    def _core(self, l: int, z: Tensor) -> Tensor:
        return self._fast[l].forward(z) if self._fast[l] else super()._core(l, z)

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> "Tensor | Transposed":
        if self._slice(z) < len(z) and self.projects(l - 1):
            return Transposed(self, l, e)
        return self.product_adjoint(l, e, z)

    def product_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        """W_l^T e, of the shape of z = z_{l-1}, formed at once."""
        return self._fast[l].adjoint(e) if self._fast[l] else super().core_adjoint(l, e, z)

    def projects(self, l: int) -> bool:
        return l == 0 and len(self._narrow) > 1 and self._narrow[0] is not None

    def skips_adjoint(self, x: Tensor) -> "SlicedSkipsAdjoint":
        return SlicedSkipsAdjoint(self, torch.zeros_like(x))

    def _slice(self, z: Tensor) -> int:
        """Images of a slice; few of them, so that small batches stay whole."""
        images = max(1, SLICE_BYTES // max(1, z[0].nbytes)) if len(z) else 1
        return images if len(z) >= 2 * images else max(1, len(z))

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        fast = self._fast_gradient[l]
        return fast.gradient(pairs) if fast else super().core_gradient(l, pairs)


class Transposed:
    """W_2^T e_2 that was not formed yet: the step that uses it forms it, whole or slice by slice."""

    def __init__(self, maps: CpuConvMaps, l: int, e: Tensor):
        self._maps, self._l, self._e = maps, l, e

    def of(self, images: slice, z: Tensor) -> Tensor:
        """The product for some images, of the shape of z, theirs."""
        return self._maps.product_adjoint(self._l, self._e[images], z)


class SlicedSkipsAdjoint(SkipsAdjoint):
    """`SkipsAdjoint` that also takes the first stage as a product, without storing e_1 or delta_1."""

    def __init__(self, maps: CpuConvMaps, total: Tensor):
        super().__init__(maps._skip_adjoint, total)
        self._maps = maps

    def add_product(
        self, l: int, a: Tensor | Transposed, epilogue: str, z: Tensor, head, head_squared, e=None, dz=None
    ):
        """Add stage l, whose e or delta is the step `epilogue` of the product a."""
        maps, beta = self._maps, self._maps.spec.beta
        step = maps._slice(z) if isinstance(a, Transposed) else max(1, len(z))
        parts = []
        for first in range(0, max(1, len(z)), step):
            images = slice(first, first + step)
            product = a.of(images, z[images]) if isinstance(a, Transposed) else a
            if epilogue == "slope":
                result = maps.epilogues.slope_mul(product, z[images], head, head_squared, beta)
            else:
                result = maps.epilogues.adjoint(product, z[images], e[images], dz[images], head_squared, beta)
            factor, image = maps._skip_adjoint(l, result)
            parts.append(image)
        self._add_image(factor, parts[0] if len(parts) == 1 else torch.cat(parts))
