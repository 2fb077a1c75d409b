"""The analytic plain path: the sweeps with ATen's linear maps and torch epilogues. Runs everything."""

from torch import Tensor

from ...algebra.spec import Spec
from ..epilogues import TorchEpilogues
from ..sweeps import Sweeps, Tape


class SweepsBackend:
    """The primitives by sweeps over ATen's linear maps; subclasses choose the epilogues and what they support."""

    name: str
    epilogues = TorchEpilogues()

    def evaluate(self, spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, value: bool, tape: bool):
        psi, f, kept = self._sweeps(spec, x, packed, features).value_prox(value)
        return psi, f.contiguous(), kept.flatten() if tape else []

    def hvp(self, spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor, tape: list[Tensor]):
        sweeps = self._sweeps(spec, x, packed, features)
        return sweeps.hvp(self._tape(sweeps, tape), v).contiguous()

    def vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor]):
        sweeps = self._sweeps(spec, x, packed, features)
        gx, gradient = sweeps.vjp(self._tape(sweeps, tape), p, v)
        return gx.contiguous(), gradient

    def _sweeps(self, spec, x, packed, features) -> Sweeps:
        return Sweeps(spec, x, packed, features, self.epilogues)

    @staticmethod
    def _tape(sweeps: Sweeps, tape: list[Tensor]) -> Tape:
        return Tape.unflatten(tape) if tape else sweeps.tape()


class TorchBackend(SweepsBackend):
    """Any device, float32 and float64."""

    name = "torch"

    def supports(self, spec: Spec, x: Tensor) -> str | None:
        return None
