"""What a solver gives back."""

from dataclasses import dataclass

from torch import Tensor

from .automatic import Settings
from .conditions import Conditions


@dataclass(frozen=True)
class Reconstruction:
    """Images, how they were reached, and what is known about that.

    Attributes
    ----------
    x : Tensor, shape (N, ...)
        Reconstructed images: for every sample its last prox output.
    objective : Tensor, shape (iterations run, N), float64
        The function being minimised, at the prox output of every iteration. A sample that has
        stopped keeps its last value; NaN where a sample has none yet. On the device of y, as all histories.
    residual : Tensor, shape (iterations run, N), float64
        The relative change compared with `tol`, likewise.
    iterations : Tensor, shape (N,), int64
        Iterations each sample completed.
    converged : Tensor, shape (N,), bool
        Whether the sample met `tol`. False after max_iter, a callback's stop, or a NaN.
    broken : Tensor, shape (N,), bool
        Whether the sample was stopped because it became NaN or infinite; x is then its last good image.
    conditions : Conditions
        The conditions of the solver's convergence theorem, with numbers.
    settings : Settings
        Step size, strength and noise levels that were used, and where they came from.
    misfit : Tensor, shape (N,), float64, or None
        ||A x - y|| / (s sqrt m) with noise level s and m measurements: 1 is what the true image has on average,
        more is too smooth, less fits noise. None where no noise level is known.
    """

    x: Tensor
    objective: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    broken: Tensor
    conditions: Conditions
    settings: Settings
    misfit: Tensor | None
