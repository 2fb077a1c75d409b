"""Preimages and values of an explicit prior: one pass, no inversion.

    y = x + grad R(x) has f(y) = x exactly, and R(x) is what the network computes.

Residuals and bounds are therefore zero: rounding is all that separates these numbers from the exact ones.
"""

import copy

import torch
from torch import Tensor

from ..networks.explicit import ExplicitLPN
from ..ops.solve import Verdict
from ..per_sample import choose
from .inversion import Inversion
from .value import PriorValue


def preimages(model: ExplicitLPN, x: Tensor, sigma, dtype: torch.dtype | None = None) -> Inversion:
    """What `invert` returns for an explicit prior; `dtype` float64 computes in it."""
    model, x = _in(dtype, model, x)
    finite = x.flatten(1).isfinite().all(1)
    y = choose(finite, model.preimage(x, sigma), torch.full_like(x, float("nan")))
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    verdict = torch.where(finite, int(Verdict.CONVERGED), int(Verdict.INVALID))
    return Inversion(y, zero, zero.long(), finite, zero, verdict)


def value(model: ExplicitLPN, x: Tensor, sigma, dtype: torch.dtype | None = None) -> PriorValue:
    """What `prior` returns for an explicit prior."""
    inversion = preimages(model, x, sigma, dtype)
    model, x = _in(dtype, model, x)
    gradient = inversion.preimage - x
    zero = inversion.residual
    return PriorValue(
        model.prior(x, sigma), inversion.preimage, zero, inversion.converged, gradient, zero, inversion
    )  # fmt: skip


def _in(dtype: torch.dtype | None, model: ExplicitLPN, x: Tensor) -> tuple[ExplicitLPN, Tensor]:
    if dtype is None or dtype == x.dtype:
        return model, x
    return copy.deepcopy(model).to(dtype), x.to(dtype)
