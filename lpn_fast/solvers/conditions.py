"""The hypotheses of the convergence theorems, checked with numbers before a run.

PGD    x+ = prox_{tR}(x - eta A^T (A x - y)) minimises F = h + (t / eta) R, and for 0 < eta < 1 / ||A||^2
           F(x+) <= F(x) - (1 / (2 eta) - ||A||^2 / 2) ||x+ - x||^2,      R non-convex included.
ADMM   with penalty rho minimises h + t rho R; its iterates converge to a fixed point for a softplus
       network, 0 < alpha < 1 and rho > ||A||^2                           arXiv 2310.14344.

Two hypotheses have no row because nothing else gets this far: every network of this package is a
softplus network, and a strength t outside (0, 1] is refused as an argument. The adjoint has one:
an unmatched A^T makes the data step the gradient of nothing. It is measured at one random pair,
which can expose a wrong adjoint and cannot prove a right one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lpn_fast.solvers.problem import Problem

# Rounding leaves 1e-8 (float32) or less of a matched pair at image size; an unmatched projector shows 1e-2.
ADJOINT_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Condition:
    """One hypothesis: its name, what the theorem requires, what the run has, whether that is enough."""

    name: str
    required: str
    actual: str
    holds: bool


@dataclass(frozen=True)
class Conditions:
    """The hypotheses of one theorem; ``print`` shows them as a table.

    Examples
    --------
    >>> print(Conditions("PGD", (Condition("step size", "0 < eta < 1", "2", False),)))
    PGD        required     actual  holds
    step size  0 < eta < 1  2       no
    """

    theorem: str
    rows: tuple[Condition, ...]

    @property
    def all_hold(self) -> bool:
        """Whether the theorem applies to the run."""
        return all(row.holds for row in self.rows)

    def raise_unless_all_hold(self) -> None:
        """Raise a ValueError that names every condition that does not hold."""
        failing = "; ".join(f"{c.name} must satisfy {c.required}, got {c.actual}" for c in self if not c.holds)
        if failing:
            raise ValueError(f"{self.theorem} is outside its convergence theorem: {failing}")

    def __iter__(self) -> Iterator[Condition]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Condition:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no condition {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def __str__(self) -> str:
        lines = [(self.theorem, "required", "actual", "holds")]
        lines += [(row.name, row.required, row.actual, "yes" if row.holds else "no") for row in self.rows]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def pgd_conditions(problem: Problem, step_size: float) -> Conditions:
    """The hypotheses of sufficient decrease for proximal gradient descent."""
    limit = 1 / problem.norm**2
    step = Condition(
        "step size",
        f"0 < eta < 1/||A||^2 = {limit:.4g}{_provenance(problem)}",
        f"{step_size:.4g}",
        0 < step_size < limit,
    )
    return Conditions("PGD", (step, _adjoint(problem)))


def admm_conditions(problem: Problem, rho: float, alpha: float) -> Conditions:
    """The hypotheses of convergence to a fixed point for ADMM."""
    curvature = problem.norm**2
    penalty = Condition(
        "penalty", f"rho > ||A||^2 = {curvature:.4g}{_provenance(problem)}", f"{rho:.4g}", rho > curvature
    )
    convexity = Condition("strong convexity", "0 < alpha < 1", f"{alpha:.4g}", 0 < alpha < 1)
    return Conditions("ADMM", (penalty, convexity, _adjoint(problem)))


def _provenance(problem: Problem) -> str:
    return " (||A|| estimated)" if problem.norm_is_estimated else ""


def _adjoint(problem: Problem) -> Condition:
    allowed = ADJOINT_TOL[problem.x0.dtype]
    mismatch = problem.adjoint_mismatch
    return Condition("matched adjoint", f"mismatch <= {allowed:.0e}", f"{mismatch:.1e}", mismatch <= allowed)
