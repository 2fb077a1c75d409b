"""R and its derivatives: group potentials of the energies of every patch.

In units of the noise, with c_p = A patch_p(E x), A orthonormal, and w_p of patches.py,

    R(x) = 1/k^d sum_p w_p sum_g P_g(U_g . c_p^2),       U >= 0,   sum_g U_gj <= mu < 1
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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import kernels
from .coarse import Tilings, means, means_adjoint


@dataclass(frozen=True)
class Potentials:
    """Atoms and potentials; B is the number of samples, or 1 where all share them.

    Attributes
    ----------
    atoms : Tensor, shape (n, C k^2), or (n, C k^3) for volumes
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
    """(R(x) (N,) float64, or zeros without values, grad R(x)); x in units of the noise, (N, C, [D,] H, W)."""
    value, gradient = kernels.run(pot, x, None, k, with_value)
    if _has_coarse(pot, x, k):
        z, parts = means(x, k), []
        tilings = Tilings(z.shape[2:], k)
        for part in tilings.split(z):
            of_part, own = kernels.run(_of_tilings(pot, part, x), part, None, _side(pot, x), with_value)
            value += of_part.view(len(x), -1).sum(1) / k ** (x.dim() - 2)
            parts.append(own)
        gradient += means_adjoint(tilings.joined(parts, z), k) / k ** (x.dim() - 2)
    return value, gradient


def hvp(pot: Potentials, x: Tensor, v: Tensor, k: int) -> Tensor:
    """The Hessian of R at x times v, like x."""
    product = kernels.run(pot, x, v, k, False)[1]
    if _has_coarse(pot, x, k):
        z, along = means(x, k), means(v, k)
        tilings = Tilings(z.shape[2:], k)
        parts = [
            kernels.run(_of_tilings(pot, part, x), part, direction, _side(pot, x), False)[1]
            for part, direction in zip(tilings.split(z), tilings.split(along), strict=True)
        ]
        product += means_adjoint(tilings.joined(parts, z), k) / k ** (x.dim() - 2)
    return product


def gradients(pot: Potentials, x: Tensor, v: Tensor | None, scale: Tensor | None, k: int) -> tuple[Tensor, ...]:
    """The gradient of  sum over samples of <v, grad R(x)> + scale R(x)  in `pot.tensors()`; scale (N,), like x."""
    found = kernels.gradients(pot, x, v, scale, k)
    if pot.coarse is None:
        return found
    coarse = [torch.zeros_like(t) for t in pot.coarse.tensors()]  # no level where an image is smaller than a patch
    if _has_coarse(pot, x, k):
        pixels = k ** (x.dim() - 2)
        parts = [Tilings(means(x, k).shape[2:], k).split(means(t, k)) for t in (x, v) if t is not None]
        for part, *along in zip(*parts, strict=True):
            times = len(part) // len(x)
            direction = along[0] / pixels if along else None
            of_part = None if scale is None else scale.repeat_interleave(times) / pixels
            own = kernels.gradients(_of_tilings(pot, part, x), part, direction, of_part, _side(pot, x))
            for total, gradient in zip(coarse, own, strict=True):
                many = gradient.shape != total.shape  # those of every tiling of a sample
                total += gradient.unflatten(0, (-1, times)).sum(1) if many else gradient
    return *found, *coarse


def _has_coarse(pot: Potentials, x: Tensor, k: int) -> bool:
    return pot.coarse is not None and len(x) > 0 and min(x.shape[2:]) >= k


def _side(pot: Potentials, x: Tensor) -> int:
    """Side of the patches of the coarse level."""
    assert pot.coarse is not None
    return round((pot.coarse.atoms.shape[1] // x.shape[1]) ** (1 / (x.dim() - 2)))


def _of_tilings(pot: Potentials, part: Tensor, x: Tensor) -> Potentials:
    """Coarse potentials of every tiling of every sample."""
    assert pot.coarse is not None
    return pot.coarse.repeated(len(part) // len(x))
