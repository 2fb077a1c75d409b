"""The linear maps of a convolutional network on the CPU: cores by minimal filtering where that is faster."""

from torch import Tensor

from ..algebra.parameters import Parameters
from ..algebra.spec import Spec
from . import winograd
from .maps import ConvMaps


class CpuConvMaps(ConvMaps):
    """`ConvMaps` whose 3 x 3 cores of many channels run through ops/winograd.py; float32."""

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor, storage):
        super().__init__(spec, parameters, x, storage)
        workspace = winograd.Workspace()
        self._fast: list[winograd.WinogradCore | None] = [None]
        for l in range(1, len(spec.stages)):
            stage = spec.stages[l]
            fast = None
            if winograd.supports(stage, spec.stages[l - 1].width):
                core = parameters.stages[l].core
                fast = winograd.WinogradCore(core, self.sizes[l - 1], self.sizes[l], stage.stride, workspace)
            self._fast.append(fast)

    def _core(self, l: int, z: Tensor) -> Tensor:
        return self._fast[l].forward(z) if self._fast[l] else super()._core(l, z)

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        return self._fast[l].adjoint(e) if self._fast[l] else super().core_adjoint(l, e, z)

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        return self._fast[l].gradient(pairs) if self._fast[l] else super().core_gradient(l, pairs)
