"""The analytic plain path: the sweeps with ATen's linear maps and torch epilogues. Runs everything."""

import contextlib

import torch
from torch import Tensor

from ...algebra.spec import Spec
from ..epilogues import TorchEpilogues
from ..maps import maps_for
from ..precision import storage
from ..sweeps import Sweeps, Tape
from . import experts, pointwise
from .cpu import frame


class SweepsBackend:
    """The primitives by sweeps over ATen's linear maps; subclasses choose the epilogues and what they support."""

    name: str
    epilogues = TorchEpilogues()
    maps_for = staticmethod(maps_for)

    def evaluate(self, spec, x: Tensor, packed: Tensor, features: Tensor | None, value: bool, tape: bool, precision):
        keep = tape and not spec.is_dense
        with products(x, precision):
            psi, f, kept = self._sweeps(spec, x, packed, features, precision).value_prox(value, keep)
        return psi, f.contiguous(), kept.flatten() if keep else []

    def hvp(self, spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor, tape: list[Tensor], precision):
        with products(x, precision):
            sweeps = self._sweeps(spec, x, packed, features, precision)
            return sweeps.hvp(self._tape(sweeps, tape), v).contiguous()

    def vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor], precision):
        with products(x, precision):
            sweeps = self._sweeps(spec, x, packed, features, precision)
            gx, gradient = sweeps.vjp(self._tape(sweeps, tape), p, v)
        return gx.contiguous(), gradient

    def dense_tape(self, spec: Spec, x: Tensor) -> list[Tensor]:
        return []

    def _sweeps(self, spec: Spec, x, packed, features, precision: str) -> Sweeps:
        return Sweeps(spec, x, packed, features, self.epilogues, storage(spec, precision, x.dtype), self.maps_for)

    @staticmethod
    def _tape(sweeps: Sweeps, tape: list[Tensor]) -> Tape:
        return Tape.unflatten(tape) if tape and not sweeps.spec.is_dense else sweeps.tape()


class TorchBackend(SweepsBackend):
    """Any device, float32 and float64; the named precisions of float32 tensors where the device has them."""

    name = "torch"

    def evaluate(self, spec, x: Tensor, packed: Tensor, features: Tensor | None, value: bool, tape: bool, precision):
        if not spec.has_contexts and (tape or not frame.supports(spec)):
            return super().evaluate(spec, x, packed, features, value, tape, precision)
        form = experts if spec.has_contexts else pointwise
        with _unrounded(x, precision):
            return *form.value_prox(spec, x, packed, features, value), []

    def hvp(self, spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor, tape: list[Tensor], precision):
        if not spec.has_contexts:
            return super().hvp(spec, x, packed, features, v, tape, precision)
        with _unrounded(x, precision):
            return experts.hvp(spec, x, packed, features, v)

    def vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor], precision):
        if not spec.has_contexts:
            return super().vjp(spec, x, packed, features, p, v, tape, precision)
        with _unrounded(x, precision):
            return experts.vjp(spec, x, packed, features, p, v)

    def supports(self, spec: Spec, x: Tensor, precision: str) -> str | None:
        if precision != "fp32" and x.dtype != torch.float32:
            return f"precision {precision!r} is one of float32 tensors, x is {x.dtype}"
        if precision == "tf32" and x.device.type != "cuda":
            return f"TF32 products are a GPU's, x is on {x.device}"
        return None


def _unrounded(x: Tensor, precision: str):
    """Products where nothing is stored in 16 bits: TF32's where those are named."""
    return products(x, "fp32" if precision == "fp32" else "tf32")


@contextlib.contextmanager
def products(x: Tensor, precision: str):
    """TF32 where it was named and nowhere else (torch allows it in convolutions by default); sums in float32.

    By `fp32_precision` alone: to read `allow_tf32` after somebody set the former is an error, and to set it undoes
    what `set_float32_matmul_precision` said.
    """
    if x.device.type != "cuda":
        yield
        return
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    named = "tf32" if precision == "tf32" else "ieee"
    settings = (
        (matmul, "fp32_precision", named),
        (convolution, "fp32_precision", named),
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_bf16_reduced_precision_reduction", False),
    )
    before = [getattr(owner, name) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)
