"""What a solver gives back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import display
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

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> physics = lf.physics.Blur.gaussian(1.0)
    >>> result = lf.reconstruct(torch.full((1, 1, 32, 32), 0.5), physics, noise=0.01)
    >>> print(str(result).splitlines()[0])  # doctest: +ELLIPSIS
    1 images of 1 x 32 x 32: ... iterations, 1 of 1 converged
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

    def _repr_html_(self) -> str:
        shown = [(name, x) for name, x in self._pictures(0) if display.is_image(x)]
        return display.preformatted(repr(self)) + display.pictures(shown)

    def plot(self, sample: int = 0, truth: Tensor | None = None):
        """Where one image began, what became of it, and its objective; a matplotlib figure, which a notebook shows.

        Parameters
        ----------
        sample : int
            Which image of the batch.
        truth : Tensor, shape of x, optional
            Shown beside them.

        Returns
        -------
        matplotlib.figure.Figure
            `savefig` writes it to a file.

        Raises
        ------
        ImportError
            matplotlib is not installed (extra [plot]).
        IndexError, ValueError
            No such sample; samples that are not pictures of one to three channels.

        Examples
        --------
        >>> import torch, lpn_fast as lf
        >>> physics = lf.physics.Blur.gaussian(1.0)
        >>> result = lf.reconstruct(torch.full((1, 1, 32, 32), 0.5), physics, noise=0.01)
        >>> result.plot()  # doctest: +SKIP
        """
        if not 0 <= sample < len(self.x):
            raise IndexError(f"sample must be between 0 and {len(self.x) - 1}, got {sample}")
        if not display.is_image(self.x[sample]):
            raise ValueError(
                f"samples must have shape (C, H, W) with at most 3 channels, got {tuple(self.x.shape[1:])}"
            )
        shown = self._pictures(sample) + ([] if truth is None else [("truth", truth[sample])])
        figure, axes = display.figure(len(shown) + 1)
        for (name, x), place in zip(shown, axes, strict=False):
            place.imshow(display.array(x).numpy(), cmap="gray", vmin=0, vmax=1)
            place.set_title(name)
            place.axis("off")
        steps = int(self.iterations[sample])
        axes[-1].plot(range(1, steps + 1), self.objective[:steps, sample].tolist(), ".-")
        axes[-1].set(title="objective", xlabel="iteration")
        return figure

    def _pictures(self, sample: int) -> list[tuple[str, Tensor]]:
        """Start, if it is known, and result of one sample; the start in the frame of the result."""
        result, before = self.x[sample], []
        if self.stages:
            start = self.stages[0].x[sample]
            before = [("start", _centre(start, result.shape))]
        return [*before, ("result", result)]


def _centre(x: Tensor, shape: torch.Size) -> Tensor:
    """The middle of x: a blur with the boundary "valid" has starts that reach beyond the frame on all sides."""
    for axis in range(1, x.dim()):
        x = x.narrow(axis, (x.shape[axis] - shape[axis]) // 2, shape[axis])
    return x


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
