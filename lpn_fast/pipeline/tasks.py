"""What a job does to each image: denoising by one prox, reconstruction from measurements, scoring by the learned prior.

With Gaussian noise of level s the MAP estimate minimises  ||A x - y||^2 / (2 s^2) - log p(x),  that is
    h(x) - s^2 log p(x),        h(x) = 1/2 ||A x - y||^2.
A network trained on noise sigma has learned  R = -sigma^2 log p; how solvers choose sigma, step and strength from s
is in solvers/automatic.py. Denoising is the case A = 1: one evaluation f(y) minimises 1/2 ||x - y||^2 + R(x).
Scores are the task that makes no images.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import solvers
from ..choice import Choice, Network, shipped_for
from ..networks import LPN, InTiles
from ..per_sample import norm
from ..prior import Verdict, prior
from ..restoration import reconstruct
from .batches import CHANNELS, ONE_PASS_PRIOR
from .problems import FEW_TILES, IMAGES, MOST_TILES, PROBE_SIDE, Problem

SOLVERS = {name: getattr(solvers, name) for name in ("pgd", "fista", "admm", "drs", "hqs", "gradient")}
AUTO_ITERATIONS = 100
PROBE_NOISE = 0.1
LEVEL_TOLERANCE = 0.1  # relative distance of the noise from the level that a one-level network knows

# what a line says when not every plane converged: the gravest of their verdicts
GRAVITY = (Verdict.CONVERGED, Verdict.ITERATIONS, Verdict.STALLED, Verdict.OUTSIDE, Verdict.INVALID)
MOST_AT_ONCE = 2**20  # pixels of an image, beyond which it is evaluated in tiles, and numbers taken together
TILE_SIDE = 512

Progress = Callable[[float], None] | None  # called with the number of iterations done, or a part of one
Model = Network | Choice  # a network, or one for the pilot and one for the descent


class Task:
    """What a job does to each image."""

    name: ClassVar[str]
    makes_images: ClassVar[bool] = True  # or numbers only, which the manifest keeps
    iterations: Any = 1  # at most, for the progress bar
    expected_noise: Any = None  # what was said of it
    networks: Any = MappingProxyType({})  # shipped ones that replace the usual ones of a kind of image
    problem: Problem = IMAGES  # what was measured
    sigma: Any = None  # told to the network

    def __post_init__(self):
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {self.sigma:g}")

    @property
    def estimates_noise(self) -> bool:
        """Whether an image needs a noise estimate to be solved."""
        return self.expected_noise is None

    def noise_of(self, measured: list[Tensor]) -> list[float | None]:
        """The noise that each measurement (C, ...) shows, where it can be told."""
        return self.problem.noise_of(measured, MOST_TILES if self.estimates_noise else FEW_TILES)

    def settings(self) -> dict:
        """What decides the result besides the measurement and the network, JSON-ready."""
        return {"task": self.name, **vars(self)}

    def conditions(self, model: LPN) -> solvers.Conditions | None:
        """Those of a theorem of convergence; ValueError where task and network do not fit together."""
        raise NotImplementedError

    def degrade(self, truth: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement of a known image (C, H, W), with noise; ValueError where it is not said how much."""
        if self.expected_noise is None:
            raise ValueError("the noise must be given to simulate measurements")
        y = self.problem.measurement(truth)
        return y + self.expected_noise * torch.randn(y.shape, generator=generator, dtype=y.dtype)

    def solve(self, y: Tensor, model: Any, noise: Tensor | None = None, on_iteration: Progress = None) -> "Restoration":
        """Results for the samples y (N, c, ...), with an LPN, or a Choice of two where the task asks for them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Restoration:
    """Solved samples.

    Attributes
    ----------
    x : Tensor, shape (N, c, h, w)
    objective : Tensor, shape (iterations run, N), float64
    residual : Tensor, shape (N,), float64
        Relative change in the last iteration.
    iterations : Tensor, shape (N,), int64
    converged : Tensor, shape (N,), bool
    broken : Tensor, shape (N,), bool
        Became NaN or infinite on the way.
    sigma : Tensor, shape (N,), or None
        Noise level that the network was told.
    misfit : Tensor, shape (N,), float64, or None
        |A x - y| over what the noise makes of it.
    value : Tensor, shape (N,), float64, or None
        Of the learned prior, for the task that asks for it; x and objective are None then.
    verdict : Tensor, shape (N,), int64, or None
        How the search for it ended, a `Verdict`.
    """

    x: Tensor | None
    objective: Tensor | None
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    broken: Tensor
    sigma: Tensor | None = None
    misfit: Tensor | None = None
    value: Tensor | None = None
    verdict: Tensor | None = None


@dataclass(frozen=True)
class Denoise(Task):
    """Denoising by one evaluation of the network, the exact MAP estimate under its prior.

    Parameters
    ----------
    sigma : float, optional
        Standard deviation of the noise, images in [0, 1]. None is what each image shows of it.

    Raises
    ------
    ValueError
        sigma that is not positive.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> Denoise(sigma=0.1).solve(torch.rand(2, 1, 16, 16), lf.ConvLPN(1, hidden=8).eval()).x.shape
    torch.Size([2, 1, 16, 16])
    """

    sigma: float | None = None

    name = "denoise"

    @property
    def expected_noise(self) -> float | None:
        return self.sigma

    def conditions(self, model: LPN) -> None:
        """None: a prox needs no theorem of convergence; ValueError for a network of one noise level, another one."""
        own = model.card.get("sigma")
        fixed = self.sigma is not None and not model.is_noise_conditional and isinstance(own, int | float)
        if fixed and abs(self.sigma - own) > LEVEL_TOLERANCE * own:
            raise ValueError(
                f"sigma must be {own:g}, the one noise level this model was trained for, got {self.sigma:g}; "
                "choose a noise-conditional model for other levels"
            )
        blank = blank_image(model)
        self.solve(blank, model, torch.full((1,), PROBE_NOISE).to(blank))

    @torch.no_grad()
    def solve(self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: Progress = None) -> Restoration:
        """Denoised samples y, (N, c, h, w), with noise (N,) where that is estimated; minimises 1/2 |x - y|^2 + R(x).

        The minimum, the Moreau envelope of R, is 1/2 |y|^2 - psi(y). Nothing of the size of y is made besides x.
        """
        sigma = (noise if self.sigma is None else self.sigma) if model.is_noise_conditional else None
        psi, x = in_tiles(model, y, on_iteration).potential_and_prox(y, sigma)
        squares = sum(norm(part).square() for part in y.flatten(1).split(MOST_AT_ONCE, dim=1))  # (N,)
        objective = 0.5 * squares - psi.double()
        if on_iteration is not None:
            on_iteration(1)
        least, most = x.flatten(1).aminmax(dim=1)
        finite = objective.isfinite() & (most - least).isfinite()
        once = torch.ones(len(y), dtype=torch.int64, device=y.device)
        told = None if sigma is None else torch.as_tensor(sigma).to(objective).expand(len(y))
        return Restoration(x, objective[None], torch.zeros_like(objective), once, finite, broken=~finite, sigma=told)


def in_tiles(model: LPN, y: Tensor, on_share: Callable[[float], None] | None) -> LPN | InTiles:
    """The network for samples y (N, C, H, W): where they are large, tile by tile, which bounds memory, exactly."""
    if math.prod(y.shape[2:]) <= MOST_AT_ONCE or model.spec.image_size is not None:
        return model
    try:
        return InTiles(model, TILE_SIDE, on_share)
    except (TypeError, ValueError):  # a prox that is a solve, or stages that do not keep step with the image
        return model


def blank_image(model: LPN, size: tuple[int, int] = (PROBE_SIDE, PROBE_SIDE)) -> Tensor:  # (1, channels, H, W)
    """What shows whether operator, model and sigma fit together."""
    own, size = next(model.parameters()), model.spec.image_size or size
    return torch.zeros(1, model.spec.channels, *size, dtype=own.dtype, device=own.device)


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
    >>> model = lf.pretrained("fast-gray")
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
        """Those of `lpn_fast.reconstruct`, or the one of them that suits the solver."""
        return {kind: shipped_for(self.problem.physics, n, self.solver) for kind, n in CHANNELS.items()}

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

    def solve(self, y: Tensor, model: Model, noise: Tensor | None = None, on_iteration: Progress = None) -> Restoration:
        is_estimate, noise = noise is not None, self.noise if noise is None else noise
        if self.solver is None:
            told = {"noise": noise, "is_estimate": is_estimate}
            result = reconstruct(y, self.problem.physics, model, **told, progress=on_iteration or False)
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
    networks = MappingProxyType({kind: (name,) for kind, name in ONE_PASS_PRIOR.items()})

    def conditions(self, model: LPN) -> None:
        """None: the certificate of a value is its residual; ValueError for options that `prior` refuses."""
        levels = model.spec.noise_levels
        if levels and self.sigma is None:
            low, high = levels[0], levels[-1]
            raise ValueError(f"sigma must be given, this model has a prior for each level from {low:g} to {high:g}")
        self._prior(blank_image(model), model, max_iter=1)

    def solve(self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: Progress = None) -> Restoration:
        result = self._prior(y, model, self.max_iter)
        verdict, iterations = result.inversion.verdict, result.inversion.iterations
        broken = (verdict == Verdict.INVALID) | ~result.value.isfinite()
        found = result.residual, iterations, result.converged, broken
        return Restoration(None, None, *found, value=result.value, verdict=verdict)

    @torch.no_grad()
    def _prior(self, x: Tensor, model: LPN, max_iter: int | None):
        options = {"sigma": self.sigma, "tol": self.tol, "method": self.method}
        return prior(model, x, max_iter=max_iter, dtype=torch.float64 if self.double else None, **options)


def gravest(verdicts: Tensor) -> str:
    """The worst of the verdicts of an image's planes, in a word."""
    return max((Verdict(v) for v in verdicts.tolist()), key=GRAVITY.index).name.lower()
