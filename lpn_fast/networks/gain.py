"""The gain of f at infinity, and why it should stay below one.

A linear head makes a bounded contribution to f, since z_l grows linearly. What is unbounded comes from
alpha, K and the squared head of the first stage, whose Hessian is at most 2 g_j a_j a_j^T per unit:

    gain = sup_omega  sum_j 2 g_j |A_j(omega)|^2 + sum_m |K_m(omega)|^2 + alpha        (A_j, K_m transfer functions)

With gain < 1, psi(x) <= gain/2 |x|^2 + O(|x|), hence

    R(x) = psi*(x) - 1/2 |x|^2 >= (1/gain - 1)/2 |x|^2 - O(|x|):

R is coercive, h + t R is bounded below for every operator, and a solver whose objective descends cannot run
away. With gain > 1 descent alone does not prevent that: R may fall without bound in directions that the
operator does not see. Squared heads on later stages are unbounded in the same sense, with no useful bound.
"""

import math

import torch
from torch import Tensor

from ..algebra.spec import Spec
from .lpn import LPN

# Transfer functions of k x k kernels (k <= 9) are sampled on a grid this fine; between its points a squared
# one exceeds the larger neighbour by less than 1 / cos(pi (k - 1) / GRID) - 1 < 4 %, which MARGIN covers.
GRID = 96
MARGIN = 1.04


@torch.no_grad()
def asymptotic_gain(model: LPN) -> float:
    """Upper bound on the growth of f: limsup |f(x)| / |x| as |x| -> infinity; inf where none is known.

    Below one, R is coercive.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.asymptotic_gain(lf.MLPLPN(dim=2, alpha=0.1))
    0.1
    """
    if any("squared" in stage.heads for stage in model.spec.stages[1:]):
        return math.inf
    first, operators = model.stages[0], []
    if "squared" in model.spec.stages[0].heads:
        weight = (2 * first.head_squared.clamp(min=0)).sqrt()
        operators.append(first.skip * weight.view(-1, *(1,) * (first.skip.dim() - 1)))
    if model.spec.quadratic:
        operators.append(model.quadratic)
    return model.alpha + (_squared_norm(model.spec, torch.cat(operators)) if operators else 0.0)


def _squared_norm(spec: Spec, kernels: Tensor) -> float:
    """Bound on the squared norm of a matrix [H, C], or of a correlation with kernels [H, C, k, k]."""
    if spec.is_dense:
        return torch.linalg.matrix_norm(kernels, 2).item() ** 2
    transfer = torch.fft.rfft2(kernels, s=(GRID, GRID))  # [H, C, GRID, GRID / 2 + 1]
    if spec.channels == 1:
        return MARGIN * transfer.abs().square().sum((0, 1)).max().item()
    matrices = transfer.permute(2, 3, 0, 1)  # one H x C matrix per frequency
    return MARGIN * torch.linalg.matrix_norm(matrices, 2).max().item() ** 2


@torch.no_grad()
def limit_gain_(model: LPN, limit: float) -> LPN:
    """Scale the first squared head and K down in place until the asymptotic gain is at most `limit`. Returns model."""
    if not model.alpha < limit <= 1:
        raise ValueError(f"limit must lie in (alpha, 1] = ({model.alpha:g}, 1], got {limit}")
    gain = asymptotic_gain(model)
    if math.isinf(gain):
        raise ValueError("the gain cannot be limited: a stage after the first has a squared head")
    if gain > limit:
        shrink = (limit - model.alpha) / (gain - model.alpha)
        if "squared" in model.spec.stages[0].heads:
            model.stages[0].head_squared.mul_(shrink)
        if model.spec.quadratic:
            model.quadratic.mul_(shrink**0.5)
    return model
