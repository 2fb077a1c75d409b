"""What a solver gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lpn_fast.solvers.conditions import Conditions


@dataclass(frozen=True)
class Reconstruction:
    """Images, how they were reached, and what is known about that.

    Attributes
    ----------
    x : Tensor, shape (N, ...)
        Reconstructed images: for every sample its last prox output.
    objective : Tensor, shape (iterations run, N), float64
        The function being minimised, at the prox output of every iteration. A sample that has
        stopped keeps its last value; NaN where a sample has none yet.
    residual : Tensor, shape (iterations run, N), float64
        The relative change compared with ``tol``, likewise.
    iterations : Tensor, shape (N,), int64
        Iterations each sample completed.
    converged : Tensor, shape (N,), bool
        Whether the sample met ``tol``. False after max_iter, a callback's stop, or a NaN.
    conditions : Conditions
        The conditions of the solver's convergence theorem, with numbers.
    """

    x: Tensor
    objective: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    conditions: Conditions
