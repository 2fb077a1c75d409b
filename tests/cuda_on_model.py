"""The CUDA backend with its compiled module replaced by the model of the machine: the whole path on the CPU."""

import ctypes

import cuda_model
from torch import Tensor

from lpn_fast.ops.backends.cuda import CudaBackend


class ModelModule:
    """What lpn_fast._cuda offers, carried out by kernels/cuda/model."""

    def __init__(self, library: ctypes.CDLL, limits: tuple[int, int, int] = cuda_model.SMALL):
        self.library, self.limits = library, limits
        self.launches: list[str] = []

    def MlpNetwork(self, table, dim, stages, parameter_count, beta, alpha):
        return ModelNetwork(self, table, dim, stages, parameter_count, beta, alpha)


class ModelNetwork:
    """As pybind's class of that name; pointers are addresses."""

    def __init__(self, module, table, *sizes):
        self.module, entries = module, 6 * sizes[1] + 2
        self.table = (ctypes.c_int64 * entries).from_buffer_copy(ctypes.string_at(table, 8 * entries))
        self.network = cuda_model.Network(module.library, self.table, *sizes)

    def plan(self, operation, precision, rows, limits):
        found = self.network.plan(operation, precision, rows, limits)
        sizes = {f"{name}_bytes": found[name] for name in ("packed", "partial")}
        return type("Plan", (), sizes | {"spilled_bytes": found["spilled_bytes"]})

    def run(self, operation, precision, plan, P, packed, partial, spilled, x, v, p, psi, f, hv, gradient, *rest):
        rows, _device, _stream = rest
        self.module.launches.append(operation)
        pointers = map(ctypes.c_void_p, (P, x, v, p, psi, f, hv, gradient))
        self.network.run(operation, precision, self.module.limits, False, pointers, rows)

    def solve(self, plan, P, packed, spilled, *rest):
        *pointers, rows, tol, radius, max_iter, _device, _stream = rest
        self.module.launches.append("solve")
        pointers = map(ctypes.c_void_p, (P, *pointers))
        self.network.solve(self.module.limits, False, pointers, rows, tol, radius, max_iter)


class BackendOnModel(CudaBackend):
    """Takes CPU tensors for those of a device."""

    def supports(self, spec, x: Tensor, precision: str) -> str | None:
        return super().supports(spec, _Elsewhere(x), precision)

    def _where(self, x: Tensor) -> tuple[int, int]:
        return 0, 0

    def _limits(self, device: int, precision: str):
        return self._module.limits


class _Elsewhere:
    """A tensor's dtype, on a CUDA device."""

    def __init__(self, x: Tensor):
        self.dtype = x.dtype
        self.device = type("device", (), {"type": "cuda", "index": 0})
