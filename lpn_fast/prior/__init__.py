"""The learned prior R itself: inverses of f, values with a certificate, and proof that f is a prox."""

from .amortised import AmortisedPrior, AmortisedValue
from .envelope import moreau_envelope
from .invert import Inversion, Verdict, invert
from .scaling import rescaled
from .value import PriorValue, prior
from .verify import Property, Report, verify

__all__ = [
    "AmortisedPrior",
    "AmortisedValue",
    "Inversion",
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
