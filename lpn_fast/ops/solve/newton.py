"""Truncated Newton: conjugate gradients on the linearised equation, then a line search.

    ((t + mu) I + (1 - t) H(u)) d = -r(u),     |error| <= eta |r|,     u <- u + s d
    mu = DAMPING min(1, rho) where t = 0, else 0;     eta = min(1/2, sqrt(rho));     rho = |r| / |z|

eta -> 0 with the residual gives superlinear convergence (Dembo, Eisenstat, Steihaug, 1982). For t = 0 and
alpha = 0 the Hessian may be singular; a damping that vanishes with the residual keeps the steps finite and
the order of convergence (Li, Fukushima, Qi, Yamashita, Comput. Optim. Appl. 28 (2004), 131). H is the
Jacobian of a denoiser, without unit and of order one, so mu needs no scale.
"""

import torch
from torch import Tensor

from .equation import Equation, Point
from .line_search import line_search
from .linear import conjugate_gradient

DAMPING = 1e-2
LOOSEST = 0.5  # eta
MAX_CG = 100  # applications of H per step; an unfinished direction is still one of descent


class NewtonCG:
    """Stateless: a step depends on the point alone."""

    needs_tape = True
    max_iter = 100
    patience = 12  # steps without a better residual that end a sample

    def step(self, equation: Equation, point: Point, rho: Tensor) -> tuple[Point, Tensor]:
        """(next point, which samples moved)."""
        damping = torch.where(equation.strength == 0, DAMPING * rho.clamp(max=1.0), 0.0)  # [n]
        curvature = equation.linearised(point, damping.to(point.u.dtype))
        direction = conjugate_gradient(curvature, -point.residual, rho.sqrt().clamp(max=LOOSEST), MAX_CG)
        return line_search(equation, point, direction)

    def select(self, rows: Tensor) -> None:
        """Nothing is remembered."""
