"""The sweeps that compute psi, f = grad psi, Hessian products and gradients without an autograd graph.

    value     u_l = W_l z_{l-1} + A_l x_l + b_l,   z_l = softplus_beta(u_l),   x_l = D_l x
    prox      e_l = s_l (W_{l+1}^T e_{l+1} + w_l + 2 g_l z_l);   f = sum_l D_l^T A_l^T e_l + c + K^T K x + alpha x
    tangent   dz_l = s_l (W_l dz_{l-1} + A_l D_l v)
    adjoint   delta_l = s_l (W_{l+1}^T delta_{l+1} + 2 g_l dz_l) + e_l dz_l q_l;   H v as f, with delta, v for e, x
    grads of sum_batch p psi + <v, f>, with d_l = delta_l + p e_l:
              dW_l = e_l (x) dz_{l-1} + d_l (x) z_{l-1},   dA_l = e_l (x) D_l v + d_l (x) x_l,   db_l = sum d_l
              dw_l = sum dz_l + p z_l,   dg_l = sum 2 z_l dz_l + p z_l^2,   dK = K v (x) x + K x (x) v + p K x (x) x
              dc = sum v + p x,   dc0 = sum p;       the gradient in x is H v + p f

e_l = d psi / d u_l, dz_l the derivative of z_l along v, delta_l the derivative of e_l along v. One forward
and one transposed sweep give f; one tangent and one adjoint sweep more give H v, which is symmetric, so
that the vjp, the jvp and the hvp of f are one operation. A first stage z = u^2 has s = 2 u, which z does not tell:
it keeps u, e_1/u and du in the places of z, e and dz; its epilogues (ops/epilogues.py) turn them back, as those of
a last stage whose units compete do. With a mirrored border the pixels of z count in psi with weights w_p: heads are
w_p w_l there, which e, delta and the gradients of all but the heads carry by themselves. Only z, e and dz
are ever stored, and e only where a second-order sweep will need it: A_l^T e_l is added up on the way down. With F the
operations of the value sweep: prox 2F, H v 2F with (z, e) at hand, all gradients 6F.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.parameters import Slot, layout, parameter_count, unpack
from ..algebra.spec import Spec
from .epilogues import (
    CompetingEpilogues,
    SquareEpilogues,
    WeightedEpilogues,
    formed,
    per_channel,
    pixel_sum,
    squared,
)
from .maps import maps_for


@dataclass
class Tape:
    """What the forward and the transposed sweep leave behind, stage by stage."""

    z: list[Tensor]  # [N, H_l(, h, w)]; of a squared first stage u
    e: list[Tensor]  # as z; of a squared first stage e / u

    def flatten(self) -> list[Tensor]:
        """z_1..z_L, e_1..e_L, as the operators pass it."""
        return [*self.z, *self.e]

    @staticmethod
    def unflatten(tensors: list[Tensor]) -> "Tape":
        half = len(tensors) // 2
        return Tape(list(tensors[:half]), list(tensors[half:]))


class Sweeps:
    """One network at one input: x (N, C), (N, C, H, W) or (N, C, D, H, W), P (P,), noise features (N, F) or None.

    z, e, dz, delta and the cores W_l are held in `storage`; everything else, and all sums over pixels, in
    x's type. `maps_for` gives the linear maps of (spec, parameters, x, storage).
    """

    def __init__(
        self,
        spec: Spec,
        x: Tensor,
        packed: Tensor,
        features: Tensor | None,
        epilogues,
        storage: torch.dtype,
        maps_for=maps_for,
    ):
        self.spec = spec
        self.x = x
        self.features = features
        self.weights = unpack(spec, packed)
        self.stages = self.weights.stages
        self.maps = maps_for(spec, self.weights, x, storage)
        self.epilogues = [epilogues] * len(spec.stages)
        if spec.square_first:
            self.epilogues[0] = SquareEpilogues()
        if spec.stages[-1].competing:
            self.epilogues[-1] = CompetingEpilogues(spec.beta)
        self.pixel_weights = self.maps.mirrored.weights if spec.is_mirrored else None  # w_p, [h, w]
        if self.pixel_weights is not None:
            self.epilogues = [WeightedEpilogues(each, self.pixel_weights) for each in self.epilogues]
        self.x_l = self.maps.skip_inputs(x)

    def value_prox(self, with_value: bool, keep: bool) -> tuple[Tensor | None, Tensor, Tape | None]:
        """(psi (N,) or None, f like x, tape if it is to be kept)."""
        z, self.x_l = self._forward(), None  # patches are as large as half a stage, and nobody reads them again
        psi = self._psi(z) if with_value else None
        total = self.maps.skips_adjoint(self.x)
        e = self._transposed(z, total, keep)
        f = self._assemble(total.result(), self.x)
        if self.weights.linear is not None:
            f = f.add_(per_channel(self.weights.linear, f))
        return psi, f, Tape(z, e) if keep else None

    def tape(self) -> Tape:
        """The forward and the transposed sweep."""
        z = self._forward()
        return Tape(z, self._transposed(z, None, keep=True))

    def hvp(self, tape: Tape, v: Tensor) -> Tensor:
        """H v, of x's shape."""
        dz = self._tangent(tape, self.maps.skip_inputs(v))
        total, a = self.maps.skips_adjoint(self.x), None
        for l in reversed(range(len(self.stages))):
            if a is not None and self.maps.projects(l):
                w = self.stages[l]
                total.add_product(l, a, "adjoint", tape.z[l], None, w.head_squared, e=tape.e[l], dz=dz[l])
                continue
            delta = self._adjoint(l, a, tape, dz)
            total.add(l, delta)
            a = self.maps.core_adjoint(l, delta, tape.z[l - 1]) if l else None
            dz[l] = None  # not needed any more: its memory is
        return self._assemble(total.result(), v)

    def vjp(self, tape: Tape, p: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """(gradient in x, gradient in P) of sum (p psi + <v, f>); p (N,), v like x, either may be None.

        The gradient in x, H v + p f, is the assembly of delta_l + p e_l: one pass over the skips for both.
        """
        v_l = None if v is None else self.maps.skip_inputs(v)
        dz = None if v is None else self._tangent(tape, v_l)
        gradient = self.x.new_zeros(parameter_count(self.spec))
        slots: list[list[Slot]] = [[] for _ in self.stages]
        for slot in layout(self.spec):
            *prefix, name = slot.name.split(".")
            if prefix:
                slots[int(prefix[1])].append(slot)
            else:
                gradient[slot.offset : slot.end] = self._outer_gradient(name, p, v).reshape(-1)
        sum_l, a = self.maps.skips_adjoint(self.x), None
        for l in reversed(range(len(self.stages))):
            total = None
            if v is not None:
                total = self._adjoint(l, a, tape, dz)
                a = self.maps.core_adjoint(l, total, tape.z[l - 1]) if l else None
            if p is not None:
                e = formed(self._e(l, tape))
                scaled = e * _per_sample(p.to(e.dtype), e)
                total = scaled if total is None else scaled.add_(total)  # a may still refer to the old total
            sum_l.add(l, total)
            for slot in slots[l]:
                part = self._stage_gradient(l, slot.name.split(".")[-1], tape, p, v_l, dz, total)
                gradient[slot.offset : slot.end] = part.reshape(-1)
            if dz is not None:
                dz[l] = None
        direction = sum(t for t in (v, None if p is None else _per_sample(p, self.x) * self.x) if t is not None)
        gx = self._assemble(sum_l.result(), direction)
        if p is not None and self.weights.linear is not None:
            gx = gx.add_(_per_sample(p, gx) * per_channel(self.weights.linear, gx))
        return gx, gradient

    def _forward(self) -> list[Tensor]:
        z: list[Tensor] = []
        for l in range(len(self.stages)):
            u, rest = self.maps.stage(l, self.epilogues[l - 1].z_of(z[-1]) if l else None, self.x_l[l])
            z.append(self.epilogues[l].softplus(u, rest, self._bias(l), self.spec.beta, self.maps.storage))
        return z

    def _bias(self, l: int) -> Tensor | None:
        """b_l + B_l phi(sigma): [1, H_l], or [N, H_l] where the noise level decides."""
        w = self.stages[l]
        bias = None if w.bias is None else w.bias[None]
        if w.noise is None:
            return bias
        conditional = self.features @ w.noise.T
        return conditional if bias is None else conditional + bias

    def _transposed(self, z: list[Tensor], total, keep: bool) -> list[Tensor | None]:
        """All e_l if they are to be kept; A_l^T e_l goes to `total` where there is one. Else z is used up."""
        kept: list[Tensor | None] = [None] * len(z)
        a = None
        for l in reversed(range(len(z))):
            w = self.stages[l]
            if not keep and total is not None and a is not None and self.maps.projects(l):
                total.add_product(l, a, "slope", z[l], w.head, w.head_squared)  # nothing else needs this e
                z[l] = None
                a = None
                continue
            if a is None and w.head is None and w.head_squared is None:
                e = torch.zeros_like(z[l])  # a stage that psi does not reach
            else:
                e = self.epilogues[l].slope_mul(a, z[l], w.head, w.head_squared, self.spec.beta)
            if keep:
                kept[l] = e
            if total is not None:
                total.add(l, self.epilogues[l].e_of(e, z[l]))
            if not keep:
                z[l] = None
            a = self.maps.core_adjoint(l, e, z[l - 1]) if l else None
        return kept

    def _tangent(self, tape: Tape, v_l: list[Tensor]) -> list[Tensor | None]:
        """All dz_l."""
        dz: list[Tensor | None] = []
        for l in range(len(self.stages)):
            du, rest = self.maps.stage(l, self._dz(l - 1, tape, dz) if l else None, v_l[l])
            dz.append(self.epilogues[l].tangent(du, rest, tape.z[l], self.spec.beta))
        return dz

    def _adjoint(self, l: int, a: Tensor | None, tape: Tape, dz: list[Tensor]) -> Tensor:
        """delta_l, from a = W_{l+1}^T delta_{l+1}."""
        return self.epilogues[l].adjoint(a, tape.z[l], tape.e[l], dz[l], self.stages[l].head_squared, self.spec.beta)

    def _z(self, l: int, tape: Tape) -> Tensor:
        return self.epilogues[l].z_of(tape.z[l])

    def _e(self, l: int, tape: Tape) -> Tensor:
        return self.epilogues[l].e_of(tape.e[l], tape.z[l])

    def _dz(self, l: int, tape: Tape, dz: list[Tensor]) -> Tensor:
        return self.epilogues[l].dz_of(dz[l], tape.z[l])

    def _assemble(self, f: Tensor, x: Tensor) -> Tensor:
        """f + K^T K x + alpha x, in f's memory: what follows sum_l D_l^T A_l^T e_l."""
        if self.spec.alpha:
            f = f.add_(x, alpha=self.spec.alpha)
        if self.weights.quadratic is not None:
            f = f.add_(self.maps.quadratic_adjoint(self.maps.quadratic(x), x))
        return f

    def _psi(self, z: list[Tensor]) -> Tensor:
        """psi, (N,)."""
        psi = (0.5 * self.spec.alpha) * _squares(self.x)
        for epilogues, z_l, w in zip(self.epilogues, z, self.stages, strict=True):
            if w.head is not None or w.head_squared is not None:
                psi = psi + epilogues.heads(z_l, w.head, w.head_squared, self.x.dtype)
        if self.weights.linear is not None:
            psi = psi + pixel_sum(self.x, self.x.dtype) @ self.weights.linear
        if self.weights.quadratic is not None:
            psi = psi + 0.5 * _squares(self.maps.quadratic(self.x))
        return psi if self.weights.constant is None else psi + self.weights.constant

    def _stage_gradient(self, l: int, name: str, tape, p, v_l, dz, total) -> Tensor:
        dtype = self.x.dtype
        result = None  # the gradients that are linear in e and delta, in their unit
        if name == "core":
            pairs = [(total, self._z(l - 1, tape))]
            if dz is not None:
                pairs.append((tape.e[l], self._dz(l - 1, tape, dz)))
            result = self.maps.core_gradient(l, pairs)
        elif name == "skip":
            pairs = [(total, self.x_l[l])]
            result = self.maps.skip_gradient(l, pairs if dz is None else [*pairs, (self._e(l, tape), v_l[l])])
        elif name == "bias":
            result = pixel_sum(total, dtype).sum(0)
        elif name == "noise":
            result = pixel_sum(total, dtype).T @ self.features
        if result is not None:
            unit = self.maps.unit(l)
            return result if unit is None else result * unit
        z, result = formed(self._z(l, tape), dtype), 0  # the two heads
        if dz is not None:
            dz_l = formed(self._dz(l, tape, dz), dtype)
            result = self._counted(dz_l if name == "head" else 2 * z.to(dtype) * dz_l).sum(0)
        if p is not None:
            result = result + p @ self._counted(z if name == "head" else squared(z, dtype))
        return result

    def _counted(self, t: Tensor) -> Tensor:
        """[N, H_l] as the pixels of t, [N, H_l, h, w], count in psi."""
        return pixel_sum(t if self.pixel_weights is None else t * self.pixel_weights, self.x.dtype)

    def _outer_gradient(self, name: str, p: Tensor | None, v: Tensor | None) -> Tensor:
        dtype = self.x.dtype
        if name == "constant":
            return self.x.new_zeros(1) if p is None else p.sum()
        if name == "linear":
            terms = [] if v is None else [pixel_sum(v, dtype).sum(0)]
            return sum(terms + ([] if p is None else [p @ pixel_sum(self.x, dtype)]))
        Kx, result = self.maps.quadratic(self.x), 0
        if v is not None:
            result = self.maps.quadratic_gradient(self.maps.quadratic(v), self.x)
            result = result + self.maps.quadratic_gradient(Kx, v)
        if p is not None:
            result = result + self.maps.quadratic_gradient(Kx * _per_sample(p, Kx), self.x)
        return result


def _per_sample(p: Tensor, like: Tensor) -> Tensor:
    """[N] broadcast against [N, ...]."""
    return p.view(-1, *(1,) * (like.dim() - 1))


def _squares(t: Tensor) -> Tensor:
    """|t_n|^2, [N]."""
    return (t * t).sum(tuple(range(1, t.dim())))
