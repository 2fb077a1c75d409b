"""One checked inverse problem: measurements, operator and start.

    h(x) = 1/2 ||A x - y||^2 for every sample, in float64

Arguments are checked here, once; the iterations trust them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import check_channels_second, check_float, check_number
from ..per_sample import check_positive, norm
from ..physics import LinearOperator, adjoint_mismatch, operator_norm_bound, prox_l2_by_cg, seen, start

# A foreign operator's norm: so many steps bound it within a quarter at 512 x 512 pixels, whatever its spectrum, where
# plain power iteration stops on the plateau of a spectrum with one large value.
NORM_RISK, NORM_STEPS = 1e-6, 30

_PARTS = "; real and imaginary parts are numbers of their own: torch.view_as_real(y).movedim(-1, -3) for images"


@dataclass(frozen=True)
class InverseProblem:
    """What every solver starts from.

    Attributes
    ----------
    y : Tensor, shape (N, ...)
        Measurements.
    physics : LinearOperator
    x0 : Tensor, shape (N, ...)
        Start.
    norm : float or Tensor, shape (N,)
        Upper bound on ||A||, or one that fails with a stated probability; (N,) where samples have their own operators.
    norm_certainty : str
        How sure the bound is: "" for a proof, or the probability with which it fails.
    adjoint_mismatch : float
        Measured distance of `A_adjoint` from the adjoint of `A`.
    """

    y: Tensor
    physics: LinearOperator
    x0: Tensor
    norm: float | Tensor
    norm_certainty: str
    adjoint_mismatch: float


def checked_problem(
    y: Tensor, physics: LinearOperator, *, x0: Tensor | None = None, max_iter: int = 1, tol: float | None = None
) -> InverseProblem:
    """An InverseProblem, once all arguments that solvers share are found good.

    Raises
    ------
    TypeError
        y or x0 not a float32 or float64 tensor, physics without `A` or `A_adjoint`,
        max_iter not an integer.
    ValueError
        NaN or infinite measurements or start, an empty batch, shapes that do not belong together,
        numbers out of range; the message gives the value seen and the value expected.
    """
    if isinstance(physics, type):
        raise TypeError(
            f"physics must be an operator, got the class {physics.__name__}; make one, {physics.__name__}(...)"
        )
    for method in ("A", "A_adjoint"):
        if not callable(getattr(physics, method, None)):
            is_matrix = hasattr(physics, "__matmul__") and len(getattr(physics, "shape", ())) == 2
            hint = "; lf.physics.from_matrix(physics, (C, H, W)) makes an operator of a matrix" if is_matrix else ""
            raise TypeError(f"physics must have a method {method}, got {type(physics).__name__}{hint}")
    check_tensor("y", y)
    samples = len(y)
    if isinstance(max_iter, bool) or not isinstance(max_iter, int):
        raise TypeError(f"max_iter must be an integer, got {max_iter!r}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if tol is not None and not 0 <= tol < float("inf"):
        raise ValueError(f"tol must be at least 0, or None for the visible change, got {tol}")

    given = x0 is not None
    if x0 is not None:
        check_tensor("x0", x0)
        if len(x0) != samples:
            raise ValueError(f"x0 must hold {samples} samples as y does, got shape {tuple(x0.shape)}")
        if (x0.dtype, x0.device) != (y.dtype, y.device):
            raise TypeError(f"x0 must be {y.dtype} on {y.device} as y is, got {x0.dtype} on {x0.device}")
    else:
        try:
            x0 = start(physics, y)
        except RuntimeError as error:  # a foreign operator's, in words of its own
            raise ValueError(f"y of shape {tuple(y.shape)} is refused by the operator's A_adjoint: {error}") from error
    check_channels_second("x0" if given else "y", x0)
    first = subset(physics, torch.zeros(1, dtype=torch.int64, device=y.device))
    expected = (samples, *first.A(x0[:1]).shape[1:])
    if y.shape != expected:
        if given:
            raise ValueError(
                f"x0 must have measurements of the shape of y {tuple(y.shape)}, got {tuple(x0.shape)} "
                f"which measures as {expected}"
            )
        raise ValueError(f"y must have the shape that the operator measures, {expected}, got {tuple(y.shape)}")

    bound, certainty = _norm(physics, first, x0)
    return InverseProblem(y, physics, x0, bound, certainty, _mismatch_at_random(first, x0, y))


def subset(
    physics: LinearOperator,
    samples: Tensor,  # (n,) indices or (N,) bool
) -> LinearOperator:
    """The operator of these samples: its own `select` where samples have operators of their own, else itself."""
    own = getattr(physics, "select", None)
    return own(samples) if callable(own) else physics


def half_square(difference: Tensor) -> Tensor:  # (N, ...) -> (N,) float64
    """1/2 ||difference||^2, which is h(x) at difference = A x - y."""
    return 0.5 * norm(difference).square()


def relative_misfit(physics, images: Tensor, y: Tensor, noise: float | Tensor) -> Tensor:
    """||A x - y|| / (s sqrt m) over the m measurements that A can reach, (N,) float64."""
    reached = seen(physics, y)
    count = reached.flatten(1).sum(1).clamp_min(1)
    difference = torch.where(reached, physics.A(images) - y, 0.0)
    return norm(difference) / (noise * count.sqrt())


def relative_change(
    new: Tensor,  # (N, ...)
    old: Tensor,  # (N, ...)
) -> Tensor:  # (N,) float64
    """||new - old|| / ||new||, and 0 for two images that are both zero."""
    return norm(new - old) / norm(new).clamp_min(torch.finfo(torch.float32).tiny)


def data_prox(
    physics: LinearOperator,
    z: Tensor,
    y: Tensor,
    gamma: float | Tensor,
    *,
    near: Tensor | None = None,
    error: float | Tensor = 0.0,
) -> Tensor:
    """argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2: by the operator's own `prox_l2`, or conjugate gradients.

    Parameters
    ----------
    physics : LinearOperator
    z, y, gamma
        As for `Physics.prox_l2`.
    near : Tensor, shape of z, optional
        Where conjugate gradients start, which makes the objective no larger than it is there; None is z.
    error : float or Tensor, shape (N,)
        Estimated distance to the minimiser at which they may end.
    """
    own = getattr(physics, "prox_l2", None)
    if callable(own) and getattr(physics, "has_closed_prox", True):
        return own(z, y, gamma)
    return prox_l2_by_cg(physics, z, y, gamma, x0=near, error=error)


def check_tensor(name: str, value: object) -> None:
    """Raise unless `value` is a finite float32 or float64 tensor (N, ...) with N > 0."""
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(f"{name} must be float32 or float64, got {value.dtype}{_PARTS}")
    check_float(name, value)
    assert isinstance(value, Tensor)
    if value.dim() < 2 or value.numel() == 0:
        raise ValueError(f"{name} must have shape (N, ...) with at least one sample, got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        broken = (~value.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite, got NaN or infinite values in samples {shown(broken)}")


def positive(name: str, value, y: Tensor) -> float | Tensor:
    """A positive float, or a positive tensor (N,) in the type of y: the objective must use what the prox used."""
    if isinstance(value, Tensor) and value.dim() > 0:
        check_positive(name, value, len(y))
        return value.to(y)
    check_number(name, value)
    value = float(value)
    check_positive(name, value, samples=1)
    return value


def shown(values) -> str:
    """Values for a message, cut after eight."""
    values = values.tolist() if isinstance(values, Tensor) else values
    if isinstance(values, list) and len(values) > 8:
        return f"[{', '.join(map(str, values[:8]))}, ...]"
    return str(values)


def _norm(physics: LinearOperator, first: LinearOperator, x0: Tensor) -> tuple[float | Tensor, str]:
    """(bound on ||A||, how sure it is): the operator's `probable_norm` where it has one, else `norm`, else a guess."""
    probable, own = (getattr(physics, name, None) for name in ("probable_norm", "norm"))
    if callable(probable):
        bound, probability = probable()
        certainty = f"||A|| fails with probability {probability:.0e}" if probability > 0 else ""
    elif callable(own):
        bound, certainty = own(), ""
    else:
        bound = operator_norm_bound(
            first,
            x0.shape[1:],
            failure_probability=NORM_RISK,
            max_iter=NORM_STEPS,
            starts=2,
            device=x0.device,
            dtype=x0.dtype,
        )
        certainty = f"||A|| fails with probability {NORM_RISK:.0e}"
    bound = bound.to(x0) if isinstance(bound, Tensor) and bound.dim() > 0 else float(bound)
    low, high = (float(bound.min()), float(bound.max())) if isinstance(bound, Tensor) else (bound, bound)
    if not (0 < low and high < float("inf")):
        raise ValueError(f"physics must have a positive finite norm, got {shown(bound)}")
    return bound, certainty


def _mismatch_at_random(first: LinearOperator, x0: Tensor, y: Tensor) -> float:
    return float(adjoint_mismatch(first, random_like(x0)[:1], random_like(y, seed=1)[:1]))


def random_like(x: Tensor, seed: int = 0) -> Tensor:
    """Gaussian numbers, of x's shape: the same ones on every device, and for every sample, whatever the batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *x.shape[1:], generator=generator, dtype=torch.float64).to(x).expand_as(x)
