"""What a solver gives back."""

from dataclasses import dataclass

from torch import Tensor

from .automatic import Settings
from .conditions import Conditions


@dataclass(frozen=True)
class Stage:
    """A step on the way to a reconstruction.

    Attributes
    ----------
    name : str
    x : Tensor, shape (N, ...)
        Where it ended.
    misfit : Tensor, shape (N,), float64
        As of `Reconstruction`.
    iterations : Tensor, shape (N,), int64
    note : str
        What was done, with which model and why.
    """

    name: str
    x: Tensor
    misfit: Tensor
    iterations: Tensor
    note: str


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """Images, how they were reached, and what is known about that; prints as three lines.

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
        ||A x - y|| / (s sqrt m) with noise level s and m measurements that A can reach: 1 is what the true image
        has on average, more is too smooth, less fits noise. None where no noise level is known.
    warnings : tuple of str
        What was warned of.
    stages : tuple of Stage
        Start, pilot and descent of `lf.reconstruct`; empty for a solver alone.
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
    warnings: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()

    def __repr__(self) -> str:
        samples, shape = len(self.x), " x ".join(map(str, self.x.shape[1:]))
        steps, done = self.iterations, int(self.converged.sum())
        broken = f", {int(self.broken.sum())} broken" if bool(self.broken.any()) else ""
        first, last = (float(row.mean()) for row in (self.objective[0], self.objective[-1]))
        misfit = "unknown" if self.misfit is None else _range(self.misfit)
        failing = "; ".join(f"{c.name}: {c.required}, got {c.actual}" for c in self.conditions if not c.holds)
        return (
            f"{samples} images of {shape}: {_range(steps)} iterations, {done} of {samples} converged{broken}\n"
            f"objective {first:.6g} -> {last:.6g} (mean), misfit {misfit} (1 is what the noise makes)\n"
            f"{self.conditions.theorem}: "
            + (f"NOT inside its theorem: {failing}" if failing else "every condition holds")
        )


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
