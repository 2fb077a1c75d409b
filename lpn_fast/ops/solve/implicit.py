"""The solution as a differentiable function of z, t and the parameters.

    F(u; z, t, P) = t u + (1 - t) f(u; P) - z = 0,     M = dF/du = t I + (1 - t) H,  symmetric
    for a cotangent g of u, with M w = g:      gz = w,    gt = -<w, u - f(u)>,    gP = -(1 - t) d<w, f(u)>/dP

so the backward pass is one more run of conjugate gradients and one parameter gradient. The solve itself
leaves no graph. Derivatives of these derivatives are refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...algebra.spec import Spec
from ...per_sample import broadcast, dot
from .descent import EquationSolution
from .equation import Equation
from .linear import conjugate_gradient
from .methods import solve

# Relative residual of M w = g: gradients a few digits better than optimizers notice, and within reach.
BACKWARD_TOL = {torch.float32: 1e-6, torch.float64: 1e-13}
BACKWARD_ITERATIONS = 1000


@dataclass(frozen=True)
class SolveOptions:
    """How to solve: the arguments of `solve` that are not tensors to differentiate."""

    spec: Spec
    method: str = "lbfgs"
    tol: float = 1e-6
    max_iter: int | None = None
    radius: float | None = None
    homotopy: bool = False


def differentiable_solution(
    options: SolveOptions,
    z: Tensor,  # [N, ...]
    strength: Tensor,  # [N]
    packed: Tensor,  # [P]
    features: Tensor | None,  # [N, F]
    start: Tensor | None = None,  # [N, ...]; None is z
) -> EquationSolution:
    """An EquationSolution whose u carries gradients to z, strength and packed; its other fields are numbers."""
    return EquationSolution(*_Solve.apply(z, strength, packed, features, start, options))


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(z, strength, packed, features, start, options):
        equation = Equation(options.spec, packed, features, z, strength)
        start = z if start is None else start
        solution = solve(
            equation,
            start,
            method=options.method,
            tol=options.tol,
            max_iter=options.max_iter,
            radius=options.radius,
            homotopy=options.homotopy,
        )
        return tuple(vars(solution).values())

    @staticmethod
    def setup_context(ctx, inputs, output):
        z, strength, packed, features, _, options = inputs
        u, f, *rest = output
        ctx.spec = options.spec
        ctx.save_for_backward(strength, packed, features, u, f)
        ctx.mark_non_differentiable(f, *rest)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, g, *_):
        strength, packed, features, u, f = ctx.saved_tensors
        if g is None:
            return (None,) * 6
        equation = Equation(ctx.spec, packed, features, u, strength)
        curvature = equation.linearised(equation.at(u))
        w = conjugate_gradient(curvature, g.contiguous(), BACKWARD_TOL[u.dtype], BACKWARD_ITERATIONS)
        gt = gP = None
        if ctx.needs_input_grad[1]:
            gt = -dot(w, u - f).to(strength.dtype)
        if ctx.needs_input_grad[2]:
            scaled = broadcast(strength - 1, w) * w
            gP = torch.ops.lpn_fast.vjp.default(u, packed, features, None, scaled, [], ctx.spec.encoded, "fp32")[1]
        return w, gt, gP, None, None, None
