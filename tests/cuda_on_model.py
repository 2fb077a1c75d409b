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

    def __init__(self, module, table, dim, stages, parameter_count, beta, alpha):
        self.module = module
        size = 6 * stages + 2
        self.table = (ctypes.c_int64 * size).from_buffer_copy(ctypes.string_at(table, 8 * size))
        self.numbers = [ctypes.c_int64(n) for n in (dim, stages, parameter_count)]
        self.curve = [ctypes.c_double(beta), ctypes.c_double(alpha)]

    def plan(self, operation, precision, rows, limits):
        values = (ctypes.c_int64 * 12)()
        status = self.module.library.model_plan(
            self.table, *self.numbers, cuda_model.PRECISIONS.index(precision), cuda_model.OPERATIONS.index(operation),
            ctypes.c_int64(rows), (ctypes.c_int64 * 3)(*limits), values,
        )  # fmt: skip
        if status:  # pybind turns std::invalid_argument into ValueError
            raise ValueError(self.module.library.model_error().decode())
        names = ("packed_bytes", "partial_bytes", "spilled_bytes")
        return type("Plan", (), dict(zip(names, values[9:], strict=True)))

    def run(self, operation, precision, plan, P, packed, partial, spilled, x, v, p, psi, f, hv, gradient, *rest):
        rows, _device, _stream = rest
        self.module.launches.append(operation)
        self._check(
            self.module.library.model_run(
                self.table, *self.numbers, *self.curve, cuda_model.PRECISIONS.index(precision),
                cuda_model.OPERATIONS.index(operation), (ctypes.c_int64 * 3)(*self.module.limits), 0,
                *map(ctypes.c_void_p, (P, x, v, p, psi, f, hv, gradient)), ctypes.c_int64(rows),
            )
        )  # fmt: skip

    def solve(self, plan, P, packed, spilled, *rest):
        *pointers, rows, tol, radius, max_iter, _device, _stream = rest
        self.module.launches.append("solve")
        self._check(
            self.module.library.model_solve(
                self.table, *self.numbers, *self.curve, (ctypes.c_int64 * 3)(*self.module.limits), 0,
                *map(ctypes.c_void_p, (P, *pointers)), ctypes.c_int64(rows), ctypes.c_double(tol),
                ctypes.c_double(radius), ctypes.c_int64(max_iter),
            )
        )  # fmt: skip

    def _check(self, status):
        if status:
            raise RuntimeError(self.module.library.model_error().decode())


class BackendOnModel(CudaBackend):
    """Takes CPU tensors for those of a device."""

    def supports(self, spec, x: Tensor, precision: str) -> str | None:
        return super().supports(spec, _Elsewhere(x), precision)

    def _where(self, x: Tensor) -> tuple[int, int]:
        return 0, 0

    def _limits(self, device: int):
        return self._module.limits


class _Elsewhere:
    """A tensor's dtype, on a CUDA device."""

    def __init__(self, x: Tensor):
        self.dtype = x.dtype
        self.device = type("device", (), {"type": "cuda", "index": 0})
