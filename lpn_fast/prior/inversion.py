"""Batched inversion of a learned proximal network, every sample with its certificate.

    f(y) = x   <=>   y minimises  psi(y) - <x, y>,  convex; alpha-strongly where alpha > 0
    |y - y*| <= |f(y) - x| / alpha

The methods, the verdicts and the proof of "outside the range" are in ops/solve. Precision: the residual is
computed in the dtype of the solve. f carries a relative rounding of some eps, so in float32 a reported
relative residual means what it says down to about 1e-6 and cannot fall below about 2e-7; with
dtype=torch.float64 the float32 solution is refined in double precision, down to about 1e-14.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from ..contract import check_name
from ..networks import LPN, ExplicitLPN
from ..networks.inputs import checked_network, warn_of_units
from ..ops.solve import EQUATION_METHODS, EquationSolution, SolveOptions, Verdict, differentiable_solution
from ..per_sample import choose, norm

RADIUS = 1e4  # in units of max(|x|, sqrt(entries)); a trained denoiser has |y - x| below one
CHUNK_BYTES = 256 * 2**20  # for tapes; bounds memory, and more does not run faster
TAPES = 4  # that may exist at once: two points of a line search, and a compacted copy of each
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}  # relative residuals that are surely reached


class ValueEstimate(Protocol):
    """What a warm start returns when called: at least its estimates of R."""

    @property
    def value(self) -> Tensor: ...  # (N,) float64


class WarmStart(Protocol):
    """What `AmortisedPrior` offers: a network whose output estimates the preimage, and estimates of R."""

    network: LPN

    def __call__(self, x: Tensor, /) -> ValueEstimate: ...


class InvertOptions(TypedDict, total=False):
    """The options of `invert`, for functions that pass them on."""

    method: str
    tol: float
    max_iter: int | None
    x0: Tensor | None
    warm_start: WarmStart | None
    dtype: torch.dtype | None
    radius: float
    homotopy: bool
    batch_size: int | None


@dataclass(frozen=True, repr=False)
class Inversion:
    """Preimages under f, and what is known of each.

    Attributes
    ----------
    preimage : Tensor, shape (N, ...)
        y with f(y) = x up to `residual`; carries gradients to x and the parameters where these require them.
    residual : Tensor, shape (N,), float64
        |f(y) - x| / |x|, or |f(y) - x| where x = 0.
    iterations : Tensor, shape (N,), int64
        Steps of the method.
    converged : Tensor, shape (N,), bool
        Whether the residual is at most tol.
    error_bound : Tensor, shape (N,), float64, or None
        Bound |f(y) - x| / alpha on the distance to the exact preimage; None if alpha = 0, where a small
        residual bounds nothing.
    verdict : Tensor, shape (N,), int64
        A `Verdict` per sample: CONVERGED 0, ITERATIONS 1 (max_iter reached), STALLED 2 (the residual no longer
        falls), OUTSIDE 3 (proved: no preimage within the radius), INVALID 4 (NaN or infinity).
    start_error : Tensor, shape (N,), float64, or None
        With a warm start, its distance from `preimage`, relative to |preimage|.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> lf.invert(lf.MLPLPN(dim=3, alpha=0.1), torch.zeros(5, 3))  # doctest: +ELLIPSIS
    inversion of 5 samples: 5 converged
      residual ...
    """

    preimage: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    error_bound: Tensor | None
    verdict: Tensor
    start_error: Tensor | None = None

    def __repr__(self) -> str:
        lines = [f"inversion of {len(self.residual)} samples: {self}"]
        if len(self.residual):
            bound = "none, alpha is 0" if self.error_bound is None else f"{float(self.error_bound.max()):.1e}"
            lines.append(f"  residual up to {float(self.residual.max()):.1e} of |x|, error bound {bound}")
            lines.append(f"  {int(self.iterations.min())} to {int(self.iterations.max())} iterations")
        return "\n".join(lines)

    def __str__(self) -> str:
        counts = {v.name.lower(): int((self.verdict == v).sum()) for v in Verdict}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no samples"


def invert(
    model: LPN | ExplicitLPN,
    x: Tensor,
    *,
    sigma: float | Tensor | None = None,
    method: str = "lbfgs",
    tol: float = 1e-5,
    max_iter: int | None = None,
    x0: Tensor | None = None,
    warm_start: WarmStart | None = None,
    dtype: torch.dtype | None = None,
    radius: float = RADIUS,
    homotopy: bool = True,
    batch_size: int | None = None,
) -> Inversion:
    """Preimages y of x under f, f(y) = x; one per sample, each stopped on its own.

    Parameters
    ----------
    model : LPN or ExplicitLPN
        An explicit prior needs one pass, and no option but sigma and dtype.
    x : Tensor, shape (N, dim), (N, C, H, W) or (N, C, D, H, W)
        Points; a sample with NaN or infinity gets the verdict INVALID and a preimage of NaN.
    sigma : float or Tensor, shape () or (N,), optional
        For noise-conditional networks.
    method : "lbfgs", "newton-cg", "gradient" or "fixed-point"
        L-BFGS does the least work, Newton-CG takes the fewest steps, accelerated gradient keeps little memory and
        the fixed-point iteration y <- y + s (x - f(y)) the least; it is quick only where the slopes of f lie
        between, say, 0.1 and 2.
    tol : float
        Bound on |f(y) - x| / |x|, per sample. Below about 1e-6 in float32 use dtype.
    max_iter : int, optional
        Most steps of a sample; None is 500, 100, 2000 and 5000 for the four methods.
    x0 : Tensor, shape of x, optional
        Start, e.g. the preimage of a nearby point; None is x.
    warm_start : AmortisedPrior, optional
        Start from its estimate of the preimage; `start_error` says how good it was.
    dtype : torch.float64, optional
        Refine in double precision, from the solution in the model's dtype. `preimage` is then float64.
    radius : float
        A search ends, with the verdict OUTSIDE, once it is proved that no preimage lies within radius times
        max(|x|, sqrt(entries of x)) of x, in noise units if the network has them. If alpha > 0 every x has a
        preimage, but up to |x| / alpha away: raise the radius above that to have all of them.
    homotopy : bool
        Try samples that fail again along t y + (1 - t) f(y) = x, t from 1 to 0.
    batch_size : int, optional
        Samples solved together; None keeps the working memory of convolutional networks near 1 GiB.

    Returns
    -------
    Inversion

    Raises
    ------
    ValueError, TypeError
        As `LPN.forward`; an unknown method, a tolerance, radius or number that is not positive, an x0 that
        does not match x, a dtype that is not float64.

    Warns
    -----
    RuntimeWarning
        As `LPN.forward`.

    Notes
    -----
    The preimage is differentiable in x and in the parameters, by the implicit function theorem: the backward
    pass solves H w = g by conjugate gradients, which requires alpha > 0 or at least a regular H.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.MLPLPN(dim=3, alpha=0.1)
    >>> result = lf.invert(model, torch.randn(5, 3))
    >>> bool(result.converged.all())
    True
    """
    checked_network(model)
    if isinstance(model, ExplicitLPN):
        from .explicit import preimages  # which returns what this module defines

        return preimages(model, x, sigma, dtype)
    options = SolveOptions(model.spec, method, tol, max_iter, radius, homotopy)
    _check(options, x, x0, dtype, batch_size)
    if warm_start is not None and x0 is not None:
        raise ValueError("x0 and warm_start are two starts; give one of them")
    x, features, unit = model._checked(x, sigma)
    warn_of_units(model.card, x, sigma, stacklevel=2)
    packed = model.packed()
    start = x if x0 is None else x0.detach()
    if warm_start is not None:
        start = _estimate(warm_start, x.detach(), batch_size)
    target = x
    if unit is not None:
        target, start = x / unit, start / unit

    pieces = []
    for rows in _chunks(model, x, batch_size):
        of_rows = None if features is None else features[rows]
        pieces.append(_solve(options, target[rows], packed, of_rows, start[rows], dtype))
    solution = _concatenated(pieces)
    preimage = solution.u if unit is None else unit * solution.u

    bound = None
    if model.alpha > 0:
        size = torch.linalg.vector_norm(x.detach().flatten(1), dim=1, dtype=torch.float64)
        bound = solution.residual * torch.where(size == 0, 1.0, size) / model.alpha
    start_error = None
    if warm_start is not None:
        y = preimage.detach()
        start_error = norm(start - y) / norm(y).clamp(min=torch.finfo(y.dtype).tiny)
    return Inversion(
        preimage, solution.residual, solution.iterations, solution.converged, bound, solution.verdict, start_error
    )


def _estimate(warm_start: WarmStart, x: Tensor, batch_size: int | None) -> Tensor:
    """The preimages a warm start proposes; x itself where they are not finite."""
    with torch.no_grad():
        start = torch.cat([warm_start.network(part) for part in x.split(batch_size or max(1, len(x)))])
    finite = start.flatten(1).isfinite().all(1)
    return choose(finite, start, x)


def _solve(options: SolveOptions, x, packed, features, start, dtype) -> EquationSolution:
    if dtype is None or dtype == x.dtype:
        return _by(options, x, packed, features, start)
    rough = SolveOptions(**vars(options) | {"tol": max(options.tol, ROUNDING[x.dtype])})
    with torch.no_grad():
        near = _by(rough, x, packed, features, start.to(x.dtype))
    # whatever stopped the rough solve, the fine one judges again from where it ended
    begin = torch.where(near.u.isfinite(), near.u, x).to(dtype)
    features = None if features is None else features.to(dtype)
    solution = _by(options, x.to(dtype), packed.to(dtype), features, begin)
    return EquationSolution(**vars(solution) | {"iterations": solution.iterations + near.iterations})


def _by(options: SolveOptions, x, packed, features, start) -> EquationSolution:
    return differentiable_solution(options, x, x.new_zeros(len(x)), packed, features, start)


def _chunks(model: LPN, x: Tensor, batch_size: int | None) -> Iterator[slice]:
    """Slices of the batch whose tapes fit the budget; one empty slice for an empty batch."""
    if batch_size is None:
        batch_size = max(1, CHUNK_BYTES // max(1, TAPES * _tape_bytes(model, x)))
    for first in range(0, max(1, len(x)), batch_size):
        yield slice(first, first + batch_size)


def _tape_bytes(model: LPN, x: Tensor) -> int:
    """Bytes of z and e of one sample; dense networks store nothing but x-sized vectors."""
    spec = model.spec
    if spec.is_dense:
        return 8 * spec.channels * x.element_size()
    sizes = spec.stage_sizes(*x.shape[2:])
    units = sum(stage.width * math.prod(size) for stage, size in zip(spec.stages, sizes, strict=True))
    return 2 * units * x.element_size()


def _concatenated(pieces: list[EquationSolution]) -> EquationSolution:
    if len(pieces) == 1:
        return pieces[0]
    return EquationSolution(**{name: torch.cat([getattr(p, name) for p in pieces]) for name in vars(pieces[0])})


def _check(
    options: SolveOptions, x: Tensor, x0: Tensor | None, dtype: torch.dtype | None, batch_size: int | None
) -> None:
    check_name("method", options.method, EQUATION_METHODS)
    if not options.tol > 0:
        raise ValueError(f"tol must be positive, got {options.tol}")
    if options.radius is not None and not options.radius > 0:
        raise ValueError(f"radius must be positive, got {options.radius}")
    for name, value in (("max_iter", options.max_iter), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if dtype not in (None, torch.float32, torch.float64) or (dtype == torch.float32 and x.dtype == torch.float64):
        raise ValueError(f"dtype must be None or torch.float64, got {dtype} for x of {x.dtype}")
    if x0 is not None and (x0.shape != x.shape or x0.device != x.device):
        raise ValueError(f"x0 must match x, {tuple(x.shape)} on {x.device}, got {tuple(x0.shape)} on {x0.device}")
