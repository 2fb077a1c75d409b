"""Losses on f(x + noise) against x, each a mean over samples.

    l1         |pred - target|_1 / n                            minimised by the conditional median
    l2         |pred - target|_2^2 / n                          minimised by the conditional mean
    log        log(|pred - target|_2^2 / n)                     -4.34 dB of mean PSNR for one
    matching   1 - exp(-|pred - target|_2^2 / gamma^2)          arXiv 2310.14344, proximal matching

As gamma -> 0 the minimiser of proximal matching tends to the MAP denoiser, the prox of -sigma^2 log p.
n is the number of entries of a sample. Distances are accumulated in float32 or better whatever the input:
summing the squares of an image in 16 bits loses the digits that decide the exponent.
"""

import math

import torch
from torch import Tensor, nn


def l1_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error, scalar; pred and target (N, ...), weight (N,) or None (ones)."""
    return _mean(_wide(pred - target).abs().mean(1), weight)


def l2_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error, scalar; pred and target (N, ...), weight (N,) or None (ones)."""
    return _mean(_wide(pred - target).square().mean(1), weight)


def log_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean logarithm of the squared error of each sample, scalar: every sample counts alike, however hard it is.

    pred and target (N, ...), weight (N,) or None (ones).
    """
    return _mean(_wide(pred - target).square().mean(1).clamp_min(1e-12).log(), weight)


class ProximalMatchingLoss(nn.Module):
    """Proximal matching: mean over samples of 1 - exp(-|pred - target|^2 / gamma^2).

    Parameters
    ----------
    gamma : float, or Tensor of shape (N,)
        Width of the well, on the plain 2-norm of a whole sample, positive; one for all samples, or one for
        each. The published floor is 0.08 sqrt(n) for samples of n entries in [0, 1].

    Raises
    ------
    ValueError
        gamma that is not positive and finite, or not one per sample; pred and target of different shape.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> lf.ProximalMatchingLoss(gamma=0.5)(torch.zeros(4, 3), torch.zeros(4, 3))
    tensor(0.)
    """

    def __init__(self, gamma: float | Tensor):
        super().__init__()
        if isinstance(gamma, Tensor):
            if gamma.dim() > 1:
                raise ValueError(f"gamma must be a number or have shape (N,), got {tuple(gamma.shape)}")
            # values on another device are not looked at: that would wait for it
            if gamma.device.type == "cpu" and not (gamma.isfinite() & (gamma > 0)).all():
                raise ValueError(f"gamma must be positive, got {gamma.tolist()}")
            self.gamma: float | Tensor = gamma
        elif not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma must be positive, got {gamma}")
        else:
            self.gamma = float(gamma)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scalar loss for pred and target of shape (N, ...); weight (N,) or None (ones)."""
        if pred.shape != target.shape:
            raise ValueError(f"pred and target must have one shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
        squared = _wide(pred - target).square().sum(1)  # [N]
        gamma = self.gamma
        if isinstance(gamma, Tensor):
            if gamma.dim() == 1 and len(gamma) != len(squared):
                raise ValueError(f"gamma must be one for each of {len(squared)} samples, got {len(gamma)}")
            gamma = gamma.to(squared)
        return _mean(-torch.expm1(-squared / gamma**2), weight)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}" if isinstance(self.gamma, float) else f"gamma of {self.gamma.numel()} samples"


def _wide(difference: Tensor) -> Tensor:
    """[N, n], float32 at least."""
    flat = difference.flatten(1)
    return flat if flat.dtype == torch.float64 else flat.float()


def _mean(per_sample: Tensor, weight: Tensor | None) -> Tensor:
    return per_sample.mean() if weight is None else (per_sample * weight).mean()
