"""Measurements that tell a proximal operator from a map that is none. All are zero, or of one sign, for a prox.

    f = prox_R  <=>  f = grad psi with psi convex                     Gribonval, Nikolova, 2020, and Moreau, 1965
    gradient     <f(x), d> = d/ds psi(x + s d)
    symmetry     <w, J v> = <v, J w>,  J the Jacobian of f            (f is a gradient, locally)
    circulation  integral of <f, dx> around a triangle = 0            (f is a gradient, in the large)
    curvature    <v, J v> >= 0;   monotony  <f(a) - f(b), a - b> >= 0;   convexity  psi((a + b)/2) <= mean
    optimality   1/2 |x - y|^2 + R(x) <= 1/2 |x' - y|^2 + R(x')  for x = f(y) and every x' = f(y')

Every function returns its worst relative violation as one float. Functions of a *field* take f, of a
*potential* psi, both as plain callables on batches.
"""

from collections.abc import Callable, Iterable
from types import EllipsisType

import torch
from torch import Tensor

from ..per_sample import broadcast, dot, norm

Field = Callable[[Tensor], Tensor]  # (N, ...) -> (N, ...)
Potential = Callable[[Tensor], Tensor]  # (N, ...) -> (N,)

# Gauss-Legendre with 4 nodes on [-1, 1], weights summing to 2: exact for polynomials of degree 7
NODES = (-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526)
WEIGHTS = (0.3478548451374538, 0.6521451548625461, 0.6521451548625461, 0.3478548451374538)
PIECES = 4  # per edge; twice as many check the quadrature
POWER_STEPS = 20
TINY = 1e-300


