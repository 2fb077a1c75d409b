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
that the vjp, the jvp and the hvp of f are one operation. Only z, e and dz are ever stored. With F the
operations of the value sweep: prox 2F, H v 2F with (z, e) at hand, all gradients 6F.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.parameters import layout, parameter_count, unpack
from ..algebra.spec import Spec
from .epilogues import per_channel
from .maps import maps_for


@dataclass
class Tape:
    """What the forward and the transposed sweep leave behind, stage by stage."""

    z: list[Tensor]  # [N, H_l(, h, w)]
    e: list[Tensor]  # as z

    def flatten(self) -> list[Tensor]:
        """z_1..z_L, e_1..e_L, as the operators pass it."""
        return [*self.z, *self.e]

    @staticmethod
    def unflatten(tensors: list[Tensor]) -> "Tape":
        half = len(tensors) // 2
        return Tape(list(tensors[:half]), list(tensors[half:]))


class Sweeps:
    """One network at one input: x (N, C) or (N, C, H, W), P (P,), noise features (N, F) or None."""

    def __init__(self, spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, epilogues):
        self.spec = spec
        self.x = x
        self.features = features
        self.weights = unpack(spec, packed)
        self.stages = self.weights.stages
        self.maps = maps_for(spec, self.weights, x)
        self.epilogues = epilogues
        self.x_l = self.maps.skip_inputs(x)

    def value_prox(self, with_value: bool) -> tuple[Tensor | None, Tensor, Tape]:
        """(psi (N,) or None, f like x, tape)."""
        tape = self.tape()
        return (self._psi(tape.z) if with_value else None), self._assemble(tape.e, self.x, with_linear=True), tape

    def tape(self) -> Tape:
        """The forward and the transposed sweep."""
        z = self._forward()
        return Tape(z, self._transposed(z))

    def hvp(self, tape: Tape, v: Tensor) -> Tensor:
        """H v, of x's shape."""
        _, delta = self._second_order(tape, v, self.maps.skip_inputs(v))
        return self._assemble(delta, v, with_linear=False)

    def vjp(self, tape: Tape, p: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """(gradient in x, gradient in P) of sum (p psi + <v, f>); p (N,), v like x, either may be None."""
        if v is None:
            v_l, dz, delta = None, None, None
            gx = torch.zeros_like(self.x)
        else:
            v_l = self.maps.skip_inputs(v)
            dz, delta = self._second_order(tape, v, v_l)
            gx = self._assemble(delta, v, with_linear=False)
        if p is not None:
            scaled = [e * _per_sample(p, e) for e in tape.e]
            total = scaled if delta is None else [d + s for d, s in zip(delta, scaled, strict=True)]
            f = self._assemble(tape.e, self.x, with_linear=True)
            gx = gx + _per_sample(p, f) * f
        else:
            total = delta
        return gx, self._gradients(tape, p, v, v_l, dz, total)

    def _forward(self) -> list[Tensor]:
        z: list[Tensor] = []
        for l in range(len(self.stages)):
            u, rest = self.maps.stage(l, z[-1] if l else None, self.x_l[l])
            z.append(self.epilogues.softplus(u, rest, self._bias(l), self.spec.beta))
        return z

    def _bias(self, l: int) -> Tensor | None:
        """b_l + B_l phi(sigma): [1, H_l], or [N, H_l] where the noise level decides."""
        w = self.stages[l]
        bias = None if w.bias is None else w.bias[None]
        if w.noise is None:
            return bias
        conditional = self.features @ w.noise.T
        return conditional if bias is None else conditional + bias

    def _transposed(self, z: list[Tensor]) -> list[Tensor]:
        e: list[Tensor | None] = [None] * len(z)
        a = None
        for l in reversed(range(len(z))):
            w = self.stages[l]
            if a is None and w.head is None and w.head_squared is None:
                e[l] = torch.zeros_like(z[l])  # a stage that psi does not reach
            else:
                e[l] = self.epilogues.slope_mul(a, z[l], w.head, w.head_squared, self.spec.beta)
            a = self.maps.core_adjoint(l, e[l], z[l - 1]) if l else None
        return e

    def _second_order(self, tape: Tape, v: Tensor, v_l: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(dz, delta): the tangent sweep and the adjoint sweep."""
        beta, dz, delta = self.spec.beta, [], [None] * len(tape.z)
        for l in range(len(self.stages)):
            du, rest = self.maps.stage(l, dz[-1] if l else None, v_l[l])
            dz.append(self.epilogues.tangent(du, rest, tape.z[l], beta))
        a = None
        for l in reversed(range(len(self.stages))):
            g = self.stages[l].head_squared
            delta[l] = self.epilogues.adjoint(a, tape.z[l], tape.e[l], dz[l], g, beta)
            a = self.maps.core_adjoint(l, delta[l], tape.z[l - 1]) if l else None
        return dz, delta

    def _assemble(self, e: list[Tensor], x: Tensor, with_linear: bool) -> Tensor:
        """sum_l D_l^T A_l^T e_l + K^T K x + alpha x (+ c)."""
        f = self.maps.skips_adjoint(e, x)
        if self.spec.alpha:
            f = f.add_(x, alpha=self.spec.alpha)
        if self.weights.quadratic is not None:
            f = f.add_(self.maps.quadratic_adjoint(self.maps.quadratic(x), x))
        if with_linear and self.weights.linear is not None:
            f = f.add_(per_channel(self.weights.linear, f))
        return f

    def _psi(self, z: list[Tensor]) -> Tensor:
        """psi, (N,). Long sums of one sign: torch adds them pairwise."""
        psi = (0.5 * self.spec.alpha) * _squares(self.x)
        for z_l, w in zip(z, self.stages, strict=True):
            if w.head is not None:
                psi = psi + _pixel_sum(z_l) @ w.head
            if w.head_squared is not None:
                psi = psi + _pixel_sum(z_l * z_l) @ w.head_squared
        if self.weights.linear is not None:
            psi = psi + _pixel_sum(self.x) @ self.weights.linear
        if self.weights.quadratic is not None:
            psi = psi + 0.5 * _squares(self.maps.quadratic(self.x))
        return psi if self.weights.constant is None else psi + self.weights.constant

    def _gradients(self, tape, p, v, v_l, dz, total) -> Tensor:
        """The gradient in P, laid out as P."""
        gradient = self.x.new_zeros(parameter_count(self.spec))
        for slot in layout(self.spec):
            *prefix, name = slot.name.split(".")
            if prefix:
                part = self._stage_gradient(int(prefix[1]), name, tape, p, v_l, dz, total)
            else:
                part = self._outer_gradient(name, p, v)
            gradient[slot.offset : slot.end] = part.reshape(-1)
        return gradient

    def _stage_gradient(self, l: int, name: str, tape, p, v_l, dz, total) -> Tensor:
        if name == "core":
            pairs = [(total[l], tape.z[l - 1])]
            return self.maps.core_gradient(l, pairs if dz is None else [*pairs, (tape.e[l], dz[l - 1])])
        if name == "skip":
            pairs = [(total[l], self.x_l[l])]
            return self.maps.skip_gradient(l, pairs if dz is None else [*pairs, (tape.e[l], v_l[l])])
        if name == "bias":
            return _pixel_sum(total[l]).sum(0)
        if name == "noise":
            return _pixel_sum(total[l]).T @ self.features
        z, result = tape.z[l], 0  # the two heads
        if dz is not None:
            result = _pixel_sum(dz[l] if name == "head" else 2 * z * dz[l]).sum(0)
        if p is not None:
            result = result + p @ _pixel_sum(z if name == "head" else z * z)
        return result

    def _outer_gradient(self, name: str, p: Tensor | None, v: Tensor | None) -> Tensor:
        if name == "constant":
            return self.x.new_zeros(1) if p is None else p.sum()
        if name == "linear":
            terms = [] if v is None else [_pixel_sum(v).sum(0)]
            return sum(terms + ([] if p is None else [p @ _pixel_sum(self.x)]))
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


def _pixel_sum(t: Tensor) -> Tensor:
    """[N, H(, h, w)] summed over its pixels: [N, H]."""
    return t if t.dim() == 2 else t.sum((2, 3))


def _squares(t: Tensor) -> Tensor:
    """|t_n|^2, [N]."""
    return (t * t).sum(tuple(range(1, t.dim())))
