"""Dense networks on NVIDIA GPUs (kernels/cuda): a whole call in one kernel, weights in shared memory.

    evaluate, hvp, vjp   packing, one launch, and for vjp the ordered sum of the blocks' gradients
    solve                t u + (1 - t) f(u) = z for all rows, each with its verdict, in one launch

float32 tensors; products run on the tensor cores in the named precision, "fp32" as three TF32 products whose sum
has float32's accuracy. Outputs and workspaces are torch's, on the current stream; nothing waits for the device, and
kernels of a precision are loaded when a device is first asked about it, so even a first call can be captured into a
CUDA graph.
"""

import functools
import importlib

import torch
from torch import Tensor

from ...algebra.parameters import parameter_count
from ...algebra.spec import Spec
from .. import registry
from ..packing import parameter_table

NEWTON_STEPS = 100  # the solver's limit where the caller names no limit


def register() -> None:
    """Offer this backend, or record why it cannot run."""
    try:
        module = importlib.import_module("lpn_fast._cuda")
    except ImportError as error:
        registry.register_absent("cuda", f"the compiled CUDA module could not be imported ({error})")
    else:
        registry.register(CudaBackend(module), to_be_admitted=True)


class CudaBackend:
    """float32 tensors on CUDA devices of compute capability 8.0 or newer."""

    name = "cuda"

    def __init__(self, module):
        self._module = module  # lpn_fast._cuda
        # functools.cache on methods would keep the class's instances alive; these belong to one
        self._network = functools.cache(self._network)
        self._fit: set[tuple[Spec, str, int]] = set()  # what `_unfit` had nothing against; a failure may pass
        self._plan = functools.lru_cache(maxsize=1024)(self._plan)
        self._limits = functools.cache(self._limits)

    def supports(self, spec: Spec, x: Tensor, precision: str) -> str | None:
        if x.device.type != "cuda":
            return f"x is on {x.device}, this backend runs on CUDA devices"
        if x.dtype != torch.float32:
            return f"x is {x.dtype}, this backend takes float32"
        if not spec.is_dense:
            return "volumes are not covered" if spec.ndim == 3 else "convolutional networks are not covered"
        if spec.noise_levels:
            return "dense networks with noise-dependent biases are not covered"
        if spec.quadratic:
            return "dense networks with a quadratic term are not covered"
        if spec.square_first:
            return "dense networks with a squared first stage are not covered"
        if spec.stages[-1].competing:
            return "dense networks whose last units compete are not covered"
        return self._unfit(spec, precision, x.device.index or 0)

    def evaluate(self, spec, x: Tensor, packed: Tensor, features, value: bool, tape: bool, precision: str):
        x = x.contiguous()
        psi = x.new_empty(x.shape[0]) if value else None
        f = torch.empty_like(x)
        self._run("prox", spec, precision, packed, x, psi=psi, f=f)
        return psi, f, []

    def hvp(self, spec, x: Tensor, packed: Tensor, features, v: Tensor, tape: list[Tensor], precision: str) -> Tensor:
        return self.prox_hvp(spec, x, packed, v, precision, f=False)[1]

    def prox_hvp(self, spec: Spec, x: Tensor, packed: Tensor, v: Tensor, precision: str, f: bool = True):
        """(f(x) or None, H(x) v) in one launch."""
        x, v = x.contiguous(), v.contiguous()
        image, hv = torch.empty_like(x) if f else None, torch.empty_like(x)
        self._run("hvp", spec, precision, packed, x, v=v, f=image, hv=hv)
        return image, hv

    def vjp(self, spec, x: Tensor, packed: Tensor, features, p, v, tape: list[Tensor], precision: str):
        x = x.contiguous()
        p = None if p is None else p.contiguous()
        v = None if v is None else v.contiguous()
        gx, gP = torch.empty_like(x), torch.empty_like(packed, memory_format=torch.contiguous_format)
        if len(x) == 0:
            return gx, gP.zero_()
        self._run("vjp", spec, precision, packed, x, v=v, p=p, hv=gx, gradient=gP)
        return gx, gP

    def dense_tape(self, spec: Spec, x: Tensor) -> list[Tensor]:
        return []

    def has_room_to_solve(self, spec: Spec, z: Tensor) -> bool:
        """Whether what the solver keeps of a row fits the device's shared memory."""
        try:
            self._plan(spec, "solve", "fp32", 1, z.device.index or 0)
        except (RuntimeError, ValueError):
            return False
        return True

    def solve(
        self,
        spec: Spec,
        packed: Tensor,  # (P,)
        z: Tensor,  # (N, d)
        start: Tensor,  # (N, d)
        strength: Tensor,  # (N,) t in [0, 1]
        *,
        tol: float,
        max_iter: int | None,
        radius: float | None,
    ) -> dict[str, Tensor]:
        """t u + (1 - t) f(u) = z by truncated Newton steps in one launch; fields of an EquationSolution."""
        packed, z, start, strength = (t.contiguous() for t in (packed, z, start, strength))
        rows = len(z)
        u, f, psi = torch.empty_like(z), torch.empty_like(z), z.new_empty(rows)
        residual = z.new_empty(rows, dtype=torch.float64)
        iterations, verdict = z.new_empty((2, rows), dtype=torch.int64)
        outputs = {
            "u": u, "f": f, "psi": psi, "residual": residual, "iterations": iterations, "verdict": verdict
        }  # fmt: skip
        if rows:
            plan = self._plan(spec, "solve", "fp32", rows, z.device.index or 0)
            workspaces = _bytes(z, plan.packed_bytes, plan.spilled_bytes)
            self._network(spec).solve(
                plan, *map(_at, (packed, *workspaces, z, start, strength, *outputs.values())), rows, tol,
                float("inf") if radius is None else radius, NEWTON_STEPS if max_iter is None else max_iter,
                *self._where(z),
            )  # fmt: skip
        return outputs

    def _run(self, operation, spec, precision, packed, x, v=None, p=None, psi=None, f=None, hv=None, gradient=None):
        rows = x.shape[0]
        if rows == 0:
            return
        packed = packed.contiguous()
        plan = self._plan(spec, operation, precision, rows, x.device.index or 0)
        workspaces = _bytes(x, plan.packed_bytes, plan.partial_bytes, plan.spilled_bytes)
        self._network(spec).run(
            operation, precision, plan, *map(_at, (packed, *workspaces, x, v, p, psi, f, hv, gradient)), rows,
            *self._where(x),
        )  # fmt: skip

    def _where(self, x: Tensor) -> tuple[int, int]:
        """(device index, address of the current stream)"""
        return x.device.index or 0, torch.cuda.current_stream(x.device).cuda_stream

    def _limits(self, device: int, precision: str):
        """What the planner has to know of a device, once the kernels of a precision were given their shared memory."""
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            raise RuntimeError(f"compute capability 8.0 is needed, this device has {capability[0]}.{capability[1]}")
        self._module.mlp_prepare(device, precision)
        return self._module.mlp_limits(device)

    def _network(self, spec: Spec):
        table = parameter_table(spec)
        return self._module.MlpNetwork(
            _at(table), spec.channels, len(spec.stages), parameter_count(spec), spec.beta, spec.alpha
        )

    def _plan(self, spec: Spec, operation: str, precision: str, rows: int, device: int):
        limits = self._limits(device, precision)
        return self._network(spec).plan(operation, precision, rows, limits)

    def _unfit(self, spec: Spec, precision: str, device: int) -> str | None:
        """Why some operation of the network cannot run on a device at all."""
        if (spec, precision, device) in self._fit:
            return None
        try:
            for operation in ("prox", "hvp", "vjp"):
                self._plan(spec, operation, precision, 1, device)
        except (RuntimeError, ValueError) as error:  # ValueError: std::invalid_argument of the planner
            return str(error)
        self._fit.add((spec, precision, device))
        return None


def _bytes(like: Tensor, *sizes: int) -> tuple[Tensor | None, ...]:
    """Workspaces on the device and the current stream; None for no bytes. Fresh ones every time: streams differ."""
    return tuple(torch.empty(size, dtype=torch.uint8, device=like.device) if size else None for size in sizes)


def _at(t: Tensor | None) -> int:
    """Address of a tensor's first element; 0 for None."""
    return 0 if t is None else t.data_ptr()
