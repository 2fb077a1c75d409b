"""How far to go along a direction, decided by slopes, which rounding spares, and by values where it can.

    g(s) = <r(u + s d), d>,  non-decreasing in s because phi is convex;     g(0) < 0
    a step is kept if   g(s) <= 0                                    phi has fallen, by convexity
                 or if  g(s) <= 1/2 |g(0)|  and  phi(s) <= phi(0) + rounding
    otherwise s becomes the root of the secant of g through 0 and s, within [s/10, s/2].
    A step with g(s) < 0.9 g(0) has met hardly any curvature: ten times the step is tried, while that helps.

Differences of phi vanish in rounding when the relative residual is near sqrt(eps), 3e-4 in float32;
those of g only near eps. That is why slopes decide (Hager and Zhang, SIAM J. Optim. 16 (2005), 170).
Long steps matter where f saturates: there iterates must reach infinity in few steps, to be found out.
Each sample has its own s; only those that are still searching are evaluated again.
"""

import torch
from torch import Tensor

from ...per_sample import broadcast, dot
from .equation import Equation, Point

OVERSHOOT = 0.5  # slope allowed behind the minimum, as a share of |g(0)|
SHORT = 0.9  # slope left by a step that was too short, as a share of |g(0)|
STRETCH, MAX_STRETCHES = 10.0, 4
MAX_TRIALS = 12  # the last step is between 2^-11 and 1e-11 of the first


def line_search(
    equation: Equation,
    point: Point,
    direction: Tensor,  # [n, ...]
) -> tuple[Point, Tensor]:
    """(point reached, which samples moved [n] bool); a sample without an acceptable step stays."""
    slope = dot(point.residual, direction)  # [n]
    downhill = (slope < 0) & direction.flatten(1).isfinite().all(1)
    direction = torch.where(broadcast(downhill, direction).bool(), direction, -point.residual)
    slope = torch.where(downhill, slope, -dot(point.residual, point.residual))

    before = point.without_tape()
    reached = equation.at(point.u + direction)
    slope_there, accepted = _judge(before, reached, direction, slope)
    short = accepted & (slope_there < SHORT * slope)
    if not bool((short | ~accepted).any()):
        return reached, accepted
    _stretch(equation, before, reached, direction, slope, short.nonzero()[:, 0])
    back = (~accepted).nonzero()[:, 0]
    accepted[back] = _shrink(equation, before, reached, direction, slope, slope_there, back)
    return reached, accepted


def _stretch(equation, before, reached, direction, slope, rows) -> None:
    """Lengthen the steps of the samples `rows` in `reached`, in place, while phi is sure to fall."""
    step = 1.0
    for _ in range(MAX_STRETCHES):
        if len(rows) == 0:
            return
        step *= STRETCH
        d = direction[rows]
        trial = equation.select(rows).at(before.u[rows] + step * d)
        slope_there = dot(trial.residual, d)
        good = (slope_there <= 0) & trial.phi.isfinite()
        reached.put_(rows[good], trial.select(good))
        rows = rows[good & (slope_there < SHORT * slope[rows])]


def _shrink(equation, before, reached, direction, slope, slope_there, rows) -> Tensor:
    """Shorten the steps of the samples `rows` in `reached`, in place; which of them found one, [m] bool."""
    found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    step, slope_there = torch.ones_like(slope[rows]), slope_there[rows]
    searching = (~found).nonzero()[:, 0]  # positions in `rows`
    for _ in range(MAX_TRIALS - 1):
        if len(searching) == 0:
            return found
        some = rows[searching]
        g0, g1 = slope[some], slope_there[searching]
        secant = (g0 / (g0 - g1)).nan_to_num(nan=0.1, posinf=0.1, neginf=0.1)  # NaN: too far to evaluate
        step[searching] = step[searching] * secant.clamp(0.1, 0.5)
        origin, d = before.select(some), direction[some]
        trial = equation.select(some).at(origin.u + broadcast(step[searching], d) * d)
        slope_there[searching], good = _judge(origin, trial, d, g0)
        reached.put_(some, trial)
        found[searching] = good
        searching = searching[~good]
    if len(searching):
        some = rows[searching]
        reached.put_(some, equation.select(some).at(before.u[some]))
    return found


def _judge(before: Point, there: Point, direction: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """(slope at the new point [n], whether the step is kept [n])."""
    slope_there = dot(there.residual, direction)
    falls = there.phi <= before.phi + before.rounding + there.rounding
    kept = (slope_there <= 0) | ((slope_there <= -OVERSHOOT * slope) & falls)
    return slope_there, kept & there.phi.isfinite()
