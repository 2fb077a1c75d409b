"""The plain fixed-point iteration, with the step that the Lipschitz constant of f allows, found by proof.

    u' = u - s r(u),     s = 1:   y' = y + x - f(y)  for inversion

r = grad phi with phi convex. If r has Lipschitz constant L and s <= 2/L, then |r| does not rise along the
iteration (co-coercivity: <r' - r, u' - u> >= |r' - r|^2 / L). So |r(u')| > |r(u)| proves s > 2/L: the sample
goes back and halves its s for good. s = 1 survives wherever L <= 2, which denoisers nearly satisfy; the
residual then falls by max(1 - m, L - 1) per evaluation of the network, m > 0 the least slope. Nothing is
remembered but s: least memory, most steps.
"""

import torch
from torch import Tensor

from ...per_sample import broadcast, norm
from .equation import Equation, Point

# Near its floor |r| moves up and down by rounding, which proves nothing.
ROUNDING = 1e-3
SHORTEST = 2.0**-40  # no network has a Lipschitz constant of 1e12: such a sample has met infinity


class FixedPoint:
    """Remembers the step s of every sample."""

    needs_tape = False
    max_iter = 5000
    patience = 300

    def __init__(self):
        self.s: Tensor | None = None  # [n] float64

    def step(self, equation: Equation, point: Point, rho: Tensor) -> tuple[Point, Tensor]:
        """(next point, which samples may go on)."""
        if self.s is None:
            self.s = torch.ones_like(rho)
        new = equation.at(point.u - broadcast(self.s, point.u) * point.residual)
        # NaN compares false, so a step that met infinity goes back too
        fine = (norm(new.residual) <= (1 + ROUNDING) * norm(point.residual)) & new.phi.isfinite()
        self.s = torch.where(fine, self.s, 0.5 * self.s)
        back = (~fine).nonzero()[:, 0]
        if len(back):
            new.put_(back, point.select(back))
        return new, self.s > SHORTEST

    def select(self, rows: Tensor) -> None:
        """Keep the steps of some samples."""
        if self.s is not None:
            self.s = self.s[rows]
