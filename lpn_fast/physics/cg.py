"""Conjugate gradients on a batch of independent systems, and the data prox they give.

    M x_n = b_n,  M symmetric positive definite, for every sample n                Hestenes, Stiefel, 1952
    argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2   <=>   (I + gamma A^T A) x = z + gamma A^T y

Samples are not coupled: each has its own step, direction and stopping test, and once it has met
its tolerance it stays as it is to the last bit while the others go on. A NaN never leaves its
sample. Since I + gamma A^T A >= I, a residual r bounds the error of the prox: ||x - x*|| <= ||r||. With the
circulant preconditioner P (circulant.py) a prox takes a third to two thirds of the steps, and where P is close to
M, <r, P^-1 r>^1/2 is close to the error in the norm of M, which is above ||x - x*|| and far below ||r||.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..per_sample import broadcast, check_positive, dot
from .circulant import circulant_preconditioner
from .protocol import LinearOperator

# ||r|| <= tol ||b||. A few units of rounding above what each type can reach on a well-conditioned system.
DEFAULT_TOL = {torch.float32: 1e-6, torch.float64: 1e-12}

# Most steps of a prox: the digits of float64 take twice those of float32.
DEFAULT_STEPS = {torch.float32: 100, torch.float64: 200}

# Asking "is any sample active?" makes a GPU wait for the CPU. Extra iterations do not change finished
# samples, so asking every fourth time costs at most three idle applications of M.
CHECK_EVERY = 4


@dataclass(frozen=True)
class CGResult:
    """Solutions and how well each was solved.

    Attributes
    ----------
    x : Tensor, shape (N, ...)
        Solutions.
    residual : Tensor, shape (N,), float64
        ||b - M x|| / ||b|| by the recurrence of the method; 0 where b = 0 was solved exactly.
    iterations : Tensor, shape (N,), int64
        Steps each sample took.
    converged : Tensor, shape (N,), bool
        Whether the sample met its tolerance.

    Examples
    --------
    >>> import torch
    >>> solved = conjugate_gradient(lambda x: 2 * x, torch.ones(3, 1, 4, 4))
    >>> bool(solved.converged.all()), float(solved.x.max())
    (True, 0.5)
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    x0: Tensor | None = None,
    tol: float | None = None,
    max_iter: int = 100,
    precondition: Callable[[Tensor], Tensor] | None = None,
    error: float | Tensor = 0.0,
) -> CGResult:
    """Solutions of M x = b for a batch of right-hand sides, each stopped on its own.

    Parameters
    ----------
    apply : callable, (N, ...) -> (N, ...)
        M on every sample: symmetric, positive definite, and acting on each sample alone.
    b : Tensor, shape (N, ...), float32 or float64
        Right-hand sides.
    x0 : Tensor, shape (N, ...), optional
        Start; None is zero.
    tol : float, optional
        Bound on ||b - M x|| / ||b||, per sample; None is 1e-6 in float32 and 1e-12 in float64.
    max_iter : int
        Most steps a sample may take.
    precondition : callable, (N, ...) -> (N, ...), optional
        P^-1 on every sample, P symmetric, positive definite and close to M; None is the identity.
    error : float or Tensor, shape (N,)
        A sample has also converged where <r, P^-1 r>^1/2 is at most this.

    Returns
    -------
    CGResult

    Raises
    ------
    ValueError
        b neither float32 nor float64 while tol is None.

    Examples
    --------
    >>> import torch
    >>> diagonal = torch.tensor([1.0, 2.0, 4.0])
    >>> conjugate_gradient(lambda x: diagonal * x, torch.ones(1, 3)).x
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    if tol is None:
        if b.dtype not in DEFAULT_TOL:
            raise ValueError(f"b must be float32 or float64, got {b.dtype}")
        tol = DEFAULT_TOL[b.dtype]

    x = torch.zeros_like(b) if x0 is None else x0
    r = b if x0 is None else b - apply(x0)  # (N, ...)
    p = r if precondition is None else precondition(r)
    rr, rz, bb = dot(r, r), dot(r, p), dot(b, b)  # (N,)
    target, close = tol**2 * bb, torch.as_tensor(error, dtype=bb.dtype, device=bb.device).square()
    iterations = torch.zeros(len(b), dtype=torch.int64, device=b.device)

    for k in range(max_iter):
        active = (rr > target) & (rz > close)  # (N,); False for NaN, so a broken sample stops at once
        if k % CHECK_EVERY == 0 and not bool(active.any()):
            break
        q = apply(p)
        step = torch.where(active, rz / dot(p, q), 0.0)
        x = x + broadcast(step, x) * p
        r = r - broadcast(step, x) * q
        rr = torch.where(active, dot(r, r), rr)
        z = r if precondition is None else precondition(r)
        rz_next = torch.where(active, dot(r, z), rz)
        p = z + broadcast(torch.where(active, rz_next / rz, 0.0), x) * p
        rz = rz_next
        iterations += active

    residual = torch.where(rr == 0, 0.0, (rr / bb).sqrt())
    return CGResult(x, residual, iterations, (rr <= target) | (rz <= close))


def prox_l2_by_cg(
    physics: LinearOperator,
    z: Tensor,
    y: Tensor,
    gamma: float | Tensor,
    *,
    x0: Tensor | None = None,
    tol: float | None = None,
    max_iter: int | None = None,
    error: float | Tensor = 0.0,
) -> Tensor:
    """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2 of any linear operator.

    Parameters
    ----------
    physics : LinearOperator
        The operator; the adjoint must be the matched one, or the system is not symmetric.
    z : Tensor, shape (N, ...)
        Points.
    y : Tensor, shape (N, ...)
        Measurements.
    gamma : float or Tensor, shape (N,)
        Weight of the data, positive.
    x0 : Tensor, shape (N, ...), optional
        Start of the iteration; None is z. The objective of the prox falls from there in every step.
    tol : float, optional
        Bound on the relative residual, per sample; None is 1e-6 in float32 and 1e-12 in float64.
    max_iter : int, optional
        Most steps a sample may take; None is 100 in float32 and 200 in float64.
    error : float or Tensor, shape (N,)
        A sample is also done where its estimated distance to the prox is at most this.

    Returns
    -------
    Tensor, shape (N, ...)

    Raises
    ------
    ValueError
        gamma that is not positive.

    Warns
    -----
    RuntimeWarning
        Samples that did not converge in max_iter steps; they are returned as they are.

    Examples
    --------
    >>> import torch
    >>> from lpn_fast.physics import Denoising
    >>> prox_l2_by_cg(Denoising(), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), gamma=1.0).flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    check_positive("gamma", gamma, len(z))
    max_iter = DEFAULT_STEPS.get(z.dtype, 100) if max_iter is None else max_iter
    weight = broadcast(gamma, z)
    right = z + weight * physics.A_adjoint(y)  # (N, ...)
    result = conjugate_gradient(
        lambda x: x + weight * physics.A_adjoint(physics.A(x)),
        right,
        x0=z if x0 is None else x0,
        tol=tol,
        max_iter=max_iter,
        precondition=circulant_preconditioner(physics, z, gamma),
        error=error,
    )
    unconverged = ~result.converged & result.residual.isfinite()
    if bool(unconverged.any()):
        warnings.warn(
            f"data prox: {int(unconverged.sum())} of {len(z)} samples did not converge in {max_iter} "
            f"conjugate gradient steps; their relative residual is up to "
            f"{float(result.residual[unconverged].max()):.1e}",
            RuntimeWarning,
            stacklevel=2,
        )
    return result.x
