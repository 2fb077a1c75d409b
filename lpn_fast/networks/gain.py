"""The gain of f at infinity, and why it should stay below one.

A linear head makes a bounded contribution to f, since z_l grows linearly. What is unbounded comes from
alpha, K and the squared head of the first stage, whose Hessian is at most 2 g_j a_j a_j^T per unit:

    gain = sup_omega  sum_j 2 g_j |A_j(omega)|^2 + sum_m |K_m(omega)|^2 + alpha        (A_j, K_m transfer functions)

of a squared first stage the same with q_j of `quadratic_heads` for g_j. Where images go on mirrored psi is a sum over
patches that see every pixel at most k^2 times (algebra/patches.py), and the sup is k^2 times the largest eigenvalue of
sum_j 2 q_j a_j a_j^T on patches: for the tight frames of networks/frame.py the same number. Of experts that compete
it is that of the expert with the largest, in contexts or not. With gain < 1,
psi(x) <= gain/2 |x|^2 + O(|x|), hence

    R(x) = psi*(x) - 1/2 |x|^2 >= (1/gain - 1)/2 |x|^2 - O(|x|):

R is coercive, h + t R is bounded below for every operator, and a solver whose objective descends cannot run
away. With gain > 1 descent alone does not prevent that: R may fall without bound in directions that the
operator does not see. Squared heads on later stages are unbounded in the same sense, with no useful bound.

The Lipschitz constant of f with a single stage is as explicit: with s = sigma', a unit contributes at most

    w sup sigma'' + 2 g sup k,     sup sigma'' = beta/4,     k = (z^2)''/2 = s^2 + z sigma'' <= OVERSHOOT for any beta.
"""

import itertools
import math
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.spec import Spec

# max over t and b <= 0 of  k(t + b) + k(-t + b): bounds one unit (b -> -inf) and a mirrored pair
OVERSHOOT = 1.06
GRID = {2: 512, 3: 128}  # frequencies per axis on which transfer functions are sampled, of images and of volumes


