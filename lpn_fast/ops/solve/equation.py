"""The equation, what is known of it at a point, and its linearisation.

    r(u) = t u + (1 - t) f(u) - z = 0,     t >= 0     (t = 1 is allowed and trivial)
    r = grad phi,     phi(u) = t/2 |u|^2 + (1 - t) psi(u) - <z, u>      convex, (t + (1 - t) alpha)-strongly
    r'(u) = t I + (1 - t) H(u),     H = grad^2 psi, symmetric, positive semi-definite

t = 0 inverts f. For t > 0 the solution is unique, and f(u) = prox_{tR}(z): with R + 1/2 |.|^2 = psi* the
function 1/2 |x - z|^2 + t R(x) is t psi*(x) + (1 - t)/2 |x|^2 - <x, z> + const, convex whatever R is, and
its optimality condition, with u in the subdifferential of psi* at x, is the equation. For t > 1 both phi and
that function stay convex as long as f has a Lipschitz constant L < t / (t - 1): phi is (t - (t - 1) L)-strongly
convex, because then H <= L I, and psi* is 1/L-strongly convex.

Solves run in full precision whatever the model's is: their residuals are certificates.

Everything has the n samples still worked on first, and `select` keeps some of them.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...algebra.spec import Spec
from ...per_sample import broadcast, dot
from .. import backends, schema  # noqa: F401  (importing them registers the operators and what runs them)

_ops = torch.ops.lpn_fast

# Rounding of phi in units of eps times the size of its terms: psi is a sum over units and pixels.
PHI_ROUNDING = 8.0


@dataclass(frozen=True)
class Point:
    """What one evaluation at u tells."""

    u: Tensor  # [n, ...]
    f: Tensor  # [n, ...]
    psi: Tensor  # [n]
    residual: Tensor  # [n, ...]  r(u)
    phi: Tensor  # [n] float64
    rounding: Tensor  # [n] float64, how far phi can be trusted
    tape: list[Tensor]  # for a convolutional network, if `needs_tape`

    def select(self, rows: Tensor) -> "Point":
        """The samples `rows`, bool [n] or indices."""
        parts = {name: value[rows] for name, value in self._tensors().items()}
        return Point(**parts, tape=[t[rows] for t in self.tape])

    def put_(self, rows: Tensor, other: "Point") -> "Point":
        """Overwrite the samples `rows` by those of `other`, in place. Returns self."""
        for name, value in self._tensors().items():
            value[rows] = getattr(other, name)
        for mine, others in zip(self.tape, other.tape, strict=True):
            mine[rows] = others
        return self

    def without_tape(self) -> "Point":
        """The same, with the memory of the tape given back."""
        return replace(self, tape=[])

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if name != "tape"}


@dataclass(frozen=True)
class Equation:
    """One equation per sample; plain tensors of one dtype and device, no autograd."""

    spec: Spec
    packed: Tensor  # [P] projected parameters
    features: Tensor | None  # [n, F] of the noise level
    z: Tensor  # [n, ...]
    strength: Tensor  # [n] t
    needs_tape: bool = True  # whether points will be linearised

    def at(self, u: Tensor) -> Point:
        """Evaluate at u [n, ...]."""
        psi, f, tape = _ops.evaluate.default(
            u, self.packed, self.features, self.spec.encoded, "fp32", True, self.needs_tape and not self.spec.is_dense
        )
        t = broadcast(self.strength, u)
        t64, psi64 = self.strength.double(), psi.double()
        terms = torch.stack([0.5 * t64 * dot(u, u), (1 - t64) * psi64, -dot(self.z, u)])  # [3, n]
        rounding = PHI_ROUNDING * torch.finfo(u.dtype).eps * terms.abs().sum(0)
        # lerp keeps the digits of f where t = 0, and of u where t = 1
        return Point(u, f, psi, torch.lerp(f, u, t) - self.z, terms.sum(0), rounding, tape)

    def select(self, rows: Tensor) -> "Equation":
        """The samples `rows`, bool [n] or indices."""
        features = None if self.features is None else self.features[rows]
        return replace(self, features=features, z=self.z[rows], strength=self.strength[rows])

    def linearised(self, point: Point, damping: Tensor | float = 0.0) -> "Curvature":
        """The linear map  v -> (t + damping) v + (1 - t) H(u) v  at a point."""
        return Curvature(
            self.spec, self.packed, self.features, point.u, point.tape, self.strength + damping, 1 - self.strength
        )


@dataclass(frozen=True)
class Curvature:
    """v -> shift v + scale H(u) v for every sample."""

    spec: Spec
    packed: Tensor  # [P]
    features: Tensor | None  # [n, F]
    u: Tensor  # [n, ...]
    tape: list[Tensor]
    shift: Tensor  # [n]
    scale: Tensor  # [n]

    def __call__(self, v: Tensor) -> Tensor:  # [n, ...] -> [n, ...]
        hv = _ops.hvp.default(self.u, self.packed, self.features, v, self.tape, self.spec.encoded, "fp32")
        return broadcast(self.shift, v) * v + broadcast(self.scale, v) * hv

    def select(self, rows: Tensor) -> "Curvature":
        """The samples `rows`, bool [n] or indices."""
        features = None if self.features is None else self.features[rows]
        return replace(
            self,
            features=features,
            u=self.u[rows],
            tape=[t[rows] for t in self.tape],
            shift=self.shift[rows],
            scale=self.scale[rows],
        )
