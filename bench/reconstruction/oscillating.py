"""Operators outside the o-minimal class: does plug-and-play still converge?

Convergence proofs of the iterates use the Kurdyka-Lojasiewicz inequality, and get it from definability of the
objective in an o-minimal structure. Functions that oscillate infinitely often near a point are not definable.
Three cases, of growing malice:

    linear      A_ij = sin(1 / (s_i - t_j)) / sqrt(n): wild in its parameters, yet for fixed ones a linear map, hence
                semialgebraic. The theorem covers it; here it is tried.
    pointwise   A(x) = K g(x), g(v) = v + c w^4 sin(1/w), w = v - 1/2: C^{1,1} and not definable; the images cross 1/2
    spiral      h(x) = e^{-1/(1 - r^2)} (1 - b(r) sin(angle - 1/(1 - r^2))), two pixels, inside r < 1: the gradient
                flow of h alone winds around the circle for ever (Palis, de Melo 1982; Absil, Mahony, Andrews 2005)

Descent needs no such structure: for eta < 1 / L it holds in all three. What could fail is that the iterates have
one limit. So the rows tell the length of the path, in all and over its second half, which is finite if they converge,
and the last relative step.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

import lpn_fast as lf
from lpn_fast.per_sample import norm
from lpn_fast.physics import Blur, Physics

from ..experiments.provenance import where

SIDE, AMPLITUDE, NOISE = 24, 1.5, 0.05


class SineOfReciprocal(Physics):
    """The linear case, on images of 24 x 24 pixels flattened; s and t interleave, so s_i - t_j is small but not 0."""

    def __init__(self, measurements: int):
        t = torch.linspace(0, 1, SIDE**2, dtype=torch.float64)
        s = torch.linspace(0.1, 0.9, measurements, dtype=torch.float64) + 0.37 / SIDE**2
        self.matrix = (1 / (s[:, None] - t)).sin() / SIDE  # (M, 576)

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(-1, 1, SIDE, SIDE)

    def norm(self) -> float:
        return float(torch.linalg.matrix_norm(self.matrix, 2)) * (1 + 1e-9)


def run(model, iterations: int, show=print) -> list[dict]:
    """One row per case and solver."""
    model = copy.deepcopy(model).double()
    torch.manual_seed(0)
    x = Blur.gaussian(2.0).A(torch.rand(2, 1, SIDE, SIDE, dtype=torch.float64))
    rows = []
    operator = SineOfReciprocal(SIDE**2 // 2)
    y = operator.A(x)
    y = y + NOISE * torch.randn_like(y)
    for name in ("pgd", "fista", "admm", "drs", "hqs"):
        path = []
        solver = getattr(lf.solvers, name)
        result = solver(
            y, operator, model, noise=NOISE, max_iter=iterations, tol=0.0,
            callback=lambda k, image, objective, path=path: path.append(image),
        )  # fmt: skip
        rows.append(_row("linear", name, torch.stack(path), result.objective, result.conditions.all_hold))
        show(_line(rows[-1]))
    for case, gradient, value, lipschitz, start in (_pointwise(x), _spiral()):
        path, objective = descend(model, gradient, value, lipschitz, start, iterations)
        rows.append(_row(case, "pgd", path, objective, True))
        show(_line(rows[-1]))
    path, objective = descend(None, *_spiral()[1:], iterations)
    rows.append(_row("spiral, no prior", "gradient", path, objective, True))
    show(_line(rows[-1]))
    return rows


@torch.no_grad()
def descend(
    model,
    gradient: Callable[[Tensor], Tensor],
    value: Callable[[Tensor], Tensor],
    lipschitz: float,
    x: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """(images (k, N, ...), objectives (k, N)) of PGD on h + R / eta for a smooth h, R the model's (None: no prior)."""
    eta = 0.95 / lipschitz
    path, objectives = [], []
    for _ in range(iterations):
        z = x - eta * gradient(x)
        x, prior = (z, torch.zeros(len(z))) if model is None else model.prox_and_prior(z, sigma=0.03)
        path.append(x)
        objectives.append(value(x) + prior / eta)
    return torch.stack(path), torch.stack(objectives)


def _pointwise(truth: Tensor):
    blur = Blur.gaussian(1.0)

    def g(v):
        w = v - 0.5
        return torch.where(w == 0, v, v + AMPLITUDE * w**4 * torch.sin(1 / w))

    def slope(v):
        w = v - 0.5
        return torch.where(w == 0, 1.0, 1 + AMPLITUDE * (4 * w**3 * torch.sin(1 / w) - w**2 * torch.cos(1 / w)))

    y = blur.A(g(truth))
    y = y + 0.02 * torch.randn_like(y)

    def gradient(x):
        return slope(x) * blur.A_adjoint(blur.A(g(x)) - y)

    def value(x):
        return 0.5 * norm(blur.A(g(x)) - y).square()

    # |w| <= 1 holds for all iterates: slope <= 1 + 5 c |w|^2, curvature of g <= c (12 w^2 + 6 |w| + 1), residual <= 1
    lipschitz = (1 + AMPLITUDE * 1.25 / 4) ** 2 + AMPLITUDE * (12 / 4 + 6 / 2 + 1)
    return "pointwise", gradient, value, lipschitz, torch.full_like(truth, 0.5 + 1e-3)


def _spiral():
    """The Mexican hat; both pixels of a 1 x 2 image, around 1/2."""

    def value(x):
        with torch.enable_grad():
            return _hat(x - 0.5).detach()

    def gradient(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(_hat(x - 0.5).sum(), x)[0]

    start = torch.tensor([[[[0.5 + 0.45, 0.5 + 0.2]]]], dtype=torch.float64)
    return "spiral", gradient, value, 60.0, start


def _hat(v: Tensor) -> Tensor:  # (N, 1, 1, 2) -> (N,)
    a, b = v.flatten(1).unbind(1)
    square = a * a + b * b
    inside = square < 1
    gap = torch.where(inside, 1 - square, 0.5)
    share = 4 * square**2 / (4 * square**2 + gap**4)
    return torch.where(inside, torch.exp(-1 / gap) * (1 - share * torch.sin(torch.atan2(b, a) - 1 / gap)), 0.0)


def _row(case: str, solver: str, path: Tensor, objective: Tensor, inside: bool) -> dict:
    steps = torch.stack([norm(b - a) for a, b in zip(path, path[1:], strict=False)])  # (k - 1, N)
    rise = (objective[1:] - objective[:-1]).max() / objective.abs().max()
    half = len(steps) // 2
    return {
        "case": case,
        "solver": solver,
        "iterations": len(path),
        "conditions_hold": inside,
        "last_relative_step": (steps[-1] / norm(path[-1])).max().item(),
        "path_length": steps.sum(0).max().item(),
        "path_length_second_half": steps[half:].sum(0).max().item(),
        "largest_relative_rise_of_objective": max(0.0, rise.item()),
        **where({"side": SIDE, "amplitude": AMPLITUDE, "noise": NOISE}),
    }


def _line(row: dict) -> str:
    return (
        f"{row['case']:<17}{row['solver']:<9}{row['iterations']:>6} iterations, "
        f"last step {row['last_relative_step']:.1e}, "
        f"path {row['path_length']:.3f}, of it {row['path_length_second_half']:.1e} in the second half, "
        f"objective rises {row['largest_relative_rise_of_objective']:.0e}"
    )
