"""Learned proximal networks, made fast, trustworthy and practical.

A learned proximal network is f = grad psi with psi an input-convex network, hence exactly the proximal
operator of a learned, possibly non-convex function R, for any weights. See README.md for a start.
"""

import torch as _torch  # noqa: F401  (before the compiled module: it borrows torch's thread pool)

from . import interop, metrics, optim, physics, prior, solvers, training
from .networks import (
    LPN,
    MLPLPN,
    ConvLPN,
    FrameLPN,
    InTiles,
    MixtureLPN,
    RidgeLPN,
    asymptotic_gain,
    explain,
    from_reference,
    lipschitz_bound,
    list_pretrained,
    load,
    paper_network,
    pretrained,
    save,
)
from .ops.registry import use_backend
from .prior import AmortisedPrior, Inversion, PriorValue, Verdict, invert, moreau_envelope, rescaled, verify
from .restoration import reconstruct
from .training import ProximalMatchingLoss

__version__ = "0.1.0"

__all__ = [
    "LPN",
    "AmortisedPrior",
    "ConvLPN",
    "Inversion",
    "MLPLPN",
    "PriorValue",
    "ProximalMatchingLoss",
    "FrameLPN",
    "InTiles",
    "MixtureLPN",
    "RidgeLPN",
    "Verdict",
    "asymptotic_gain",
    "lipschitz_bound",
    "explain",
    "from_reference",
    "interop",
    "invert",
    "list_pretrained",
    "load",
    "metrics",
    "moreau_envelope",
    "optim",
    "paper_network",
    "physics",
    "pretrained",
    "prior",
    "reconstruct",
    "rescaled",
    "save",
    "solvers",
    "training",
    "use_backend",
    "verify",
]
