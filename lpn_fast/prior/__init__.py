"""The learned prior R itself: inverses of f, values with a certificate, and proof that f is a prox."""

from .envelope import moreau_envelope
from .invert import Inversion, Verdict, invert
from .value import PriorValue, prior
from .verify import Property, Report, verify

__all__ = [
    "Inversion",
    "PriorValue",
    "Property",
    "Report",
    "Verdict",
    "invert",
    "moreau_envelope",
    "prior",
    "verify",
]
