"""The prox of an explicit prior, t R: the zero x of  x + t grad R(x) - y,  and linear systems with I + t H.

    phi(x) = 1/2 |x - y|^2 + t R(x)  is (1 - t mu)-strongly convex:  |x - x*| <= |x + t grad R(x) - y| / (1 - t mu)

L-BFGS, one memory per sample (Nocedal, 1980). All pairs have <s, y> >= (1 - t mu) |s|^2 > 0, so none is refused. A
step is accepted by slopes alone, at most 0.8 of the first one upwards, which for quadratics is the condition of Armijo
(Hager and Zhang, 2005): differences of objectives drown in rounding long before residuals do.

The start of its recursion, and the preconditioner of the conjugate gradients, is

    B = I - 1/k^d E'^T sum_p A^T diag(1 - 1 / (1 + t SHARE D)) A patch_p,     D: curvature at zero along the atoms,

as one correlation with its (2k - 1)^d kernel, made even along all axes, on the image and its mirror images: the cosine
transform diagonalises that, with positive eigenvalues because no frequency counts more than once in A.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...per_sample import broadcast, choose, dot, norm
from . import potentials
from .potentials import Potentials

MEMORY = 8
SHARE = 0.12  # part of the curvature at zero that patches have in the mean; 0.1 to 0.3 differ by a few passes
MOST_TRIALS = 12  # steps along one direction
STEEPEST = 0.8  # slope after a step over the one before it


@dataclass(frozen=True)
class SolveLimits:
    """tol: bound on |x + t grad R(x) - y| / |y|; max_iter: most steps."""

    tol: float
    max_iter: int = 500


@dataclass(frozen=True)
class Solution:
    """x, (N, C, H, W); its gradient of R; |x + t grad R(x) - y|, (N,) float64; steps (N,); converged (N,) bool."""

    x: Tensor
    gradient: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


class Preconditioner:
    """B of the module's text, for some samples."""

    def __init__(self, pot: Potentials, weight: Tensor, k: int, like: Tensor):  # weight (N,), like (N, C, ...)
        channels, axes = like.shape[1], tuple(range(2 - like.dim(), 0))
        curvature = pot.curvature()  # [B, n]
        if pot.coarse is not None:  # what the constant atoms meet there
            curvature = curvature.clone()
            curvature[:, :channels] = pot.coarse.curvature()[:, channels:].mean(1, keepdim=True)
        scale = 1 - 1 / (1 + SHARE * weight[:, None] * curvature)  # [N, n]
        # sum over atoms of  scale_j a_j (x) a_j  correlated with itself: [N, C, C, 2k - 1, 2k - 1]
        atoms, size = pot.atoms.view(-1, channels, *(k,) * len(axes)), (2 * k - 1,) * len(axes)
        spectrum = torch.fft.rfftn(atoms, s=size, dim=axes)
        product = torch.einsum("nj,jc...,jd...->ncd...", scale.to(spectrum.dtype), spectrum, spectrum.conj())
        kernel = -torch.fft.irfftn(product, s=size, dim=axes).roll((k - 1,) * len(axes), axes) / k ** len(axes)
        kernel[(..., *(k - 1,) * len(axes))] += torch.eye(channels).to(kernel)
        for axis, side in zip(axes, like.shape[2:], strict=True):
            kernel = (kernel + kernel.flip(axis)) / 2
            # what a frequency of the image with its mirror image, 2 side pixels, is multiplied by
            frequencies = torch.arange(side + 1 if axis == -1 else 2 * side, device=like.device)
            offsets = torch.arange(1 - k, k, device=like.device)
            waves = torch.cos(torch.pi / side * (frequencies[:, None] * offsets % (2 * side)).double()).to(kernel)
            kernel = torch.movedim(torch.movedim(kernel, axis, -1) @ waves.T, -1, axis)
        self.spectrum, self.axes = kernel, axes  # [N, C, C, 2 H, W + 1]

    def __call__(self, v: Tensor) -> Tensor:
        mirrored = v
        for axis in self.axes:
            mirrored = torch.cat([mirrored, mirrored.flip(axis)], axis)
        transformed = (self.spectrum * torch.fft.rfftn(mirrored, dim=self.axes)[:, None]).sum(2)
        result = torch.fft.irfftn(transformed, s=mirrored.shape[2:], dim=self.axes)
        for axis, side in zip(self.axes, v.shape[2:], strict=True):
            result = result.narrow(axis, 0, side)
        return result

    def keep(self, rows: Tensor) -> None:
        if len(self.spectrum) > 1:
            self.spectrum = self.spectrum[rows]


