"""Conjugate gradients on independent linear systems that are cut out of the batch as they finish.

    M_n d_n = b_n,  M symmetric positive (semi-)definite                            Hestenes, Stiefel, 1952

A sample ends when |b - M d| <= tol |b|, or when it meets a direction p with <p, M p> no larger than
rounding: M is then singular as far as this arithmetic can tell. What it has reached by then is a descent
direction all the same. Unlike the data prox (physics/cg.py) the systems here differ in length of
iteration by an order of magnitude, and one application of M is a sweep over a network, so finished
samples must not be paid for.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ...per_sample import broadcast, dot

# Asking which samples are left makes a GPU wait. Idle steps change nothing, so ask every fourth time,
COMPACT_EVERY = 4
# and copy the survivors together once they are this few: below, the copy of the tape pays for itself.
COMPACT_FRACTION = 0.7


class LinearMap(Protocol):
    """M on every sample, and the same for some samples only."""

    def __call__(self, v: Tensor) -> Tensor: ...

    def select(self, rows: Tensor) -> "LinearMap": ...


def conjugate_gradient(
    apply: LinearMap,
    b: Tensor,  # [n, ...]
    tol: Tensor | float,  # [n]
    max_iter: int,
    observe: Callable[[int], None] | None = None,  # called with the number of samples of each application
) -> Tensor:  # [n, ...]
    """d with M d = b up to `tol`, per sample; zero where b is zero or not finite."""
    solution = torch.zeros_like(b)
    rows = torch.arange(len(b), device=b.device)  # which samples the arrays below hold
    d, r, p = torch.zeros_like(b), b, b
    rr = dot(b, b)  # [n]
    target = (tol**2 * rr) if isinstance(tol, float) else tol.double() ** 2 * rr
    active = (rr > target) & rr.isfinite()
    floor = torch.finfo(b.dtype).eps  # curvature below eps |p|^2 is rounding

    for k in range(max_iter):
        if k % COMPACT_EVERY == 0:
            left = int(active.sum())
            if left == 0:
                break
            if left < COMPACT_FRACTION * len(rows):
                solution[rows] = d
                apply, rows, target = apply.select(active), rows[active], target[active]
                d, r, p, rr, active = d[active], r[active], p[active], rr[active], active[active]
        if observe is not None:
            observe(len(rows))
        q = apply(p)
        curvature = dot(p, q)
        active = active & (curvature > floor * dot(p, p))
        step = torch.where(active, rr / curvature, 0.0)
        d = d + broadcast(step, d) * p
        r = r - broadcast(step, r) * q
        rr_next = torch.where(active, dot(r, r), rr)
        p = r + broadcast(torch.where(active, rr_next / rr, 0.0), p) * p
        rr = rr_next
        active = active & (rr > target)

    solution[rows] = d
    return solution
