"""Reconstruction: images from measurements, by a solver of the registry or by what chooses everything itself.

With Gaussian noise of level s the MAP estimate minimises  ||A x - y||^2 / (2 s^2) - log p(x),  that is
    h(x) - s^2 log p(x),        h(x) = 1/2 ||A x - y||^2.
A network trained on noise sigma has learned  R = -sigma^2 log p; how solvers choose sigma, step and strength from s
is in solvers/automatic.py.
"""

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import solvers
from ..networks import LPN
from ..physics import Blur
from ..restoration import BLUR, COLOR, GRAY, Choice, reconstruct
from .problems import Problem
from .tasks import PROBE_NOISE, OnIteration, Restoration, Task, blank_image

SOLVERS = {name: getattr(solvers, name) for name in ("pgd", "fista", "admm", "drs", "hqs", "gradient")}
AUTO_ITERATIONS = 100


@dataclass(frozen=True)
class Reconstruct(Task):
    """Reconstruction by plug-and-play with the learned prior.

    Parameters
    ----------
    problem : Problem
        What was measured, see problems.py.
    noise : float, optional
        Standard deviation of the measurements' noise, where images are in [0, 1]; None is what each measurement shows
        of it.
    solver : str, optional
        "pgd", "fista", "admm", "drs", "hqs" or "gradient"; None leaves everything to `lpn_fast.reconstruct`.
    iterations : int, optional
        Most iterations of that solver; None is 100.
    sigma : float, optional
        Noise level handed to a noise-conditional network; None is the MAP choice. Larger is smoother.
    tol : float
        Relative change at which an image counts as converged.
    strict : bool
        Refuse to run outside the solver's convergence theorem.

    Raises
    ------
    ValueError
        A number out of range, an unknown solver, or options of a solver without one.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> from lpn_fast.pipeline import problems
    >>> task = Reconstruct(problems.blur(lf.physics.Blur.gaussian(1.6)), noise=0.03, solver="pgd", iterations=3)
    >>> model = lf.pretrained("natural-gray")
    >>> y = task.degrade(torch.rand(1, 24, 24), torch.Generator().manual_seed(0))
    >>> task.solve(y[None], model).x.shape
    torch.Size([1, 1, 24, 24])
    """

    problem: Problem = field()
    noise: float | None = None
    solver: str | None = None
    iterations: int | None = None
    sigma: float | None = None
    tol: float = 1e-5
    strict: bool = False

    name = "reconstruct"

    def __post_init__(self):
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive and finite, got {self.noise:g}")
        if self.solver not in (None, *SOLVERS):
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if self.solver is None and (self.iterations, self.sigma, self.strict) != (None, None, False):
            raise ValueError("iterations, sigma and strict are options of a solver, which must be named")
        if self.iterations is None:
            object.__setattr__(self, "iterations", AUTO_ITERATIONS)
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        super().__post_init__()

    @property
    def expected_noise(self) -> float | None:
        return self.noise

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        if not isinstance(self.problem.physics, Blur):
            return {}
        usual = {"gray": GRAY, "colour": COLOR}
        return {kind: (name, BLUR[name]) if self.solver is None else (BLUR[name],) for kind, name in usual.items()}

    def settings(self) -> dict:
        names = ("noise", "solver") if self.solver is None else ("noise", "solver", "iterations", "tol", "sigma")
        chosen = {name: getattr(self, name) for name in names}
        return {"task": self.name, "physics": self.problem.name, **self.problem.settings, **chosen}

    def conditions(self, model: LPN) -> solvers.Conditions | None:
        """Of the solver's theorem, from one iteration on a blank image; with `strict` a ValueError where one fails."""
        if self.solver is None:
            return None
        size = self.problem.image_size or (self.problem.least_side,) * 2
        y = self.problem.physics.A(blank_image(model, size))
        noise = torch.full((1,), PROBE_NOISE).to(y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a blank image comes back as it started
            return self._run(y, model, noise, max_iter=1, callback=None).conditions

    def solve(
        self, y: Tensor, model: LPN | Choice, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> Restoration:
        noise = self.noise if noise is None else noise
        if self.solver is None:
            result = reconstruct(y, self.problem.physics, model, noise=noise, progress=on_iteration or False)
            x = result.x
        else:
            callback = None if on_iteration is None else lambda iteration, x, objective: on_iteration(iteration)
            result = self._run(y, model, noise, self.iterations, callback)
            x = self.problem.framed(result.x)
        sigma = result.settings.sigma
        told = None if sigma is None else torch.as_tensor(sigma).to(result.residual).expand(len(y))
        found = result.objective, result.residual[-1], result.iterations, result.converged, result.broken
        return Restoration(self.problem.image(x), *found, sigma=told, misfit=result.misfit)

    def _run(self, y: Tensor, model: LPN, noise: float | Tensor | None, max_iter: int, callback):
        options = {"sigma": self.sigma, "tol": self.tol, "strict": self.strict}
        solver = SOLVERS[self.solver]
        return solver(y, self.problem.physics, model, noise=noise, max_iter=max_iter, callback=callback, **options)
