"""Which calls the Triton kernels take, and how they run: TritonBackend."""

import functools
import importlib.util
from contextlib import AbstractContextManager

from torch import Tensor

from ....algebra.spec import Spec
from ... import registry
from ...precision import storage
from ...sweeps import Sweeps
from ..torch import SweepsBackend, TorchBackend
from . import device, fused
from .choice import choice
from .epilogues import TritonEpilogues, TritonSquareEpilogues
from .layouts import power_of_two
from .maps import TritonMaps


def register() -> None:
    """Offer this backend, or record why it cannot run. Triton itself is imported at the first call."""
    if importlib.util.find_spec("triton") is None:
        registry.register_absent("triton", "Triton is not installed; torch brings it on Linux with CUDA")
    else:
        registry.register(TritonBackend(), to_be_admitted=True)


class TritonBackend(SweepsBackend):
    """Convolutional networks on CUDA tensors; on CPU tensors under Triton's interpreter (TRITON_INTERPRET=1)."""

    name = "triton"
    _plain = TorchBackend()  # for gradients of the weights of wide mixtures, or mirrored frames, in float32

    def supports(self, spec: Spec, x: Tensor, precision: str) -> str | None:
        if spec.is_dense:
            return "dense networks are not covered, these kernels are convolutions"
        if spec.ndim == 3:
            return "volumes are not covered"
        if spec.has_contexts:
            return "experts that compete in contexts are not covered"
        if (spec.stages[-1].competing or spec.is_mirrored) and not fused.covers(spec):
            which = "with border 'mirror'" if spec.is_mirrored else "whose last units compete"
            most = f"up to {fused.MOST_UNITS} filters of side {fused.MOST_SIDE}"
            return f"of networks {which} only frames of {most} under one stage of gates are covered"
        return device.refusal(x, precision)

    def evaluate(self, spec, x: Tensor, packed: Tensor, features, value: bool, tape: bool, precision: str):
        if fused.covers(spec) and not (tape and not fused.covers_gradients(spec, precision)):
            return *fused.value_prox(spec, x, packed, features, value, precision), []
        if self._has_no_stages(spec):
            return self._plain.evaluate(spec, x, packed, features, value, tape, precision)
        return super().evaluate(spec, x, packed, features, value, tape, precision)

    def alternatives(self) -> dict[str, AbstractContextManager]:
        """Other ways to launch the same kernels, for checks on a device."""
        return {"with pointers in the place of the copy engine": device.without_tma()}

    def must_be_checked(self, x: Tensor) -> bool:
        """Whether not even who asks for this backend by name gets it without a check on the device."""
        return device.is_unproven(x)

    def vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor], precision):
        if self._has_no_stages(spec) and not fused.covers_gradients(spec, precision):
            return self._plain.vjp(spec, x, packed, features, p, v, tape, precision)
        if precision != "fp16":
            return self._vjp(spec, x, packed, features, p, v, tape, precision)
        # Cotangents of a mean are tiny and the result is linear in them: bring the largest to [1, 2), exactly.
        scale = power_of_two([t for t in (p, v) if t is not None])
        p, v = (None if t is None else t * scale for t in (p, v))
        gx, gradient = self._vjp(spec, x, packed, features, p, v, tape, precision)
        return gx.div_(scale), gradient.div_(scale)

    def _vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor], precision):
        if fused.covers_gradients(spec, precision):
            return fused.vjp(spec, x, packed, features, p, v, precision)
        return super().vjp(spec, x, packed, features, p, v, tape, precision)

    def hvp(self, spec, x, packed, features, v: Tensor, tape: list[Tensor], precision):
        if precision != "fp16":
            return self._hvp(spec, x, packed, features, v, tape, precision)
        scale = power_of_two([v])
        return self._hvp(spec, x, packed, features, v * scale, tape, precision).div_(scale)

    def _hvp(self, spec, x, packed, features, v: Tensor, tape: list[Tensor], precision):
        if fused.covers(spec):  # to read a tape would take longer than to compute it again
            return fused.hvp(spec, x, packed, features, v, precision)
        return super().hvp(spec, x, packed, features, v, tape, precision)

    def details(self, spec: Spec, x: Tensor, precision: str) -> list[str]:
        """Who computes the products of each stage, and why; for explain."""
        sizes, lines = spec.stage_sizes(*x.shape[2:]), []
        if fused.covers(spec):
            lines.append("prox, potential, Hessian products: all stages in one kernel")
        if fused.covers_gradients(spec, precision):
            return [*lines, "gradients of the weights: those of gates in one kernel, of filters from two factors"]
        if self._has_no_stages(spec):
            return [*lines, "gradients of the weights, and what they need kept: torch's operations"]
        for l in range(1, len(spec.stages)):
            chosen = {}
            for what, role in (("forward", "forward"), ("back", "transposed"), ("second order", "adjoint")):
                library, why = choice(spec, l, sizes, x, precision, role)
                chosen.setdefault(f"{'library' if library else 'ours'}, {why}", []).append(what)
            lines.append(f"stage {l}: " + "; ".join(f"{', '.join(names)}: {who}" for who, names in chosen.items()))
        return lines

    @staticmethod
    def _has_no_stages(spec: Spec) -> bool:
        """Whether stages, one by one, are not these kernels'."""
        return spec.stages[-1].competing or spec.is_mirrored

    def _sweeps(self, spec: Spec, x, packed, features, precision: str) -> Sweeps:
        maps_for = functools.partial(TritonMaps, precision=precision)
        sweeps = Sweeps(spec, x, packed, features, TritonEpilogues(), storage(spec, precision, x.dtype), maps_for)
        last = len(spec.stages) - 1
        sweeps.epilogues = [TritonEpilogues(sweeps.maps.head_unit(last))] * len(spec.stages)
        if spec.square_first:
            sweeps.epilogues[0] = TritonSquareEpilogues(sweeps.maps.head_unit(last))
        return sweeps
