"""Learned proximal networks, made fast, trustworthy and practical.

A learned proximal network is f = grad psi with psi an input-convex network, hence exactly the proximal
operator of a learned, possibly non-convex function R, for any weights. See README.md for a start.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

import torch as _torch  # noqa: F401  (before the compiled module: it borrows torch's thread pool)

# _source_tree comes first: in a checkout it finds what the others import.
from . import _source_tree, data, interop, jobs, metrics, optim, physics, solvers, training  # noqa: F401
from .networks import (
    LPN,
    MLPLPN,
    ConvLPN,
    ExplicitLPN,
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
from .solvers import estimate_noise
from .training import ProximalMatchingLoss

if TYPE_CHECKING:  # the package `prior` may be called, which a type checker learns from its class only
    from .prior import CallablePackage

    prior: CallablePackage
else:
    from . import prior

__all__ = [
    "LPN",
    "AmortisedPrior",
    "ConvLPN",
    "ExplicitLPN",
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
    "data",
    "lipschitz_bound",
    "estimate_noise",
    "explain",
    "from_reference",
    "interop",
    "invert",
    "jobs",
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
