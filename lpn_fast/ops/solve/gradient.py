"""Accelerated gradient descent with restarts and a step per sample.

    v' = u - r(u) / L,     u' = v' + b (v' - v),     b = min(k / (k + 3), (1 - sqrt(m/L)) / (1 + sqrt(m/L)))

m = t + (1 - t) alpha is the strong convexity that is known; k counts steps since the last restart, which
comes when the momentum points uphill, <r(u), v' - v> > 0: with it the method also finds curvature that is
not known (O'Donoghue, Candes, Found. Comput. Math. 15 (2015), 715). L is the steepest slope
|r(u') - r(u)| / |u' - u| seen so far, so a step is one evaluation and there is no line search. A point
where phi is not finite, or where the slope exceeds RETRY L, is not used: the sample goes back with the new L.
"""

import torch
from torch import Tensor

from ...per_sample import broadcast, choose, dot, norm
from .equation import Equation, Point

RETRY = 2.0
MARGIN = 1.1  # L over the largest seen


class AcceleratedGradient:
    """Remembers v, L and k of every sample."""

    needs_tape = False
    max_iter = 2000
    patience = 300

    def __init__(self):
        self.v: Tensor | None = None  # [n, ...]
        self.slope = self.count = torch.empty(0)  # [n] float64, L and k; with v

    def step(self, equation: Equation, point: Point, rho: Tensor) -> tuple[Point, Tensor]:
        """(next point, which samples moved)."""
        if self.v is None:
            self.v, self.slope, self.count = point.u, torch.ones_like(rho), torch.zeros_like(rho)
        v = point.u - broadcast(1 / self.slope, point.u) * point.residual
        uphill = dot(point.residual, v - self.v) > 0
        count = torch.where(uphill, 0.0, self.count + 1)
        t = equation.strength.double()
        root = ((t + (1 - t) * equation.spec.alpha) / self.slope).sqrt().clamp(max=1.0)
        momentum = torch.minimum(count / (count + 3), (1 - root) / (1 + root))  # [n]
        new = equation.at(v + broadcast(momentum, v) * (v - self.v))

        seen = norm(new.residual - point.residual) / norm(new.u - point.u)
        finite = new.phi.isfinite() & seen.isfinite()
        good = finite & (seen <= RETRY * self.slope)
        # without progress the distance is zero and the slope unknown: the sample has stalled, which is good
        still = norm(new.u - point.u) == 0
        seen = torch.where(finite, MARGIN * seen, 4 * self.slope)
        self.slope = torch.where(still, self.slope, torch.maximum(self.slope, seen))
        self.v, self.count = choose(good, v, point.u), torch.where(good, count, 0.0)
        back = (~good).nonzero()[:, 0]
        if len(back):
            new.put_(back, point.select(back))
        return new, ~still

    def select(self, rows: Tensor) -> None:
        """Keep what is remembered of some samples."""
        if self.v is not None:
            self.v, self.slope, self.count = self.v[rows], self.slope[rows], self.count[rows]