def jacobian_transposed(field: Field, x: Tensor, v: Tensor) -> Tensor:
    """J(x)^T v by reverse differentiation; TypeError if the field is not differentiable."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        out = field(leaf)
        if not isinstance(out, Tensor) or not out.requires_grad:
            raise TypeError("the map must be differentiable by autograd in its argument")
        return torch.autograd.grad(out, leaf, v)[0]


def asymmetry(field: Field, x: Tensor, v: Tensor, w: Tensor) -> float:
    """|<w, J v> - <v, J w>| over the sum of the absolute terms of both."""
    return _worst(_difference_of_pairings(v, w, jacobian_transposed(field, x, v), jacobian_transposed(field, x, w)))


def border_asymmetry(field: Field, x: Tensor, noise: Tensor) -> float:
    """The same with v on a frame along the border and w inside it, for frames of width 1, 2, 4, ...

    Averaging over patches with counts n gives J = diag(1/n) H, which is asymmetric exactly between pixels
    of different counts, and these differ near the border. x and noise (N, C, H, W) or (N, C, D, H, W).
    """
    found, width = [], 1
    while 2 * width < min(x.shape[2:]):
        inside = torch.zeros_like(x)
        interior: tuple[EllipsisType | slice, ...] = (..., *(slice(width, side - width) for side in x.shape[2:]))
        inside[interior] = 1
        v, w = noise * (1 - inside), noise.flip(-1) * inside
        found.append(asymmetry(field, x, v, w))
        width *= 2
    return worst(found)


def negative_curvature(field: Field, x: Tensor, v: Tensor) -> float:
    """-<v, J v> / (|v| |J v|), zero if positive."""
    jv = jacobian_transposed(field, x, v)
    return _worst(-dot(v, jv) / (norm(v) * norm(jv) + TINY))


def steepest_slope(field: Field, x: Tensor, v: Tensor) -> float:
    """Largest eigenvalue of J over the samples, from below, by power iteration."""
    size = norm(v)
    for _ in range(POWER_STEPS):
        v = jacobian_transposed(field, x, v / broadcast(norm(v) + TINY, v))
        size = norm(v)
    return float(size.max())


def non_monotony(field: Field, a: Tensor, b: Tensor) -> float:
    """-<f(a) - f(b), a - b> / (|f(a) - f(b)| |a - b|), zero if positive."""
    rise, run = field(a) - field(b), a - b
    return _worst(-dot(rise, run) / (norm(rise) * norm(run) + TINY))


def circulation(field: Field, a: Tensor, b: Tensor, c: Tensor) -> tuple[float, float]:
    """|Integral of f around the triangle a b c| over that of |<f, dx>|, and the quadrature error in the same unit."""
    total = error = length = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for start, end in ((a, b), (b, c), (c, a)):
        coarse, _ = _line_integrals(field, start, end, PIECES)
        fine, absolute = _line_integrals(field, start, end, 2 * PIECES)
        total, length = total + fine.sum(0), length + absolute.sum(0)
        error = error + (fine.unflatten(0, (PIECES, 2)).sum(1) - coarse).abs().sum(0)  # errors of pieces may cancel
    return _worst(total.abs() / (length + TINY)), _worst(error / (length + TINY))


def gradient_mismatch(field: Field, potential: Potential, x: Tensor, d: Tensor, step: float) -> float:
    """|<f, d> - (psi(x + s d) - psi(x - s d)) / 2s| / (|f| |d|)."""
    slope = (potential(x + step * d).double() - potential(x - step * d).double()) / (2 * step)
    f = field(x)
    return _worst((slope - dot(f, d)).abs() / (norm(f) * norm(d) + TINY))


def non_convexity(potential: Potential, a: Tensor, b: Tensor) -> float:
    """psi((a + b)/2) - (psi(a) + psi(b))/2 over the size of psi, zero if negative."""
    ends, middle = (potential(a).double(), potential(b).double()), potential((a + b) / 2).double()
    return _worst((middle - (ends[0] + ends[1]) / 2) / (ends[0].abs() + ends[1].abs() + middle.abs() + TINY))


def suboptimality(field: Field, potential: Potential, y: Tensor, others: list[Tensor]) -> float:
    """By how much a competitor x' = f(y') beats x = f(y) in 1/2 |x - y|^2 + R(x), relative; zero if none does."""
    x, prior = _prox_and_prior(field, potential, y)
    own = 0.5 * dot(x - y, x - y) + prior
    found = []
    for other in others:
        rival, prior_there = _prox_and_prior(field, potential, other)
        cost = 0.5 * dot(rival - y, rival - y) + prior_there
        scale = dot(x, x) + dot(y, y) + dot(other, other) + own.abs() + cost.abs()
        found.append(_worst((own - cost) / (scale + TINY)))
    return worst(found)


def worst(violations: Iterable[float]) -> float:
    """The largest of them, 0 if there is none, NaN if one is NaN (which Python's max would lose)."""
    return _worst(torch.tensor(list(violations), dtype=torch.float64))


def _prox_and_prior(field: Field, potential: Potential, y: Tensor) -> tuple[Tensor, Tensor]:
    x = field(y)
    return x, dot(y, x) - 0.5 * dot(x, x) - potential(y).double()


def _difference_of_pairings(v: Tensor, w: Tensor, jv: Tensor, jw: Tensor) -> Tensor:
    absolute = dot(w.abs(), jv.abs()) + dot(v.abs(), jw.abs())
    # pixels that do not touch pair to rounding only: below this share of |J| |v| |w| there is nothing to compare
    nothing = 1e-6 * (norm(w) * norm(jv) + norm(v) * norm(jw))
    return (dot(w, jv) - dot(v, jw)).abs() / (absolute + nothing + TINY)


def _line_integrals(field: Field, start: Tensor, end: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
    """(integrals of <f, dx>, integrals of its absolute value) along the pieces of a segment, [pieces, N] each."""
    run = end - start
    along = torch.zeros(pieces, len(run), dtype=torch.float64, device=run.device)
    absolute = torch.zeros_like(along)
    for piece in range(pieces):
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            rate = weight / (2 * pieces) * dot(field(start + (piece + (1 + node) / 2) / pieces * run), run)
            along[piece] += rate
            absolute[piece] += rate.abs()
    return along, absolute


def _worst(violation: Tensor) -> float:
    """The largest entry, at least 0; NaN if there is one."""
    return float(violation.clamp(min=0).amax()) if violation.numel() else 0.0
