"""Learned proximal networks, made fast, trustworthy and practical.

A learned proximal network is f = grad psi with psi an input-convex network, hence exactly the proximal
operator of a learned, possibly non-convex function R, for any weights. See README.md for a start.
"""

import torch as _torch  # noqa: F401  (before the compiled module: it borrows torch's thread pool)

from . import metrics, physics, solvers, training
from .networks import (
    LPN,
    ConvLPN,
    MLPLPN,
    explain,
    from_reference,
    list_pretrained,
    load,
    paper_network,
    pretrained,
    save,
)
from .ops.registry import use_backend
from .training import ProximalMatchingLoss

__version__ = "0.1.0"

__all__ = [
    "LPN",
    "ConvLPN",
    "MLPLPN",
    "ProximalMatchingLoss",
    "explain",
    "from_reference",
    "list_pretrained",
    "load",
    "metrics",
    "paper_network",
    "physics",
    "pretrained",
    "save",
    "solvers",
    "training",
    "use_backend",
]
