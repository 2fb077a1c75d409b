"""What a training step sees: clean samples, noisy samples, noise levels.

    y = x + sigma n,      x ~ data,  n ~ N(0, 1),      sigma fixed, or drawn per sample, uniform in log sigma

All randomness comes from the generator that is handed in. Every process draws the numbers of the whole batch and
keeps its rows, so a run does not depend on how many there are.
"""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .distributed import Group

Sampler = Callable[..., Tensor]  # (batch size, generator) -> clean samples (N, ...)


class NoisyBatches:
    """Draws the batches of a run.

    Parameters
    ----------
    sampler : callable
        As for `Trainer`.
    sigma : float or (float, float)
        Noise level, or the range it is drawn from, for noise-conditional networks.
    batch_size : int
        Samples of all processes together.
    conditional : bool
        Whether the network takes sigma.
    group : Group
    noise : callable
        As for `Trainer`.

    Raises
    ------
    TypeError, ValueError
        A sampler that is no callable, bad sigma, a batch that the processes cannot share.
    """

    def __init__(
        self,
        sampler: Sampler,
        sigma: float | tuple[float, float],
        batch_size: int,
        *,
        conditional: bool,
        group: Group,
        noise: Callable[..., Tensor] = torch.randn,
    ):
        self.sigma_range, self.conditional = _sigma_range(sigma, conditional), conditional
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size % group.size:
            raise ValueError(f"batch_size must be a multiple of the {group.size} processes, got {batch_size}")
        if not callable(sampler):
            raise TypeError(f"sampler must be callable as (batch_size, generator), got {type(sampler).__name__}")
        self.sampler, self.batch_size, self.noise = sampler, batch_size, noise
        self.rows = group.share(batch_size)
        self._draws_rows = "rows" in inspect.signature(sampler).parameters

    def draw(self, generator: torch.Generator, own: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(clean x, noisy y, sigma (N,) or None for a network of one level), this process' rows.

        Parameters
        ----------
        generator : torch.Generator
            On the CPU.
        own : Tensor
            A parameter of the network: the samples come in its type, on its device.
        """
        if self._draws_rows:
            x = self.sampler(self.batch_size, generator, rows=self.rows)
        else:
            x = self.sampler(self.batch_size, generator)[self.rows]
        x = x.to(own.dtype)
        low, high = self.sigma_range
        sigma = torch.rand(self.batch_size, generator=generator, dtype=x.dtype)[self.rows]
        sigma = low * (high / low) ** sigma
        shape = torch.Size((self.batch_size, *x.shape[1:]))
        if self.noise is torch.randn and own.device.type != "cpu":
            # drawn where it is used; the seed keeps it a function of the one generator
            there = torch.Generator(own.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
            noise = torch.randn(shape, generator=there, dtype=x.dtype, device=own.device)[self.rows]
            x, sigma = x.to(own.device, non_blocking=True), sigma.to(own.device)
        else:
            noise = self.noise(shape, generator=generator, dtype=x.dtype)[self.rows].to(x.device)
            sigma = sigma.to(x.device)
        y = x + sigma.view(-1, *(1,) * (x.dim() - 1)) * noise
        x, y, sigma = (t.to(own.device) for t in (x, y, sigma))
        return x, y, sigma if self.conditional else None


def _sigma_range(sigma, conditional: bool) -> tuple[float, float]:
    low, high = sigma if isinstance(sigma, tuple | list) else (sigma, sigma)
    if not (math.isfinite(high) and 0 < low <= high):
        raise ValueError(f"sigma must be positive, or an increasing pair, got {sigma}")
    if low != high and not conditional:
        raise ValueError(f"sigma must be one number for a network of one noise level, got the range {sigma}")
    return float(low), float(high)
