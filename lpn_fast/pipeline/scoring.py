"""The value of the learned prior for every image: the third task of the job engine, the one that makes no images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks import LPN
from ..prior import Verdict, prior
from .tasks import OnIteration, Restoration, Task, blank_image, check_sigma

# what a line says when not every plane converged: the gravest of their verdicts
GRAVITY = (Verdict.CONVERGED, Verdict.ITERATIONS, Verdict.STALLED, Verdict.OUTSIDE, Verdict.INVALID)


@dataclass(frozen=True)
class Score(Task):
    """R(x) = <y, x> - 1/2 |x|^2 - psi(y) where f(y) = x; see `lpn_fast.prior`.

    Parameters
    ----------
    sigma : float, optional
        Noise level whose prior it is, for a noise-conditional network.
    tol : float
        Bound on the residual |f(y) - x| / |x|.
    max_iter : int, optional
        Most steps; None is the method's own.
    method : str
        That of `lpn_fast.invert`.
    double : bool
        Refine in double precision.

    Raises
    ------
    ValueError
        sigma that is not positive.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> Score(tol=1e-3).solve(torch.rand(2, 1, 16, 16), lf.ConvLPN(1, hidden=8, alpha=0.1).eval()).value.shape
    torch.Size([2])
    """

    sigma: float | None = None
    tol: float = 1e-5
    max_iter: int | None = None
    method: str = "lbfgs"
    double: bool = False

    name = "prior"
    makes_images = False
    estimates_noise = False

    def __post_init__(self):
        check_sigma(self.sigma)

    def settings(self) -> dict:
        return {"task": self.name, **vars(self)}

    def conditions(self, model: LPN) -> None:
        """None: the certificate of a value is its residual; ValueError for options that `prior` refuses."""
        levels = model.spec.noise_levels
        if levels and self.sigma is None:
            raise ValueError(
                f"sigma must be given, this model has a prior for each level from {levels[0]:g} to {levels[-1]:g}"
            )
        self._prior(blank_image(model), model, max_iter=1)

    def solve(
        self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> Restoration:
        result = self._prior(y, model, self.max_iter)
        verdict = result.inversion.verdict
        return Restoration(
            x=None,
            objective=None,
            residual=result.residual,
            iterations=result.inversion.iterations,
            converged=result.converged,
            broken=(verdict == Verdict.INVALID) | ~result.value.isfinite(),
            value=result.value,
            verdict=verdict,
        )

    @torch.no_grad()
    def _prior(self, x: Tensor, model: LPN, max_iter: int | None):
        options = {"sigma": self.sigma, "tol": self.tol, "method": self.method}
        return prior(model, x, max_iter=max_iter, dtype=torch.float64 if self.double else None, **options)


def gravest(verdicts: Tensor) -> str:
    """The worst of the verdicts of an image's planes, in a word."""
    return max((Verdict(v) for v in verdicts.tolist()), key=GRAVITY.index).name.lower()
