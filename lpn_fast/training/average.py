"""The exponential moving average of the weights, and why it is still an exact prox.

    a <- d a + (1 - d) p      after every step,      d = min(decay, (1 + t) / (10 + t))

The d of the first steps is smaller, so that the start is forgotten. Averages of non-negative weights are
non-negative, hence f of the averaged weights is again the gradient of a convex potential. Constraints that are
not convex in the weights (a bound on the gain) are restored by the caller's projection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averaged copies of a module's parameters.

    Parameters
    ----------
    model : nn.Module
    decay : float
        In (0, 1); about 1 / (1 - decay) steps count.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1), got {decay}")
        self.model, self.decay = model, decay
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def install(self) -> None:
        """Overwrite the model's weights by the averaged ones."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.tensors[name])

    @contextmanager
    def installed(self, project: Callable[[], object]) -> Iterator[None]:
        """The averaged weights, projected, within the block; the model's own afterwards."""
        own = [p.detach().clone() for p in self.model.parameters()]
        self.install()
        project()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.model.parameters(), own, strict=True):
                    parameter.copy_(value)
