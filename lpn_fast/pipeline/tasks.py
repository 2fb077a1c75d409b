"""What is done to an image: deblurring by a solver, denoising by one prox.

With Gaussian noise of level s the MAP estimate minimises  ||A x - y||^2 / (2 s^2) - log p(x),  that is
    h(x) - s^2 log p(x),        h(x) = 1/2 ||A x - y||^2.
A network trained on noise sigma has learned  R = -sigma^2 log p.  PGD with step eta minimises h + R / eta
and ADMM with penalty rho minimises h + rho R, so the two agree with MAP for
    sigma = s sqrt(eta)         and         sigma = s / sqrt(rho).
That is the default for noise-conditional networks. A network of one noise level has no such choice.
Denoising is the case A = 1, eta = 1: one evaluation f(y) is the minimiser of 1/2 ||x - y||^2 + R(x).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import solvers
from ..networks import LPN
from ..physics import Blur, Denoising
from ..solvers.alternating_directions import SAFE_FACTOR
from ..solvers.proximal_gradient import SAFE_FRACTION

SOLVERS = {"pgd": solvers.pgd, "admm": solvers.admm}
PROBE_SIDE = 32  # pixels; the smallest image that shows whether operator, model and sigma fit together
PROBE_NOISE = 0.1
LEVEL_TOLERANCE = 0.1  # relative distance of the noise from the level that a one-level network knows

OnIteration = Callable[[int], None]  # called with the number of iterations done


class Task(Protocol):
    """What a job does to each image."""

    @property
    def name(self) -> str: ...

    @property
    def makes_images(self) -> bool: ...  # or numbers only, which the manifest keeps

    @property
    def iterations(self) -> int: ...  # at most

    @property
    def expected_noise(
        self,
    ) -> float | None: ...  # what was said of it, if anything

    @property
    def estimates_noise(self) -> bool: ...  # whether an image needs a noise estimate to be solved

    def settings(self) -> dict: ...  # whatever decides the result besides image and network, JSON-ready

    def conditions(self, model: LPN) -> solvers.Conditions | None: ...  # ValueError where things do not fit together

    def solve(
        self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> "Restoration": ...


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
    value: Tensor | None = None
    verdict: Tensor | None = None


@dataclass(frozen=True)
class Deblur:
    """Deblurring by plug-and-play with the learned prior.

    Parameters
    ----------
    physics : Blur
        The blur that made the measurements.
    noise : float
        Standard deviation of the measurements' noise, images in [0, 1]. 0 needs a sigma.
    method : "pgd" or "admm"
    iterations : int
        Most iterations.
    sigma : float, optional
        Noise level handed to a noise-conditional network; None is noise * sqrt(step size) for PGD and
        noise / sqrt(rho) for ADMM, the MAP choice. Larger is smoother.
    tol : float
        Relative change at which an image counts as converged.
    strict : bool
        Refuse to run outside the solver's convergence theorem.

    Raises
    ------
    ValueError
        A number out of range or an unknown method.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> task = Deblur(lf.physics.Blur.gaussian(1.6), noise=0.03, iterations=3)
    >>> model = lf.ConvLPN(1, hidden=8).eval()
    >>> y = task.degrade(torch.rand(1, 24, 24), torch.Generator().manual_seed(0))
    >>> task.solve(y[None], model).x.shape
    torch.Size([1, 1, 24, 24])
    """

    physics: Blur
    noise: float
    method: str = "pgd"
    iterations: int = 100
    sigma: float | None = None
    tol: float = 1e-5
    strict: bool = False

    name = "deblur"
    makes_images = True

    def __post_init__(self):
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be at least 0 and finite, got {self.noise:g}")
        if self.method not in SOLVERS:
            raise ValueError(f"method must be one of {', '.join(SOLVERS)}, got {self.method!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        check_sigma(self.sigma)

    def network_sigma(self, model: LPN) -> float | None:
        """The noise level the network is evaluated at; None for a network of one level."""
        if self.sigma is not None or not model.is_noise_conditional:
            return self.sigma
        if self.noise == 0:
            raise ValueError("sigma must be given if noise is 0: there is nothing to derive it from")
        curvature = self.physics.norm() ** 2
        step_size = SAFE_FRACTION / curvature if self.method == "pgd" else 1 / (SAFE_FACTOR * curvature)
        return self.noise * math.sqrt(step_size)

    @property
    def expected_noise(self) -> float | None:
        """What was said of the noise."""
        return self.noise

    estimates_noise = False

    def settings(self) -> dict:
        """What decides the result besides the measurement and the network, JSON-ready."""
        kernel = self.physics.kernel
        return {
            "task": self.name,
            "kernel": f"{kernel.shape[0]}x{kernel.shape[1]}:{_sha256(kernel.numpy().tobytes())}",
            "boundary": self.physics.boundary,
            "noise": self.noise,
            "method": self.method,
            "iterations": self.iterations,
            "tol": self.tol,
            "sigma": self.sigma,
        }

    def conditions(self, model: LPN) -> solvers.Conditions:
        """The conditions of the solver's theorem, from one iteration on a small blank image.

        Raises
        ------
        ValueError
            Model, operator and sigma do not fit together, or with `strict` a condition does not hold.
        """
        blank = blank_image(model, *self.physics.kernel.shape)
        return self._run(self.physics.A(blank), model, max_iter=1, callback=None).conditions

    def degrade(
        self,
        truth: Tensor,  # (C, H, W)
        generator: torch.Generator,
    ) -> Tensor:  # (C, H', W')
        """The measurement of a known image: blurred, with noise drawn from the generator."""
        return _noisy(self.physics.A(truth[None])[0], self.noise, generator)

    def cropped(
        self,
        measured: Tensor,  # (C, H', W')
        size: tuple[int, int],
    ) -> Tensor:  # (C, H, W)
        """The part of a measurement that lies over the image, to compare the two."""
        if self.physics.boundary == "circular":
            return measured
        top, left = (side // 2 for side in self.physics.kernel.shape)
        return measured[:, top : top + size[0], left : left + size[1]]

    def solve(
        self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> Restoration:
        """Reconstructions of the samples y, (N, c, h, w); see lpn_fast.solvers."""
        callback = None if on_iteration is None else lambda iteration, x, objective: on_iteration(iteration)
        result = self._run(y, model, self.iterations, callback)
        # Whoever ran neither to the last iteration nor to the tolerance was let go for NaN or infinity.
        broken = ~result.converged & (result.iterations < len(result.objective))
        return Restoration(result.x, result.objective, result.residual[-1], result.iterations, result.converged, broken)

    def _run(self, y: Tensor, model: LPN, max_iter: int, callback) -> solvers.Reconstruction:
        return SOLVERS[self.method](
            y,
            self.physics,
            model,
            sigma=self.network_sigma(model),
            max_iter=max_iter,
            tol=self.tol,
            strict=self.strict,
            callback=callback,
        )


@dataclass(frozen=True)
class Denoise:
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
    makes_images = True

    def __post_init__(self):
        check_sigma(self.sigma)

    @property
    def expected_noise(self) -> float | None:
        """What was said of the noise."""
        return self.sigma

    @property
    def estimates_noise(self) -> bool:
        """Whether the noise of an image has to be found from it."""
        return self.sigma is None

    def network_sigma(self, model: LPN, noise: Tensor | None = None) -> float | Tensor | None:
        """The noise level the network is evaluated at; None for a network of one level."""
        return (noise if self.sigma is None else self.sigma) if model.is_noise_conditional else None

    def settings(self) -> dict:
        """What decides the result besides the measurement and the network, JSON-ready."""
        return {"task": self.name, "sigma": self.sigma}

    def conditions(self, model: LPN) -> None:
        """None: a prox needs no theorem of convergence.

        Raises
        ------
        ValueError
            A network of one noise level, and that is another one.
        """
        own = model.card.get("sigma")
        fixed = self.sigma is not None and not model.is_noise_conditional and isinstance(own, int | float)
        if fixed and abs(self.sigma - own) > LEVEL_TOLERANCE * own:
            raise ValueError(
                f"sigma must be {own:g}, the one noise level this model was trained for, got {self.sigma:g}; "
                "choose a noise-conditional model for other levels"
            )
        blank = blank_image(model)
        self.solve(blank, model, torch.full((1,), PROBE_NOISE).to(blank))

    def degrade(
        self,
        truth: Tensor,  # (C, H, W)
        generator: torch.Generator,
    ) -> Tensor:  # (C, H, W)
        """The noisy version of a known image.

        Raises
        ------
        ValueError
            It is not said how noisy.
        """
        if self.sigma is None:
            raise ValueError("sigma must be given to make images noisy")
        return _noisy(truth, self.sigma, generator)

    def cropped(
        self,
        measured: Tensor,  # (C, H, W)
        size: tuple[int, int],
    ) -> Tensor:  # (C, H, W)
        return measured

    @torch.no_grad()
    def solve(
        self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> Restoration:
        """Denoised samples y, (N, c, h, w), with noise (N,) where that is estimated; minimises 1/2 |x - y|^2 + R(x)."""
        sigma = self.network_sigma(model, noise)
        x, prior = model.prox_and_prior(y, sigma=sigma)
        objective = 0.5 * (x - y).double().square().sum(dim=(1, 2, 3)) + prior  # (N,)
        if on_iteration is not None:
            on_iteration(1)
        finite = objective.isfinite() & x.flatten(1).isfinite().all(dim=1)
        once = torch.ones(len(y), dtype=torch.int64, device=y.device)
        told = None if sigma is None else torch.as_tensor(sigma).to(objective).expand(len(y))
        return Restoration(x, objective[None], torch.zeros_like(objective), once, finite, broken=~finite, sigma=told)

    @property
    def iterations(self) -> int:
        """One evaluation."""
        return 1

    @property
    def physics(self) -> Denoising:
        """The identity."""
        return Denoising()


def fingerprint(model: LPN) -> str:
    """Digest of architecture and weights as they act, the same wherever a model was loaded from."""
    with torch.no_grad():
        weights = model.packed().cpu().numpy().tobytes()
    return _sha256(model.spec.encoded.encode() + weights)


def blank_image(model: LPN, *at_least: int) -> Tensor:  # (1, channels, side, side)
    """What shows whether operator, model and sigma fit together."""
    own, side = next(model.parameters()), max(PROBE_SIDE, *at_least, 0)
    size = model.spec.image_size or (side, side)
    return torch.zeros(1, model.spec.channels, *size, dtype=own.dtype, device=own.device)


def _noisy(image: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return image + noise * torch.randn(image.shape, generator=generator, dtype=image.dtype)


def check_sigma(sigma: float | None) -> None:
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma:g}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
