"""The learned prox inside an iteration, with the value of R it gives away.

    x = f(u),   t u + (1 - t) f(u) = z,      R(x) = <u, x> - 1/2 ||x||^2 - psi(u)

For t = 1 the preimage u is z. For t < 1 the equation is solved by iteration, and u moves little from one solver
iteration to the next: the last u is where a model that takes a start begins.

A network of one channel on images of several is applied to each of them, and R is the sum: the prox of a sum of
functions of separate variables is made of their proxes. Complex images, as real and imaginary part, are of this kind.

On a CPU a single evaluation of a large batch is cut into pieces whose widest activation stays in the cache, where a
network writes them to memory at all; samples do not see each other, so only the time changes.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor

from .protocol import ProxModel, WarmStartedModel

CACHED_BYTES = 16 * 2**20  # for one activation; above 32 MB the allocator requests fresh pages every time


@dataclass(frozen=True)
class LearnedProx:
    """`model.prox_and_prior` with a warm start where the model has one.

    Attributes
    ----------
    model : ProxModel
    warm : bool
        Whether it is a `WarmStartedModel`, which takes `start` and `return_preimage`.
    """

    model: ProxModel
    warm: bool

    @classmethod
    def of(cls, model: ProxModel) -> Self:
        """Looks once at what the model accepts."""
        if not callable(getattr(model, "prox_and_prior", None)):
            seen = repr(model) if isinstance(model, str) else type(model).__name__
            hint = f": lf.pretrained({model!r}) loads a shipped one" if isinstance(model, str) else ""
            raise TypeError(
                f"model must have prox_and_prior(z, strength=, sigma=), as every LPN has; a denoiser alone has no R to "
                f"minimise. Got {seen}{hint}"
            )
        accepted = inspect.signature(model.prox_and_prior).parameters
        return cls(model, {"start", "return_preimage"} <= accepted.keys())

    def __call__(
        self,
        z: Tensor,  # (n, ...)
        strength: float | Tensor,  # (n,)
        sigma: float | Tensor | None,  # (n,)
        preimage: Tensor | None,  # (n, ...) of the previous call
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # x (n, ...), R(x) (n,) float64, u (n, ...) or None
        count = channels_apart(self.model, z)
        if count > 1:
            shape, z = z.shape, z.reshape(-1, 1, *z.shape[2:])
            strength = repeated(strength, count)
            sigma = None if sigma is None else repeated(sigma, count)
            preimage = None if preimage is None else preimage.reshape(z.shape)
            x, prior, u = self(z, strength, sigma, preimage)
            return x.reshape(shape), prior.reshape(-1, count).sum(1), None if u is None else u.reshape(shape)
        if not self.warm or (isinstance(strength, float) and strength == 1):
            x, prior = self._in_pieces(z, strength, sigma)
            return x, prior, None
        model = cast(WarmStartedModel, self.model)
        x, prior, u = model.prox_and_prior(z, strength=strength, sigma=sigma, start=preimage, return_preimage=True)
        return x, prior, u

    def _in_pieces(
        self, z: Tensor, strength: float | Tensor, sigma: float | Tensor | None
    ) -> tuple[Tensor, ...]:  # as prox_and_prior
        """One evaluation, of a few samples at a time where a batch would leave the cache."""
        size = piece(self.model, z)
        if size >= len(z) or isinstance(strength, Tensor):
            return self.model.prox_and_prior(z, strength=strength, sigma=sigma)
        sigmas = sigma.split(size) if isinstance(sigma, Tensor) and sigma.dim() else [sigma] * -(-len(z) // size)
        parts = [
            self.model.prox_and_prior(part, strength=strength, sigma=level)
            for part, level in zip(z.split(size), sigmas, strict=True)
        ]
        images, priors = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(priors)


def channels_apart(model: ProxModel, z: Tensor) -> int:
    """How many channels of images (N, C, H, W) a one-channel network sees one by one; 1 for all other networks."""
    channels = getattr(getattr(model, "spec", None), "channels", None)
    return z.shape[1] if channels == 1 and z.dim() == 4 else 1


def repeated(value: float | Tensor, count: int) -> float | Tensor:
    """Values per sample, (n,), as values per channel, (n count,)."""
    return value.repeat_interleave(count) if isinstance(value, Tensor) and value.dim() > 0 else value


def piece(model: ProxModel, z: Tensor) -> int:  # z (n, ...)
    """How many samples to evaluate together; all of them unless on a CPU and of a network of known width."""
    stages = getattr(getattr(model, "spec", None), "stages", ())
    if z.device.type != "cpu" or z.dim() < 4 or not stages:
        return len(z)
    stores = getattr(model, "stores_activations", None)
    if stores is not None and not stores(z):
        return len(z)
    widest = max(stage.width for stage in stages) * math.prod(z.shape[2:]) * z.element_size()
    return max(1, CACHED_BYTES // widest)
