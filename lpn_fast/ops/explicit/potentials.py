"""R and its derivatives: group potentials of the energies of every patch.

In units of the noise, with c_p = A patch_p(E x), A orthonormal, and w_p of patches.py,

    R(x) = 1/k^2 sum_p w_p sum_g P_g(U_g . c_p^2),       U >= 0,   sum_g U_gj <= mu < 1
    P(u) = a (sqrt(b + u) - sqrt(b)) - H(u),             H(u) = u / 2 up to u = e^2, then e sqrt(u) - e^2 / 2

Certificate. H(|z|^2) is Huber's function of |z|. Its Hessian lies between 0 and I; z = U_g^(1/2) c makes that
diag(U_g), the sum over g at most mu I, and the tight frame hands mu on to x: the concave part of R has curvature at
most mu, whatever the convex part is, and 1/2 |x - y|^2 + R(x) is (1 - mu)-strongly convex. With

    a = e tau / sqrt(1 - rho^-4),   b = (a / rho^2)^2,      rho > 1, tau >= 1

a^2 >= b + e^2: P rises, so that R >= 0, and the convex part has curvature at most sum_g U_gj rho_g^2. At tau = 1 this
is the minimax concave penalty (Zhang, 2010) but for its tip: of that concavity, none levels off sooner. Derivatives,
g(u) = 2 P'(u):

    grad_c = c (U^T g),    g = a / sqrt(b + u) - e / sqrt(max(u, e^2))
    H dc   = dc (U^T g) - c (U^T (g3 U (c dc))),    g3 = a (b + u)^(-3/2) - e u^(-3/2) where u > e^2
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...algebra.patches import Patches
from . import kernels
from .coarse import Tilings, means, means_adjoint
from .plain import huber


@dataclass(frozen=True)
class Potentials:
    """Atoms and potentials; B is the number of samples, or 1 where all share them.

    Attributes
    ----------
    atoms : Tensor, shape (n, n), n = C k^2
        Orthonormal rows.
    energies : Tensor, shape (B, M, n)
        U, its columns at most mu in sum.
    slope, near, far : Tensor, shape (B, M)
        a, b and e.
    coarse : Potentials, optional
        Those of the coarse level (coarse.py).
    """

    atoms: Tensor
    energies: Tensor
    slope: Tensor
    near: Tensor
    far: Tensor
    coarse: "Potentials | None" = None

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, from which `of_tensors` makes the same potentials."""
        own = self.atoms, self.energies, self.slope, self.near, self.far
        return own if self.coarse is None else own + self.coarse.tensors()

    @staticmethod
    def of_tensors(tensors: Sequence[Tensor]) -> "Potentials":
        return Potentials(*tensors[:5], Potentials(*tensors[5:]) if len(tensors) > 5 else None)

    def of(self, rows) -> "Potentials":
        """Those of some samples."""
        if len(self.energies) == 1:
            return self
        own = (t[rows] for t in (self.energies, self.slope, self.near, self.far))
        return Potentials(self.atoms, *own, None if self.coarse is None else self.coarse.of(rows))

    def repeated(self, times: int) -> "Potentials":
        """Those of every sample so many times, one after another."""
        if len(self.energies) == 1:
            return self
        own = (self.energies, self.slope, self.near, self.far)
        return Potentials(self.atoms, *(t.repeat_interleave(times, 0) for t in own))

    def single(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U (M, n) and a, b, e (M, 1) where they are one sample's."""
        return self.energies[0], self.slope[0, :, None], self.near[0, :, None], self.far[0, :, None]

    def curvature(self) -> Tensor:
        """Curvature of the potentials along every atom at zero, where it is largest, (B, n)."""
        return ((self.slope * self.near.rsqrt() - 1)[:, None] @ self.energies)[:, 0]


def gradient(pot: Potentials, x: Tensor, k: int) -> Tensor:
    """grad R(x), like x (N, C, H, W), in units of the noise."""
    return value_and_gradient(pot, x, k, with_value=False)[1]


def value_and_gradient(pot: Potentials, x: Tensor, k: int, with_value: bool = True) -> tuple[Tensor, Tensor]:
    """(R(x) (N,) float64, or zeros without values, grad R(x)); x in units of the noise, (N, C, H, W)."""
    value, gradient = kernels.run(pot, x, None, k, with_value)
    if _has_coarse(pot, x, k):
        z, parts = means(x, k), []
        tilings = Tilings(*z.shape[2:], k)
        for part in tilings.split(z):
            of_part, own = kernels.run(_of_tilings(pot, part, x), part, None, _side(pot, x), with_value)
            value += of_part.view(len(x), -1).sum(1) / k**2
            parts.append(own)
        gradient += means_adjoint(tilings.joined(parts, z), k) / k**2
    return value, gradient


def hvp(pot: Potentials, x: Tensor, v: Tensor, k: int) -> Tensor:
    """The Hessian of R at x times v, like x."""
    product = kernels.run(pot, x, v, k, False)[1]
    if _has_coarse(pot, x, k):
        z, along = means(x, k), means(v, k)
        tilings = Tilings(*z.shape[2:], k)
        parts = [
            kernels.run(_of_tilings(pot, part, x), part, direction, _side(pot, x), False)[1]
            for part, direction in zip(tilings.split(z), tilings.split(along), strict=True)
        ]
        product += means_adjoint(tilings.joined(parts, z), k) / k**2
    return product


def pairing(pot: Potentials, x: Tensor, v: Tensor, k: int) -> Tensor:
    """sum over samples of <v, grad R(x)>, by operations that autograd differentiates in the potentials."""
    total = _pairing(pot, x, v, k)
    if _has_coarse(pot, x, k):
        z, along = means(x, k), means(v, k)
        tilings = Tilings(*z.shape[2:], k)
        for part, direction in zip(tilings.split(z), tilings.split(along), strict=True):
            total = total + _pairing(_of_tilings(pot, part, x), part, direction, _side(pot, x)) / k**2
    return total


def _pairing(pot: Potentials, x: Tensor, v: Tensor, k: int) -> Tensor:
    """The same of one level."""
    patches = Patches(*x.shape[2:], k, x)
    at, along = patches.extended(x), patches.extended(v)
    total = x.new_zeros(())
    for n in range(len(x)):
        own, one = pot.of(slice(n, n + 1)), slice(n, n + 1)
        u_matrix, a, b, e = own.single()
        for block in patches.blocks():
            c = own.atoms @ patches.gather(at[one], block)[0]
            dc = own.atoms @ patches.gather(along[one], block)[0]
            energy = u_matrix @ c.square()
            gates = a * torch.rsqrt(energy + b) - e * torch.rsqrt(energy.maximum(e * e))
            weights = patches.weights_of(block) / k**2
            total = total + (gates * (u_matrix @ (c * dc * weights))).sum()
    return total


def values(pot: Potentials, x: Tensor, k: int) -> Tensor:
    """R(x), (N,), by operations that autograd differentiates in the potentials."""
    total = _values(pot, x, k)
    if _has_coarse(pot, x, k):
        z = means(x, k)
        for part in Tilings(*z.shape[2:], k).split(z):
            of_part = _values(_of_tilings(pot, part, x), part, _side(pot, x))
            total = total + of_part.view(len(x), -1).sum(1) / k**2
    return total


def _values(pot: Potentials, x: Tensor, k: int) -> Tensor:
    """The same of one level."""
    patches = Patches(*x.shape[2:], k, x)
    at, totals = patches.extended(x), []
    for n in range(len(x)):
        own = pot.of(slice(n, n + 1))
        u_matrix, a, b, e = own.single()
        for block in patches.blocks():
            energy = u_matrix @ (own.atoms @ patches.gather(at[n : n + 1], block)[0]).square()
            total = a * ((energy + b).sqrt() - b.sqrt()) - huber(energy, e)
            totals.append((total.sum(0) * patches.weights_of(block)).sum() / k**2)
    return torch.stack(totals).view(len(x), -1).sum(1) if totals else x.new_zeros(0)


def _has_coarse(pot: Potentials, x: Tensor, k: int) -> bool:
    return pot.coarse is not None and len(x) > 0 and min(x.shape[2:]) >= k


def _side(pot: Potentials, x: Tensor) -> int:
    """Side of the patches of the coarse level."""
    assert pot.coarse is not None
    return math.isqrt(len(pot.coarse.atoms) // x.shape[1])


def _of_tilings(pot: Potentials, part: Tensor, x: Tensor) -> Potentials:
    """Coarse potentials of every tiling of every sample."""
    assert pot.coarse is not None
    return pot.coarse.repeated(len(part) // len(x))
