"""The linear maps of a convolutional network on the CPU, each by the kernel that is fastest for its shape.

cores   3 x 3 in float32: minimal filtering (ops/winograd.py) where there are channels enough; else the library's
        convolution, which in bfloat16 runs at the machine's peak
skips   few taps: ops/thin.py, fused with what follows; else the library's convolution
"""

import functools
import importlib

import torch
from torch import Tensor

from ..algebra.parameters import Parameters
from ..algebra.spec import Spec, ceil_div
from . import thin, winograd
from .maps import ConvMaps


class CpuConvMaps(ConvMaps):
    """`ConvMaps` with the package's own kernels; activations in float32 or bfloat16."""

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor, storage: torch.dtype):
        super().__init__(spec, parameters, x, storage)
        workspace = winograd.Workspace()
        isa = importlib.import_module("lpn_fast._cpu").isa()
        self._fast: list[winograd.WinogradCore | None] = []
        self._fast_gradient: list[winograd.WinogradCore | None] = []
        self._thin: list[thin.ThinSkip | None] = []
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
            if thin.supports(stage, spec.channels) and not (spec.square_first and l == 0):
                skip = thin.ThinSkip(weights.skip, stage.skip_stride, stage.skip_padding)
            self._fast.append(maps)
            self._fast_gradient.append(gradient)
            self._thin.append(skip)

    def _skip_form(self, l: int) -> tuple:
        return ("padded", self._thin[l].padding) if self._thin[l] else super()._skip_form(l)

    def _skip_input(self, l: int, image: Tensor) -> Tensor:
        return thin.padded(image, self._thin[l].padding) if self._thin[l] else super()._skip_input(l, image)

    def stage(self, l: int, z: Tensor | None, x_l: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(u, rest) with W_l z + A_l x_l = u + rest; rest may be a ThinProduct, and then u may be None."""
        if self._thin[l] is None:
            return super().stage(l, z, x_l)
        return None if self.cores[l] is None else self._core(l, z), self._thin[l].product(x_l)

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        if self._thin[l] is None:
            return super().skip_gradient(l, pairs)
        first, *others = [self._thin[l].gradient(e, x) for e, x in pairs]
        return sum(others, start=first)

    def _skip_adjoint(self, l: int, e: Tensor) -> tuple[int, Tensor] | None:
        if self._thin[l] is None:
            return super()._skip_adjoint(l, e)
        factor = self.spec.stages[l].resize
        return factor, self._thin[l].adjoint(e, (ceil_div(self.height, factor), ceil_div(self.width, factor)))

    def _core(self, l: int, z: Tensor) -> Tensor:
        return self._fast[l].forward(z) if self._fast[l] else super()._core(l, z)

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        return self._fast[l].adjoint(e) if self._fast[l] else super().core_adjoint(l, e, z)

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        fast = self._fast_gradient[l]
        return fast.gradient(pairs) if fast else super().core_gradient(l, pairs)