@torch.no_grad()
def solve(pot: Potentials, y: Tensor, weight: Tensor, k: int, limits: SolveLimits, start: Tensor | None) -> Solution:
    """Zeros of x + t grad R(x) - y for all samples; t = weight, (N,); x begins at `start`, or at y."""
    x = (y if start is None else start).clone()
    gradient = torch.empty_like(x)
    residual = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    iterations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    size = norm(y).clamp(min=torch.finfo(y.dtype).tiny)
    rows = torch.arange(len(x), device=x.device)  # samples still at work
    if not len(rows):
        return Solution(x, gradient, residual, iterations, residual < 0)
    state = _State(pot, y, weight, k, x)
    for step in range(limits.max_iter + 1):
        now = norm(state.r)
        better = now < residual[rows]
        taken = rows[better]
        x[taken], gradient[taken], residual[taken] = state.x[better], state.gradient[better], now[better]
        iterations[rows] = step
        active = (residual[rows] > limits.tol * size[rows]) & now.isfinite() & ~state.stuck
        if not bool(active.any()) or step == limits.max_iter:
            break
        if not bool(active.all()):
            rows = rows[active]
            state.keep(active)
        state.advance()
    return Solution(x, gradient, residual, iterations, residual <= limits.tol * size)


class _State:
    """Iterates of the samples at work, and their memories."""

    def __init__(self, pot: Potentials, y: Tensor, weight: Tensor, k: int, x: Tensor):
        self.pot, self.y, self.weight, self.k = pot, y, weight, k
        self.precondition = Preconditioner(pot, weight, k, y)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y [n, ...], 1 / <s, y> [n]
        self.x = x
        self.gradient, self.r = self._at(x, slice(None))
        self.stuck = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def _at(self, x: Tensor, rows) -> tuple[Tensor, Tensor]:
        gradient = potentials.gradient(self.pot.of(rows), x, self.k)
        return gradient, x - self.y[rows] + broadcast(self.weight[rows], x) * gradient

    def keep(self, rows: Tensor) -> None:
        self.pot, self.y, self.weight = self.pot.of(rows), self.y[rows], self.weight[rows]
        self.x, self.gradient, self.r, self.stuck = (t[rows] for t in (self.x, self.gradient, self.r, self.stuck))
        self.pairs = [(s[rows], y[rows], inverse[rows]) for s, y, inverse in self.pairs]
        self.precondition.keep(rows)

    def advance(self) -> None:
        """One step of every sample."""
        d = self._direction()
        slope = dot(self.r, d)  # [n], negative
        size = torch.ones_like(slope)
        x, rows = self.x + d, torch.arange(len(self.x), device=d.device)
        gradient, r = self._at(x, slice(None))
        for _ in range(MOST_TRIALS):
            after = dot(r[rows], d[rows])
            rejected = ~(after <= -STEEPEST * slope[rows])  # NaN counts
            if not bool(rejected.any()):
                break
            ratio = (slope[rows] / (slope[rows] - after)).nan_to_num(0.1).clamp(0.1, 0.7)
            rows, ratio = rows[rejected], ratio[rejected]
            size[rows] *= ratio
            x[rows] = self.x[rows] + broadcast(size[rows], d) * d[rows]
            gradient[rows], r[rows] = self._at(x[rows], rows)
        s, change = x - self.x, r - self.r
        product = dot(s, change)
        self.stuck = ~(product > 0)  # rounding is all that is left
        self.pairs = [*self.pairs[-MEMORY + 1 :], (s, change, torch.where(self.stuck, 0.0, 1 / product))]
        self.x, self.gradient, self.r = x, gradient, r

    def _direction(self) -> Tensor:
        q, weights = -self.r, []
        for s, y, inverse in reversed(self.pairs):
            a = inverse * dot(s, q)
            q = q - broadcast(a, y) * y
            weights.append(a)
        q = self.precondition(q)
        if self.pairs:
            _, y, inverse = self.pairs[-1]
            scale = 1 / (inverse * dot(y, self.precondition(y)))
            q = broadcast(torch.where(inverse > 0, scale, 1.0), q) * q
        for (s, y, inverse), a in zip(self.pairs, reversed(weights), strict=True):
            q = q + broadcast(a - inverse * dot(y, q), s) * s
        return q


@torch.no_grad()
def linear_solve(
    pot: Potentials, x: Tensor, weight: Tensor, v: Tensor, k: int, tol: float, max_iter: int = 500
) -> Tensor:
    """q with (I + t H) q = v, H the Hessian of R at x, by conjugate gradients to a residual of tol |v|."""
    precondition = Preconditioner(pot, weight, k, x)
    q, r = torch.zeros_like(v), v.clone()
    z = precondition(r)
    d, product = z, dot(r, z)
    limit = tol * norm(v)
    for _ in range(max_iter):
        running = norm(r) > limit
        if not bool(running.any()):
            break
        hd = d + broadcast(weight, d) * potentials.hvp(pot, x, d, k)
        step = torch.where(running, product / dot(d, hd), 0.0)
        q = q + broadcast(step, d) * d
        r = r - broadcast(step, d) * hd
        z = precondition(r)
        before, product = product, dot(r, z)
        d = choose(running, z + broadcast(product / before.clamp(min=torch.finfo(torch.float64).tiny), d) * d, d)
    return q
