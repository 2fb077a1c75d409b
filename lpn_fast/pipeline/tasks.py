"""What a job does to each image, and denoising by one prox.

Denoising is the case A = 1 of reconstruction (restoring.py): one evaluation f(y) minimises 1/2 ||x - y||^2 + R(x).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import solvers
from ..networks import LPN, InTiles
from ..per_sample import norm
from .noise import FEW_TILES, MOST_TILES, noise_levels

PROBE_SIDE = 32  # pixels; the smallest image that shows whether operator, model and sigma fit together
PROBE_NOISE = 0.1
LEVEL_TOLERANCE = 0.1  # relative distance of the noise from the level that a one-level network knows

MOST_AT_ONCE = 2**20  # pixels of an image, beyond which it is evaluated in tiles, and numbers taken together
TILE_SIDE = 512

OnIteration = Callable[[float], None]  # called with the number of iterations done, or a part of one


class Task:
    """What a job does to each image.

    Attributes
    ----------
    name : str
    makes_images : bool
        Or numbers only, which the manifest keeps.
    iterations : int
        At most, for the progress bar.
    expected_noise : float or None
        What was said of it.
    networks : dict
        Shipped networks that replace the usual ones of a kind of image.
    problem : Problem or None
        What was measured, where that is not the image itself.
    """

    name: ClassVar[str]
    makes_images: ClassVar[bool] = True
    iterations: Any = 1
    expected_noise: Any = None
    networks: Any = MappingProxyType({})
    problem: Any = None

    @property
    def estimates_noise(self) -> bool:
        """Whether an image needs a noise estimate to be solved."""
        return self.expected_noise is None

    def noise_of(self, measured: list[Tensor]) -> list[float | None]:
        """The noise that each measurement (C, ...) shows, where it can be told."""
        return noise_levels(measured, self.tiles)

    @property
    def tiles(self) -> int:
        """Of an image, at most, that tell its noise."""
        return MOST_TILES if self.estimates_noise else FEW_TILES

    def settings(self) -> dict:
        """What decides the result besides the measurement and the network, JSON-ready."""
        raise NotImplementedError

    def conditions(self, model: LPN) -> solvers.Conditions | None:
        """Those of a theorem of convergence; ValueError where task and network do not fit together."""
        raise NotImplementedError

    def degrade(self, truth: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement of a known image (C, H, W); ValueError where it is not said how noisy it is."""
        raise NotImplementedError

    def solve(
        self, y: Tensor, model: Any, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> "Restoration":
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

    def __post_init__(self):
        check_sigma(self.sigma)

    @property
    def expected_noise(self) -> float | None:
        return self.sigma

    def settings(self) -> dict:
        return {"task": self.name, "sigma": self.sigma}

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

    def degrade(self, truth: Tensor, generator: torch.Generator) -> Tensor:
        """The noisy version of a known image (C, H, W)."""
        if self.sigma is None:
            raise ValueError("sigma must be given to make images noisy")
        return noisy(truth, self.sigma, generator)

    @torch.no_grad()
    def solve(
        self, y: Tensor, model: LPN, noise: Tensor | None = None, on_iteration: OnIteration | None = None
    ) -> Restoration:
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


def fingerprint(model: LPN) -> str:
    """Digest of architecture and weights as they act, the same wherever a model was loaded from."""
    with torch.no_grad():
        weights = model.packed().cpu().numpy().tobytes()
    return hashlib.sha256(model.spec.encoded.encode() + weights).hexdigest()[:16]


def blank_image(model: LPN, size: tuple[int, int] = (PROBE_SIDE, PROBE_SIDE)) -> Tensor:  # (1, channels, H, W)
    """What shows whether operator, model and sigma fit together."""
    own, size = next(model.parameters()), model.spec.image_size or size
    return torch.zeros(1, model.spec.channels, *size, dtype=own.dtype, device=own.device)


def noisy(image: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """With Gaussian noise from the generator."""
    return image + noise * torch.randn(image.shape, generator=generator, dtype=image.dtype)


def check_sigma(sigma: float | None) -> None:
    """Raise a ValueError unless it is positive or None."""
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma:g}")
