"""R, its gradient and its prox as functions that autograd differentiates once, in x and in the potentials.

x = prox_{tR}(y):   (I + t H) q = v,   gradients  q in y,  -<q, grad R(x)> in t,  -t d<q, grad R(x)> in the potentials
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...per_sample import broadcast, dot
from . import potentials
from .descent import Solution, SolveLimits, linear_solve, solve
from .potentials import Potentials


def prior_value(pot: Potentials, x: Tensor, k: int) -> Tensor:
    """R(x), (N,) float64; x in units of the noise."""
    return _Value.apply(k, x, *pot.tensors())


def prior_gradient(pot: Potentials, x: Tensor, k: int) -> Tensor:
    """grad R(x), like x."""
    return _Gradient.apply(k, x, *pot.tensors())


def proximal_point(
    pot: Potentials,
    y: Tensor,
    weight: Tensor,
    k: int,
    limits: SolveLimits,
    start: Tensor | None = None,
    backward_tol: float | None = None,
) -> tuple[Tensor, Solution]:
    """(prox_{tR}(y), what is known of it); t = weight, (N,). `backward_tol`: of derivatives, None is limits.tol."""
    detached = Potentials.of_tensors([t.detach() for t in pot.tensors()])
    solution = solve(detached, y.detach(), weight.detach(), k, limits, None if start is None else start.detach())
    tol = limits.tol if backward_tol is None else backward_tol
    return _Prox.apply(k, tol, solution.x, solution.gradient, y, weight, *pot.tensors()), solution


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, x, *tensors):
        value, gradient = potentials.value_and_gradient(Potentials.of_tensors(tensors), x, k)
        ctx.k = k
        ctx.save_for_backward(gradient, x, *tensors)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        gradient, x, *tensors = ctx.saved_tensors
        gx = broadcast(g, gradient) * gradient if ctx.needs_input_grad[1] else None
        return None, gx, *_in_potentials(tensors, x, None, g.to(x), ctx, 2)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, x, *tensors):
        ctx.k = k
        ctx.save_for_backward(x, *tensors)
        return potentials.gradient(Potentials.of_tensors(tensors), x, k)

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        x, *tensors = ctx.saved_tensors
        gx = potentials.hvp(Potentials.of_tensors(tensors), x, v, ctx.k) if ctx.needs_input_grad[1] else None
        return None, gx, *_in_potentials(tensors, x, v, None, ctx, 2)


class _Prox(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, tol, x, gradient, y, weight, *tensors):
        ctx.k, ctx.tol = k, tol
        ctx.save_for_backward(x, gradient, weight, *tensors)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        x, gradient, weight, *tensors = ctx.saved_tensors
        q = linear_solve(Potentials.of_tensors(tensors), x, weight, v, ctx.k, ctx.tol)
        scaled = broadcast(-weight, q) * q
        of_weight = -dot(q, gradient).to(weight) if ctx.needs_input_grad[5] else None
        return None, None, None, None, q, of_weight, *_in_potentials(tensors, x, scaled, None, ctx, 6)


def _in_potentials(tensors, x, v, scale, ctx, first: int) -> list[Tensor | None]:
    """Gradients of  sum <v, grad R(x)> + scale R(x)  in those of the potentials that need one."""
    needed = ctx.needs_input_grad[first:]
    if not any(needed):
        return [None] * len(tensors)
    found = potentials.gradients(Potentials.of_tensors(tensors), x, v, scale, ctx.k)
    return [part if wanted else None for part, wanted in zip(found, needed, strict=True)]
