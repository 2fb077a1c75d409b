"""The compiled CPU path (csrc/): the whole dense network per block of rows in cache, and fused epilogues.

    dense   prox, hvp and all gradients in one C++ call each; nothing but x, v and the results touch memory
    conv    the sweeps with the maps of ops/cpu_maps.py and one fused pass per stage and sweep between them

float32; convolutional networks in bfloat16 too, where the CPU multiplies it. Threads come from torch's own pool: the
module borrows it and starts none.
"""

import importlib
import math

import torch
from torch import Tensor

from ....algebra.spec import Spec, ceil_div
from ... import registry
from ...epilogues import KeptAsItIs
from ...packing import parameter_table
from ..torch import SweepsBackend
from . import experts, frame, narrow
from .maps import CpuConvMaps, Transposed

try:
    _cpu = importlib.import_module("lpn_fast._cpu")
except ImportError as error:  # a source tree that was never built, or an unusable binary
    _cpu = None
    _why = f"the compiled module could not be imported ({error}); build it with `pip install .`"

# A dense network's tape. Within the caches reading z and e is cheaper than computing them again, 2F; from memory it
# is not, and large batches shall not need memory for what they do not gain.
TAPE_BYTES = 16 << 20


def register() -> None:
    """Offer this backend, or record why it cannot run."""
    if _cpu is None:
        registry.register_absent("cpu", _why)
    else:
        registry.register(CpuBackend())


class CpuBackend:
    """float32 tensors on the CPU."""

    name = "cpu"

    def __init__(self):
        self._conv = _ConvCpu()

    def supports(self, spec: Spec, x: Tensor, precision: str) -> str | None:
        if x.device.type != "cpu":
            return f"x is on {x.device}, this backend runs on the CPU"
        if spec.ndim == 3:
            return "volumes are not covered"
        if spec.has_contexts and spec.spacing > 1 and not spec.is_mirrored:
            return "contexts of patches with a spacing are covered where the border is mirrored"
        if x.dtype != torch.float32:
            return f"x is {x.dtype}, this backend computes in float32"
        if precision == "bf16" and not spec.is_dense and not spec.has_contexts:
            multiplies = torch.ops.mkldnn._is_mkldnn_bf16_supported()
            return None if multiplies else "precision 'bf16' needs a CPU that multiplies bfloat16 (AVX-512)"
        if precision != "fp32":
            covered = "in contexts" if spec.has_contexts else "for dense networks" if precision == "bf16" else ""
            return f"precision {precision!r} is not covered {covered}".rstrip()
        if spec.is_dense and spec.noise_levels:
            return "dense networks with noise-dependent biases are not covered"
        if spec.is_dense and spec.square_first:
            return "dense networks with a squared first stage are not covered"
        if spec.is_dense and spec.stages[-1].competing:
            return "dense networks whose last units compete are not covered"
        if spec.is_dense and spec.quadratic:
            return "dense networks with a quadratic term are not covered"
        return None

    def in_one_pass(self, spec: Spec, precision: str) -> bool:
        """Whether everything is computed without activations in memory."""
        return spec.is_dense or (precision == "fp32" and (spec.gates_pixels or spec.has_contexts))

    def details(self, spec: Spec, x: Tensor, precision: str) -> list[str]:
        """What is fused; for explain."""
        if spec.has_contexts:
            return ["all stages in two passes"]
        return ["all stages in one pass" if self.in_one_pass(spec, precision) else "stage by stage"]

    def evaluate(self, spec: Spec, x: Tensor, packed: Tensor, features, value: bool, tape: bool, precision):
        if not spec.is_dense:
            if self.in_one_pass(spec, precision):
                return *_patches(spec).value_prox(spec, x, packed, features, value), []
            return self._conv.evaluate(spec, x, packed, features, value, tape, precision)
        x, packed = x.contiguous(), packed.contiguous()
        psi = x.new_empty(x.shape[0]) if value else None
        f = torch.empty_like(x)
        kept = self.dense_tape(spec, x) if tape else []
        _cpu.mlp_value_prox(
            _at(x), _at(packed), *_problem(spec, x), _at(psi), _at(f), _at(*kept or [None]), torch.get_num_threads()
        )
        return psi, f, kept

    def hvp(self, spec: Spec, x: Tensor, packed: Tensor, features, v: Tensor, tape: list[Tensor], precision):
        if not spec.is_dense:
            if self.in_one_pass(spec, precision):
                return _patches(spec).hvp(spec, x, packed, features, v)
            return self._conv.hvp(spec, x, packed, features, v, tape, precision)
        x, packed, v = x.contiguous(), packed.contiguous(), v.contiguous()
        out = torch.empty_like(x)
        own = self._own(spec, x, tape)
        _cpu.mlp_hvp(_at(x), _at(packed), _at(v), *_problem(spec, x), _at(out), own, torch.get_num_threads())
        return out

    def vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor], precision):
        if not spec.is_dense:
            if self.in_one_pass(spec, precision):
                return _patches(spec).vjp(spec, x, packed, features, p, v)
            return self._conv.vjp(spec, x, packed, features, p, v, tape, precision)
        x, packed = x.contiguous(), packed.contiguous()
        p = None if p is None else p.contiguous()
        v = None if v is None else v.contiguous()
        gx, gP = torch.empty_like(x), torch.empty_like(packed)
        _cpu.mlp_vjp(
            _at(x), _at(packed), _at(p), _at(v), *_problem(spec, x), _at(gx), _at(gP), gP.numel(),
            self._own(spec, x, tape), torch.get_num_threads(),
        )  # fmt: skip
        return gx, gP

    def dense_tape(self, spec: Spec, x: Tensor) -> list[Tensor]:
        """Memory for z and e of all units, [2, blocks of rows, units, rows of a block], unless that is too much."""
        shape = _tape_shape(spec, len(x))
        return [x.new_empty(shape)] if 4 * math.prod(shape) <= TAPE_BYTES else []

    @staticmethod
    def _own(spec: Spec, x: Tensor, tape: list[Tensor]) -> int:
        """Address of a tape that `evaluate` made here; 0 for none, and for another backend's."""
        return _at(tape[0]) if len(tape) == 1 and tape[0].shape == _tape_shape(spec, len(x)) else 0


