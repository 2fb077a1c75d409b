"""phi(sigma): the features through which the biases of a noise-conditional network depend on sigma.

Hat functions on the knots of `spec.noise_levels`, in log sigma: any continuous, piecewise log-linear
b(sigma) is reachable, psi stays convex in x at every sigma, and outside the knots the nearest one holds.
"""

import torch
from torch import Tensor


def noise_features(sigma: Tensor, levels: tuple[float, ...], log_levels: Tensor | None = None) -> Tensor:
    """Features of noise levels `sigma`, shape (N,); the result is (N, len(levels)) and sums to one per row.

    `log_levels`, shape (len(levels),), are the logarithms on sigma's device, for devices to which a copy of them in
    every call would make the host wait.
    """
    if len(levels) == 1:
        return torch.ones_like(sigma)[:, None]
    if log_levels is None or sigma.device.type == "cpu":
        knots = torch.tensor(levels, dtype=sigma.dtype, device=sigma.device).log()
    else:
        knots = log_levels.to(sigma.dtype)
    t = sigma.log().clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, t.contiguous(), right=True).clamp(1, len(levels) - 1)
    left = right - 1
    weight = (t - knots[left]) / (knots[right] - knots[left])  # [N], 0 at the left knot
    features = torch.zeros(sigma.shape[0], len(levels), dtype=sigma.dtype, device=sigma.device)
    features = features.scatter(1, left[:, None], (1 - weight)[:, None])
    return features.scatter(1, right[:, None], weight[:, None])
