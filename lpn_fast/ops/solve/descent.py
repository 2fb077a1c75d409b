"""Repeat a method's step until every sample has its verdict.

A sample leaves, and is cut out of all arrays, when
    |r(u)| <= tol scale                            CONVERGED      scale = |z|, and max(|z|, |f(z)|) for t > 0
    every root is farther from z than the reach    OUTSIDE        reach = radius max(|z|, sqrt(entries of z))
    its residual no longer falls                   STALLED
    it has taken max_iter steps                    ITERATIONS
    it is not finite                               INVALID
r is monotone, so for any root u* and any centre c:  <r(u), u - u*> >= 0, hence

    |u* - c| >= -<r(u), u - c> / |r(u)|

is a *proved* bound at every u. Outside the range of f the iterates run to infinity along -r with r bounded
away from zero, the bound grows with them, and the sample ends with a proof instead of running on. The
centre is z: for t = 0, u* - z is the gradient of R at z, which is then longer than the reach. The scale of
t > 0 is the size of the terms of the equation: a prox at z near 0 has a residual too, that of rounding f.

The one thing the CPU waits for in a step, apart from the line search, is "does any sample leave?".
"""

import enum
import math
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from ...per_sample import dot, norm
from .equation import Equation, Point

PROGRESS = 0.95  # a residual below this fraction of the best one is progress


class Verdict(enum.IntEnum):
    """How the search for a solution ended, per sample.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> found = lf.invert(lf.MLPLPN(dim=3, alpha=0.1), torch.randn(5, 3))
    >>> bool((found.verdict == lf.Verdict.CONVERGED).all())
    True
    """

    CONVERGED = 0  # the residual meets the tolerance
    ITERATIONS = 1  # did not converge in max_iter steps
    STALLED = 2  # the residual no longer falls: rounding, or a solution at infinity
    OUTSIDE = 3  # proved: no solution within the radius; x is outside the range of f, or all but
    INVALID = 4  # NaN or infinity, in the input or met on the way


_SEARCHING = -1


class Method(Protocol):
    """One step from a point, for samples that do not see each other."""

    needs_tape: bool
    max_iter: int
    patience: int

    def step(self, equation: Equation, point: Point, rho: Tensor) -> tuple[Point, Tensor]: ...

    def select(self, rows: Tensor) -> None: ...


@dataclass(frozen=True)
class EquationSolution:
    """Per sample: where the search ended, and what is known there."""

    u: Tensor  # [N, ...]
    f: Tensor  # [N, ...] f(u)
    psi: Tensor  # [N]
    residual: Tensor  # [N] float64, |r(u)| / scale; |r(u)| where that is 0
    iterations: Tensor  # [N] int64
    verdict: Tensor  # [N] int64, a Verdict

    @property
    def converged(self) -> Tensor:
        """[N] bool."""
        return self.verdict == Verdict.CONVERGED

    def put_(self, rows: Tensor, other: "EquationSolution") -> "EquationSolution":
        """Overwrite the samples `rows` by those of `other`, in place. Returns self."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)
        return self


@torch.no_grad()
def descend(
    equation: Equation,
    start: Tensor,  # [N, ...]
    method: Method,
    *,
    tol: float,
    max_iter: int,
    radius: float | None,  # None: solutions are known to exist
) -> EquationSolution:
    """Solve for every sample, each stopped on its own."""
    samples, device = len(start), start.device
    rows = torch.arange(samples, device=device)
    scale = norm(equation.z)  # [n]
    # intensities of order one set the least reach: at x near 0 the gradient of R need not be near 0
    reach = (math.inf if radius is None else radius) * scale.clamp(min=math.sqrt(equation.z[:1].numel()))
    solution = EquationSolution(
        start.clone(),
        torch.full_like(start, torch.nan),
        start.new_full((samples,), torch.nan),
        torch.full_like(scale, torch.nan),
        torch.zeros(samples, dtype=torch.int64, device=device),
        torch.full((samples,), int(Verdict.INVALID), device=device),
    )
    if samples == 0:
        return solution
    point = equation.at(start)
    scale = torch.where(equation.strength > 0, torch.maximum(scale, norm(point.f)), scale)
    scale = torch.where(scale == 0, 1.0, scale)
    best, waited = torch.full_like(scale, torch.inf), torch.zeros_like(rows)
    moved = torch.ones_like(rows, dtype=torch.bool)

    for k in range(max_iter + 1):
        size = norm(point.residual)
        rho = size / scale
        improved = rho <= PROGRESS * best
        best = torch.where(improved, rho, best)
        waited = torch.where(improved, 0, waited + 1)
        verdict = torch.full_like(rows, _SEARCHING if k < max_iter else Verdict.ITERATIONS)
        verdict[(waited > method.patience) | ~moved] = Verdict.STALLED
        distance = -dot(point.residual, point.u - equation.z) / size
        verdict[distance > reach] = Verdict.OUTSIDE
        verdict[rho <= tol] = Verdict.CONVERGED
        verdict[~(rho.isfinite() & point.phi.isfinite())] = Verdict.INVALID
        leaving = verdict != _SEARCHING
        if bool(leaving.any()):
            left = rows[leaving]
            gone = point.without_tape().select(leaving)
            count = torch.full_like(left, k)
            solution.put_(left, EquationSolution(gone.u, gone.f, gone.psi, rho[leaving], count, verdict[leaving]))
            staying = ~leaving
            rows = rows[staying]
            if len(rows) == 0:
                break
            equation, point = equation.select(staying), point.select(staying)
            method.select(staying)
            rho, scale, reach, best, waited = (v[staying] for v in (rho, scale, reach, best, waited))
        point, moved = method.step(equation, point, rho)
    return solution
