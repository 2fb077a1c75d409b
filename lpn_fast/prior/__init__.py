"""The learned prior R itself: inverses of f, values with a certificate, and proof that f is a prox.

`lf.prior` is this package and, called, the function of that name: `lf.prior(model, x)` evaluates R.
"""

import sys
import types
from typing import Unpack

from torch import Tensor

from ..networks import LPN
from .amortised import AmortisedPrior, AmortisedValue
from .envelope import moreau_envelope
from .inversion import Inversion, InvertOptions, Verdict, invert
from .scaling import rescaled
from .value import PriorValue, prior
from .verification import Property, Report, verify

__all__ = [
    "AmortisedPrior",
    "AmortisedValue",
    "Inversion",
    "InvertOptions",
    "PriorValue",
    "Property",
    "Report",
    "Verdict",
    "invert",
    "moreau_envelope",
    "prior",
    "rescaled",
    "verify",
]


class CallablePackage(types.ModuleType):
    """A package that may be called: without it the function would hide the package, or the other way round."""

    def __call__(
        self, model: LPN, x: Tensor, *, sigma: float | Tensor | None = None, **options: Unpack[InvertOptions]
    ) -> PriorValue:
        """R(x) of every sample: `lpn_fast.prior.prior`."""
        return prior(model, x, sigma=sigma, **options)


sys.modules[__name__].__class__ = CallablePackage
