"""The element-wise steps between the linear maps, in plain torch.

    softplus   z = softplus_beta(u + rest + b)
    slope_mul  (a + w + 2 g z) s          s = sigma'(u) = 1 - exp(-beta z)
    tangent    a s
    adjoint    (a + 2 g dz) s + e dz q    q = sigma''/sigma'^2 = beta / expm1(beta z), and 0 where z = 0
    heads      sum z (w + g z)            a stage's part of psi, per sample

Only z is kept from the forward sweep: s and q follow from it exactly. `a` or `rest` may be None (zero).
w and g are [H] or None, b is [1, H], [N, H] or None; every other tensor has z's shape. `u`, `rest` and
`a` are the caller's to give away and may be overwritten. z, e, dz are in `storage`, u, a and rest may be
wider. A backend replaces this object by a fused one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.reference import SOFTPLUS_THRESHOLD


class KeptAsItIs:
    """What the sweeps keep in the places of z, e and dz is z, e and dz."""

    def z_of(self, z: Tensor) -> Tensor:
        return z

    def e_of(self, e: Tensor, z: Tensor) -> Tensor:
        return e

    def dz_of(self, dz: Tensor, z: Tensor) -> Tensor:
        return dz


class TorchEpilogues(KeptAsItIs):
    """The steps in torch operations, any device and dtype; half precisions are computed in float32.

    In the memory of what is given away: of a large image every other tensor of z's size counts.
    """

    def softplus(self, u: Tensor, rest: Tensor | None, b: Tensor | None, beta: float, storage: torch.dtype) -> Tensor:
        u = _biased(u, rest, b)
        return torch.ops.aten.softplus.out(u, beta, SOFTPLUS_THRESHOLD, out=u).to(storage)

    def slope_mul(self, a: Tensor | None, z: Tensor, w: Tensor | None, g: Tensor | None, beta: float) -> Tensor:
        storage, z = z.dtype, _wide(z)
        given = a is not None  # else it becomes w, which is a parameter
        a = _wide(a) if given else None
        if w is not None:
            w = per_channel(w, z)
            a = a.add_(w) if given else w
        if g is not None:
            curved = 2 * per_channel(g, z) * z
            a = curved if a is None else a.add_(curved) if given else curved.add_(a)
            del curved
        slope = _slope(z, beta)
        if given and a.stride() == slope.stride():
            return a.mul_(slope).to(storage)
        return slope.mul_(a).to(storage)

    def tangent(self, a: Tensor, rest: Tensor | None, z: Tensor, beta: float) -> Tensor:
        storage, a = z.dtype, _wide(a)
        if rest is not None:
            a = a.add_(rest)
        return _slope(_wide(z), beta).mul_(a).to(storage)

    def adjoint(self, a: Tensor | None, z: Tensor, e: Tensor, dz: Tensor, g: Tensor | None, beta: float) -> Tensor:
        storage, z, dz = z.dtype, _wide(z), _wide(dz)
        # q ~ 1/z overflows below the smallest normal number, where e dz q ~ z is nothing; q dz stays moderate
        q = torch.mul(z, beta).expm1_().reciprocal_().mul_(beta)
        source = q.masked_fill_(z < torch.finfo(z.dtype).tiny, 0.0).mul_(dz).mul_(e)
        if g is not None:
            curved = 2 * per_channel(g, z) * dz
            a = curved if a is None else _wide(a).add_(curved)
        return (source if a is None else source.addcmul_(_wide(a), _slope(z, beta))).to(storage)

    def heads(self, z: Tensor, w: Tensor | None, g: Tensor | None, dtype: torch.dtype) -> Tensor:  # [N]
        # long sums of one sign: torch adds them pairwise
        psi = z.new_zeros(len(z), dtype=dtype) if w is None else pixel_sum(z, dtype) @ w
        return psi if g is None else psi + pixel_sum(squared(z, dtype), dtype) @ g


def pixel_sum(t: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, H(, h, w)] or [N, H, d, h, w] summed over its pixels in `dtype`: [N, H]."""
    return t.to(dtype) if t.dim() == 2 else t.sum((2, 3, 4)[: t.dim() - 2], dtype=dtype)


