"""Limited-memory BFGS with one memory per sample.

    d = -B r,  B from the last pairs  s = u' - u,  y = r(u') - r(u)  by the two-loop recursion   Nocedal, 1980

phi is convex, so <s, y> >= 0 always; pairs without measurable curvature are not used. First order only: an
iteration is one evaluation of the network, for networks whose Hessian products are dear.
"""

import torch
from torch import Tensor

from ...per_sample import column, dot
from .equation import Equation, Point
from .line_search import line_search

MEMORY = 10  # pairs; more help little and cost two images each


class LBFGS:
    """Remembers the last MEMORY pairs of every sample."""

    needs_tape = False
    max_iter = 500
    patience = 60

    def __init__(self):
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y [n, ...], 1 / <s, y> [n] or 0: unused

    def step(self, equation: Equation, point: Point, rho: Tensor) -> tuple[Point, Tensor]:
        """(next point, which samples moved)."""
        new, moved = line_search(equation, point, self._direction(point.residual))
        s, y = new.u - point.u, new.residual - point.residual
        sy = dot(s, y)
        usable = sy > torch.finfo(s.dtype).eps * dot(s, s)
        self.pairs = [*self.pairs[-MEMORY + 1 :], (s, y, torch.where(usable, 1 / sy, 0.0))]
        return new, moved

    def select(self, rows: Tensor) -> None:
        """Keep the memories of some samples."""
        self.pairs = [(s[rows], y[rows], inverse[rows]) for s, y, inverse in self.pairs]

    def _direction(self, residual: Tensor) -> Tensor:  # [n, ...] -> [n, ...]
        q, weights = -residual, []
        for s, y, inverse in reversed(self.pairs):
            a = inverse * dot(s, q)  # [n]
            q = q - column(a, y) * y
            weights.append(a)
        scale = torch.ones_like(dot(q, q))  # of the first guess of B: 1, else the newest curvature
        for _, y, inverse in self.pairs:
            scale = torch.where(inverse > 0, 1 / (inverse * dot(y, y)), scale)
        q = column(scale, q) * q
        for (s, y, inverse), a in zip(self.pairs, reversed(weights), strict=True):
            q = q + column(a - inverse * dot(y, q), s) * s
        return q