class Network(Protocol):
    """What the bounds read of an LPN: its spec and parameters."""

    spec: Spec
    stages: nn.ModuleList  # with core, skip, bias, noise, head, head_squared, those that the spec has
    quadratic: Any  # a Tensor, where the spec has it

    @property
    def alpha(self) -> float: ...


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@torch.no_grad()
def asymptotic_gain(model: Network) -> float:
    """Upper bound on the growth of f: limsup |f(x)| / |x| as |x| -> infinity; inf where none is known.

    Below one, R is coercive.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.asymptotic_gain(lf.MLPLPN(dim=2, alpha=0.1))
    0.1
    """
    if (known := getattr(model, "largest_gain", None)) is not None:  # an explicit prior's
        return known
    if any("squared" in stage.heads for stage in model.spec.stages[1:]):
        return math.inf
    first, operators = model.stages[0], []
    competing = [stage.competing for stage in model.spec.stages]
    if model.spec.has_contexts or (model.spec.reads_patches and competing == [False, True]):
        # log sum exp(W c^2 + b) <= max_m W_m c^2 + const: a form of each patch, and (k / s)^2 patches see a pixel
        core, head = model.stages[1].core.clamp(min=0), model.stages[-1].head.clamp(min=0)
        weights = 2 * (_head(first, first.skip) + head * core.flatten(1))
        largest = torch.linalg.eigvalsh(forms_of(first.skip.flatten(1), weights))[:, -1].max().item()
        return model.alpha + (first.skip.shape[-1] // model.spec.spacing) ** 2 * largest
    if model.spec.square_first:
        weight = (2 * quadratic_heads(model)).sqrt()
        operators.append(first.skip * weight.view(-1, *(1,) * (first.skip.dim() - 1)))
    if "squared" in model.spec.stages[0].heads:
        weight = (2 * first.head_squared.clamp(min=0)).sqrt()
        skip = first.skip * weight.view(-1, *(1,) * (first.skip.dim() - 1))
        # one side of an exactly mirrored pair a, -a is inactive far from zero
        operators.append(skip[::2] if _is_mirrored(skip, -1) else skip)
    if model.spec.quadratic:
        operators.append(model.quadratic)
    return model.alpha + (transfer_bound(model.spec, _stacked(operators)) if operators else 0.0)


@torch.no_grad()
def lipschitz_bound(model: Network) -> float:
    """Upper bound on the Lipschitz constant of f, for every noise level; inf for networks of several stages.

    It bounds the strengths t for which the prox of t R is surely unique: all if it is at most 1, else
    t < bound / (bound - 1).

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.lipschitz_bound(lf.MLPLPN(dim=2))
    inf
    """
    if len(model.spec.stages) > 1:
        return math.inf
    stage, operators = model.stages[0], []
    curvature = stage.skip.new_zeros(len(stage.skip))  # [H]
    if model.spec.square_first:
        curvature = 2 * quadratic_heads(model)
    elif "linear" in model.spec.stages[0].heads:
        curvature = curvature + stage.head.clamp(min=0) * (model.spec.beta / 4)
    if "squared" in model.spec.stages[0].heads:
        curvature = curvature + 2 * OVERSHOOT * stage.head_squared.clamp(min=0)
    skip = stage.skip * curvature.sqrt().view(-1, *(1,) * (stage.skip.dim() - 1))
    thresholds = [t for t in (getattr(stage, "bias", None), getattr(stage, "noise", None)) if t is not None]
    paired = "linear" not in model.spec.stages[0].heads and _is_mirrored(skip, -1)
    if paired and all(_is_mirrored(t, 1) and bool((t <= 0).all()) for t in thresholds):
        skip = skip[::2]  # with thresholds b <= 0 a pair is bounded like one unit
    operators.append(skip)
    if model.spec.quadratic:
        operators.append(model.quadratic)
    return model.alpha + transfer_bound(model.spec, _stacked(operators))


def forms_of(filters: Tensor, weights: Tensor) -> Tensor:
    """sum_j q_mj a_j a_j^T on patches, [M, d, d]; filters a [n, d], weights q [M, n]."""
    return (weights @ (filters[:, :, None] * filters[:, None]).flatten(1)).unflatten(1, (filters.shape[1],) * 2)


def quadratic_heads(model: Network) -> Tensor:
    """q, [H_1], with psi(x) <= q . z_1 + O(|x|), z_1 = u_1^2: the head of the first stage and all paths to later ones.

        q = w_1 + sum over l of  W_2^T .. W_l^T w_l        (of W_l the sum of the taps through which one pixel acts)

    since softplus(W z + b) <= W z + const. For a squared first stage; differentiable in cores and heads.
    """
    through = 0
    for stage, shape in zip(reversed(model.stages[1:]), reversed(model.spec.stages[1:]), strict=True):
        core = stage.core.clamp(min=0) if model.spec.is_dense else seen_by_one_pixel(stage.core, shape.stride)
        if shape.competing:  # log sum exp(W z + b) <= max(W z) + const
            through = stage.head.clamp(min=0) * core.amax(0)
        else:
            through = (_head(stage, core) + through) @ core
    return _head(model.stages[0], model.stages[0].skip) + through


def _head(stage, like: Tensor) -> Tensor:
    return stage.head.clamp(min=0) if hasattr(stage, "head") else like.new_zeros(len(like))


def seen_by_one_pixel(core: Tensor, stride: int) -> Tensor:
    """[out, in]: sum of the taps of a core [out, in, k, ..] through which one input pixel acts, largest over pixels."""
    core = core.clamp(min=0)
    sides = tuple(range(2, core.dim()))
    places = itertools.product(range(stride), repeat=len(sides))
    return torch.stack([core[(..., *(slice(i, None, stride) for i in place))].sum(sides) for place in places]).amax(0)


def largest_strength(model: Network) -> float:
    """Supremum of the strengths t whose prox is surely unique: 1 where no Lipschitz constant is known."""
    bound = lipschitz_bound(model)
    if math.isinf(bound):
        return 1.0
    return math.inf if bound <= 1 else bound / (bound - 1)


def _is_mirrored(t: Tensor, sign: int) -> bool:
    """Whether row 2 i + 1 is exactly sign times row 2 i, for all i."""
    return len(t) % 2 == 0 and torch.equal(t[::2], sign * t[1::2])


def _stacked(operators: list[Tensor]) -> Tensor:
    """Matrices, or kernels of several sizes, one below the other; zeros beside a kernel only turn its phase."""
    if operators[0].dim() == 2:
        return torch.cat(operators)
    side = max(kernel.shape[-1] for kernel in operators)
    return torch.cat([F.pad(k, (0, side - k.shape[-1]) * (k.dim() - 2)) for k in operators])


def transfer_bound(spec: Spec, kernels: Tensor) -> float:
    """Upper bound on |A|^2 for a matrix [H, C], or for the correlation with kernels [H, C, k, ..] at any image size."""
    if spec.is_dense:
        return torch.linalg.matrix_norm(kernels, 2).item() ** 2
    if spec.is_mirrored:
        return (kernels.shape[-1] / spec.spacing * torch.linalg.matrix_norm(kernels.flatten(1), 2).item()) ** 2
    degree = kernels.shape[-1] - 1
    # between samples a trigonometric polynomial of this degree exceeds its samples at most by this, per axis
    margin = 1 / math.cos(math.pi * degree / GRID[spec.ndim]) ** spec.ndim
    largest = 0.0
    for row in _transfer_rows(kernels, GRID[spec.ndim]):  # [H, C, (grid,) grid / 2 + 1] each
        if spec.channels == 1:
            largest = max(largest, row.abs().square().sum((0, 1)).max().item())
        else:
            matrices = row.movedim((0, 1), (-2, -1))
            largest = max(largest, torch.linalg.matrix_norm(matrices, 2).max().item() ** 2)
    return margin * largest


def _transfer_rows(kernels: Tensor, grid: int):
    """Transfer functions of kernels [H, C, k, ..], one frequency of the first axis at a time: all would be large."""
    columns = torch.fft.rfft(kernels, n=grid)  # [H, C, k, (k,) grid / 2 + 1]
    if kernels.dim() == 5:
        columns = torch.fft.fft(columns, n=grid, dim=3)  # [H, C, k, grid, grid / 2 + 1]
    taps = torch.arange(kernels.shape[-1], dtype=kernels.dtype, device=kernels.device)
    for omega in torch.arange(grid // 2 + 1, dtype=kernels.dtype, device=kernels.device):
        phase = torch.polar(torch.ones_like(taps), -2 * torch.pi * omega * taps / grid)
        phase = phase.view(-1, *(1,) * (columns.dim() - 3))
        yield (columns * phase).sum(2)
        yield (columns * phase.conj()).sum(2)


@torch.no_grad()
def limit_gain_(model: AnyNetwork, limit: float) -> AnyNetwork:
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
