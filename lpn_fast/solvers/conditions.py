"""The hypotheses of the convergence theorems, checked with numbers before a run.

PGD    x+ = prox_{tR}(x - eta A^T (A x - y)) minimises F = h + (t / eta) R, and for 0 < eta < 1 / ||A||^2
           F(x+) <= F(x) - (1 / (2 eta) - ||A||^2 / 2) ||x+ - x||^2,      R non-convex included.
FISTA  accepts an extrapolated point only where F falls enough, else takes the step above: the same hypothesis.
ADMM   with penalty rho minimises h + t rho R; its iterates converge to a fixed point for a softplus
       network, 0 < alpha < 1 and rho > ||A||^2, with the dual behind the smooth prox and a single
       non-smooth term                                                    arXiv 2310.14344.
DRS    with step gamma < 1 / ||A||^2 and relaxation in (0, 2): its envelope falls in every iteration for
       convex h and any R                                  Themelis, Patrinos, SIAM J. Optim. 30, 2020.
smooth gradient descent with backtracking: F = h + w R falls in every iteration for any R whose gradient is Lipschitz,
       which the gradient of R is, with 1 / alpha - 1, where psi is alpha-strongly convex.
HQS    alternates two exact minimisations of one function, which falls for every rho > 0.

Two hypotheses have no row because nothing else gets this far: every network of this package is a
softplus network, and a strength t outside (0, 1] is refused as an argument. The adjoint has one:
an unmatched A^T makes the data step the gradient of nothing. It is measured at one random pair,
which can expose a wrong adjoint and cannot prove a right one. ||A|| is a proved bound unless the row says
that it was estimated, or with which probability its bound fails (physics/base.py). Where samples have their
own steps or operators, the row shows the sample that is worst off.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import display
from .problem import InverseProblem

# Relative rise that cancellation between data term and prior can leave of an objective that stayed where it was.
ROUNDING_OF_OBJECTIVE = 1e-3
# Rounding leaves 1e-8 (float32) or less of a matched pair at image size; an unmatched projector shows 1e-2.
ADJOINT_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Condition:
    """One hypothesis.

    Attributes
    ----------
    name, required, actual : str
        What the theorem requires and what the run has.
    holds : bool
        Whether that is enough.
    factor : float, optional
        How many times the run is outside: by this number the step would have to shrink, or the penalty to
        grow, to reach the limit. None where the condition holds or is no matter of size.
    """

    name: str
    required: str
    actual: str
    holds: bool
    factor: float | None = None

    @property
    def verdict(self) -> str:
        """`yes`, `no`, or `no (10.5x outside)`."""
        if self.holds:
            return "yes"
        return "no" if self.factor is None else f"no ({self.factor:.3g}x outside)"


@dataclass(frozen=True, repr=False)
class Conditions:
    """The hypotheses of one theorem; `print` shows them as a table.

    Examples
    --------
    >>> print(Conditions("PGD", (Condition("step size", "0 < eta < 1", "2", False, factor=2.0),)))
    PGD        required     actual  holds
    step size  0 < eta < 1  2       no (2x outside)
    """

    theorem: str
    rows: tuple[Condition, ...]

    @property
    def all_hold(self) -> bool:
        """Whether the theorem applies to the run."""
        return all(row.holds for row in self.rows)

    def after(
        self,
        objective: Tensor,  # (K, N) float64
        halvings: Tensor,  # (N,) int64
    ) -> "Conditions":
        """What is known after a run: steps that had to be halved, and objectives that ended above their start."""
        rows = self.rows
        if bool((halvings > 0).any()):
            count, most = int((halvings > 0).sum()), int(halvings.max())
            found = f"objective rose in {count} of {len(halvings)} samples, step halved up to {most} times"
            rows = tuple(
                replace(row, holds=False, actual=f"{row.actual}; {found}") if row.name == "step size" else row
                for row in rows
            )
        first, last = objective[0], objective[-1]  # (N,)
        risen = last - first > ROUNDING_OF_OBJECTIVE * torch.maximum(first.abs(), last.abs())
        if bool(risen.any()):
            found = f"above it in {int(risen.sum())} of {len(risen)} samples"
            rows = (*rows, Condition("objective", "ends at most where it was", found, False))
        return replace(self, rows=rows)

    def raise_unless_all_hold(self) -> None:
        """Raise a ValueError that names every condition that does not hold, and by how much."""
        failing = "; ".join(
            f"{c.name} must satisfy {c.required}, got {c.actual}"
            + ("" if c.factor is None else f", outside by a factor of {c.factor:.3g}")
            for c in self
            if not c.holds
        )
        if failing:
            raise ValueError(f"{self.theorem} is outside its convergence theorem: {failing}")

    def __iter__(self) -> Iterator[Condition]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Condition:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no condition {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def __repr__(self) -> str:
        lines = [(self.theorem, "required", "actual", "holds")]
        lines += [(row.name, row.required, row.actual, row.verdict) for row in self.rows]
        return display.aligned(lines)


def gradient_conditions(problem: InverseProblem, step_size: float | Tensor, theorem: str = "PGD") -> Conditions:
    """The hypotheses of sufficient decrease for proximal gradient descent, plain or accelerated."""
    row = _step("step size", "eta", problem, step_size)
    return Conditions(theorem, (row, _adjoint(problem)))


def admm_conditions(problem: InverseProblem, rho: float | Tensor, alpha: float, order: str, terms: int) -> Conditions:
    """The hypotheses of convergence to a fixed point for ADMM."""
    excess, rho, curvature = _worst(problem.norm**2 / rho, rho, problem.norm**2)
    holds = excess < 1
    penalty = Condition(
        "penalty",
        f"rho > ||A||^2 = {curvature:.4g}{_provenance(problem)}",
        f"{rho:.4g}",
        holds,
        None if holds else excess,
    )
    convexity = Condition("strong convexity", "0 < alpha < 1", f"{alpha:.4g}", 0 < alpha < 1)
    rows = [penalty, convexity, _adjoint(problem)]
    if order == "data-prior-dual":  # the two others are the same cycle, entered at different places
        rows.append(Condition("update order", "dual behind the data prox", "dual behind the learned prox", False))
    if terms > 1:
        rows.append(Condition("terms", "one non-smooth term", f"{terms}", False))
    return Conditions("ADMM", tuple(rows))


def drs_conditions(problem: InverseProblem, step_size: float | Tensor, relaxation: float) -> Conditions:
    """The hypotheses of envelope decrease for Douglas-Rachford splitting."""
    relaxed = Condition("relaxation", "0 < lambda < 2", f"{relaxation:.4g}", 0 < relaxation < 2)
    return Conditions("DRS", (_step("step size", "gamma", problem, step_size), relaxed, _adjoint(problem)))


def smooth_conditions(problem: InverseProblem, alpha: float) -> Conditions:
    """The hypotheses of decrease for gradient descent with backtracking on h + w R."""
    smooth = Condition("smooth prior", "0 < alpha <= 1", f"{alpha:.4g}", 0 < alpha <= 1)
    return Conditions("gradient", (smooth, _adjoint(problem)))


def hqs_conditions(problem: InverseProblem, rho: float | Tensor) -> Conditions:
    """The hypotheses of decrease for half-quadratic splitting."""
    smallest = float(rho.min()) if isinstance(rho, Tensor) else rho
    return Conditions("HQS", (Condition("penalty", "rho > 0", f"{smallest:.4g}", smallest > 0), _adjoint(problem)))


def _step(name: str, symbol: str, problem: InverseProblem, step_size: float | Tensor) -> Condition:
    excess, step, limit = _worst(step_size * problem.norm**2, step_size, 1 / problem.norm**2)
    holds = 0 < step and excess < 1
    return Condition(
        name,
        f"0 < {symbol} < 1/||A||^2 = {limit:.4g}{_provenance(problem)}",
        f"{step:.4g}",
        holds,
        None if holds else excess,
    )


def _worst(excess: float | Tensor, *values: float | Tensor) -> tuple[float, ...]:
    """The excess of the sample that has most of it, and the other values of that sample."""
    if not isinstance(excess, Tensor):
        return (float(excess), *map(float, values))
    worst = int(excess.argmax())
    return (float(excess[worst]), *(float(v[worst]) if isinstance(v, Tensor) else float(v) for v in values))


def _provenance(problem: InverseProblem) -> str:
    return f" ({problem.norm_certainty})" if problem.norm_certainty else ""


def _adjoint(problem: InverseProblem) -> Condition:
    allowed = ADJOINT_TOL[problem.x0.dtype]
    mismatch = problem.adjoint_mismatch
    return Condition("matched adjoint", f"mismatch <= {allowed:.0e}", f"{mismatch:.1e}", mismatch <= allowed)