def _patches(spec: Spec):
    """The kernels of networks that read patches."""
    return experts if spec.has_contexts else frame


class FusedEpilogues(KeptAsItIs):
    """ops/epilogues.py's steps, each one pass over memory.

    Tensors are [N, H, h, w], channels-last, float32 or bfloat16; `rest` may be a product that was not formed yet
    (ops/narrow.py), and then u may be None.
    """

    def softplus(self, u: Tensor, rest: Tensor | None, b: Tensor | None, beta: float, storage: torch.dtype) -> Tensor:
        if isinstance(rest, narrow.NarrowProduct):
            return rest.softplus(u, b, beta, storage)
        if u.dtype == torch.float32 != storage:  # a first stage by the library
            return self.softplus(u, rest, b, beta, torch.float32).to(storage)
        rows, channels = _matrix(u)
        b = None if b is None else b.contiguous()
        rows_per_bias = max(1, rows // (1 if b is None else b.shape[0]))  # 1 for an empty batch
        _entry("softplus", u)(
            _at(u), _at(rest), _at(b), rows_per_bias, _at(u), rows, channels, beta, torch.get_num_threads()
        )
        return u

    def slope_mul(self, a: Tensor | None, z: Tensor, w: Tensor | None, g: Tensor | None, beta: float) -> Tensor:
        a = None if a is None else _like(a, z)
        out = torch.empty_like(z) if a is None else a
        rows, channels = _matrix(z)
        _entry("slope_mul", z)(_at(a), _at(z), _at(w), _at(g), _at(out), rows, channels, beta, torch.get_num_threads())
        return out

    def tangent(self, a: Tensor, rest: Tensor | None, z: Tensor, beta: float) -> Tensor:
        if isinstance(rest, narrow.NarrowProduct):
            return rest.tangent(a, z, beta)
        if a.dtype == torch.float32 != z.dtype:
            return self.tangent(a, rest, z.float(), beta).to(z.dtype)
        rows, channels = _matrix(z)
        _entry("tangent", z)(_at(a), _at(rest), _at(z), _at(a), rows, channels, beta, torch.get_num_threads())
        return a

    def adjoint(self, a: Tensor | None, z: Tensor, e: Tensor, dz: Tensor, g: Tensor | None, beta: float) -> Tensor:
        a = None if a is None else _like(a, z)
        out = torch.empty_like(z) if a is None else a
        rows, channels = _matrix(z)
        _entry("adjoint", z)(
            _at(a), _at(z), _at(e), _at(dz), _at(g), _at(out), rows, channels, beta, torch.get_num_threads()
        )
        return out

    def heads(self, z: Tensor, w: Tensor | None, g: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, channels = _matrix(z)
        psi = torch.zeros(len(z), dtype=torch.float64, device="cpu")
        pixels = rows // max(1, len(z))
        _entry("heads", z)(_at(z), _at(w), _at(g), _at(psi), len(z), pixels, channels, torch.get_num_threads())
        return psi.to(dtype)


class _FusedMaps(CpuConvMaps):
    epilogues = FusedEpilogues()


class _ConvCpu(SweepsBackend):
    name = "cpu"
    epilogues = FusedEpilogues()
    maps_for = _FusedMaps


def _tape_shape(spec: Spec, rows: int) -> tuple[int, int, int, int]:
    units = sum(stage.width for stage in spec.stages)
    return 2, ceil_div(rows, _cpu.mlp_block_rows), units, _cpu.mlp_block_rows


def _problem(spec: Spec, x: Tensor) -> tuple:
    """(table, rows, dim, stages, beta, alpha) as every mlp function takes them."""
    return _at(parameter_table(spec)), x.shape[0], spec.channels, len(spec.stages), spec.beta, spec.alpha


def _entry(name: str, z: Tensor):
    """csrc's function of that name for tensors of z's type."""
    return getattr(_cpu, name if z.dtype == torch.float32 else f"{name}_bfloat16")


def _at(t: Tensor | None) -> int:
    """Address of a tensor's first element; 0 for None."""
    return 0 if t is None else t.data_ptr()


def _matrix(t: Tensor) -> tuple[int, int]:
    """(pixels, channels) of a channels-last tensor [N, H, h, w]."""
    return t.shape[0] * t.shape[2] * t.shape[3], t.shape[1]


def _like(t: Tensor | Transposed, z: Tensor) -> Tensor:
    t = t.of(slice(None), z) if isinstance(t, Transposed) else t
    return t if t.stride() == z.stride() else t.contiguous(memory_format=torch.channels_last)