def squared(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t^2 in `dtype`."""
    t = t.to(dtype)
    return t * t


@dataclass(frozen=True)
class Product:
    """factor left right, entry by entry, for maps that form it as they read it."""

    left: Tensor
    right: Tensor
    factor: float = 1.0


def formed(t: Tensor | Product, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor; what is still a product in `dtype`, None: in the type of its factors."""
    if not isinstance(t, Product):
        return t
    return (t.left.to(dtype or t.left.dtype) * t.right).mul_(t.factor)


class SquareEpilogues:
    """The steps of a first stage z = u^2. In the places of z, e and dz it keeps u, e / u = 2 (a + w) and du."""

    def softplus(self, u: Tensor, rest: Tensor | None, b: None, beta: float, storage: torch.dtype) -> Tensor:
        return (u if rest is None else u + rest).to(storage)

    def slope_mul(self, a: Tensor | None, u: Tensor, w: Tensor | None, g: None, beta: float) -> Tensor:
        a = torch.zeros_like(u) if a is None else _wide(a)
        return (2 * (a if w is None else a + per_channel(w, a))).to(u.dtype)

    def tangent(self, a: Tensor, rest: Tensor | None, u: Tensor, beta: float) -> Tensor:
        return (a if rest is None else a + rest).to(u.dtype)

    def adjoint(self, a: Tensor | None, u: Tensor, e: Tensor, du: Tensor, g: None, beta: float) -> Tensor:
        source = _wide(e) * _wide(du)
        return (source if a is None else source.addcmul_(_wide(a), _wide(u), value=2)).to(u.dtype)

    def heads(self, u: Tensor, w: Tensor | None, g: None, dtype: torch.dtype) -> Tensor:  # [N]
        return pixel_sum(squared(u, dtype), dtype) @ w

    def z_of(self, u: Tensor) -> Tensor:
        return u * u

    def e_of(self, e: Tensor, u: Tensor) -> Tensor:
        return e * u

    def dz_of(self, du: Tensor, u: Tensor) -> Tensor:
        return (du * u).mul_(2)


class CompetingEpilogues:
    """The steps of a last stage whose units compete: z = 1/beta log sum_j exp(beta u_j), one value per pixel.

    With p = softmax(beta u) over the units,  e = w p,  dz = sum_j p_j du_j,  delta = beta e (du - dz).
    In the places of z, e and dz it keeps u, e and du. There is no stage after it, so that a is None, and w is [1].
    """

    def __init__(self, beta: float):
        self.beta = beta

    def softplus(self, u: Tensor, rest: Tensor | None, b: Tensor | None, beta: float, storage: torch.dtype) -> Tensor:
        return _biased(u, rest, b).to(storage)

    def slope_mul(self, a: None, u: Tensor, w: Tensor, g: None, beta: float) -> Tensor:
        return _shares(u, beta).mul_(w).to(u.dtype)

    def tangent(self, a: Tensor, rest: Tensor | None, u: Tensor, beta: float) -> Tensor:
        return (a if rest is None else a + rest).to(u.dtype)

    def adjoint(self, a: None, u: Tensor, e: Tensor, du: Tensor, g: None, beta: float) -> Tensor:
        du = _wide(du)
        mean = _shares(u, beta).mul_(du).sum(1, keepdim=True)
        return (du - mean).mul_(e).mul_(beta).to(u.dtype)

    def heads(self, u: Tensor, w: Tensor, g: None, dtype: torch.dtype) -> Tensor:  # [N]
        return pixel_sum(self.z_of(u), dtype) @ w

    def z_of(self, u: Tensor) -> Tensor:
        return _wide(u).mul(self.beta).logsumexp(1, keepdim=True).div_(self.beta)

    def e_of(self, e: Tensor, u: Tensor) -> Tensor:
        return e

    def dz_of(self, du: Tensor, u: Tensor) -> Tensor:
        return _shares(u, self.beta).mul_(_wide(du)).sum(1, keepdim=True)


class WeightedEpilogues:
    """The steps of stages with linear heads whose pixels count in psi with weights [h, w]: head w_p w at pixel p."""

    def __init__(self, own, weights: Tensor):
        self._own, self._weights = own, weights
        self.softplus, self.tangent, self.adjoint = own.softplus, own.tangent, own.adjoint  # no heads in these
        self.z_of, self.e_of, self.dz_of = own.z_of, own.e_of, own.dz_of

    def slope_mul(self, a: Tensor | None, z: Tensor, w: Tensor | None, g: None, beta: float) -> Tensor:
        if a is None:
            return self._own.slope_mul(None, z, w, None, beta).mul_(self._weights)
        if w is not None:
            a = _wide(a) + per_channel(w, a) * self._weights
        return self._own.slope_mul(a, z, None, None, beta)

    def heads(self, z: Tensor, w: Tensor, g: None, dtype: torch.dtype) -> Tensor:  # [N]
        return pixel_sum(self.z_of(z).to(dtype) * self._weights, dtype) @ w


def _biased(u: Tensor, rest: Tensor | None, b: Tensor | None) -> Tensor:
    """u + rest + b, in u's memory where that is wide."""
    u = _wide(u)
    if rest is not None:
        u = u.add_(rest)
    if b is not None:
        u = u.add_(b.view(*b.shape, *(1,) * (u.dim() - 2)))
    return u


def _shares(u: Tensor, beta: float) -> Tensor:
    """softmax over the units."""
    return _wide(u).mul(beta).softmax(1)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def per_channel(t: Tensor, like: Tensor) -> Tensor:
    """[H] broadcast against [N, H], [N, H, h, w] or [N, H, d, h, w]."""
    return t.view(1, -1, *(1,) * (like.dim() - 2))


def _slope(z: Tensor, beta: float) -> Tensor:
    return torch.mul(z, -beta).expm1_().neg_()
