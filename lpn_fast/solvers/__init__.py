"""Plug-and-play solvers: batched, stopped per sample, with a real objective and checked conditions.

pgd, fista       gradient of the data term, step < 1 / ||A||^2; monotone objective
admm, drs        data prox, rho > ||A||^2; a falling envelope
hqs              data prox, any rho; a falling objective with a smoothed data term
pilot            no objective: a start for the others where the operator misses much of the image
gradient         no prox: gradients of the data term and of an explicit prior; monotone objective
"""

from .accelerated_gradient import fista
from .alternating_directions import admm
from .automatic import Settings
from .conditions import Condition, Conditions
from .continuation import Pilot, pilot
from .douglas_rachford import drs
from .half_quadratic import hqs
from .noise import estimate_noise
from .protocol import ProxModel, SmoothModel, StronglyConvexModel
from .proximal_gradient import pgd
from .reconstruction import Reconstruction, Stage
from .smooth import gradient

__all__ = [
    "Condition",
    "Conditions",
    "Pilot",
    "ProxModel",
    "StronglyConvexModel",
    "Reconstruction",
    "SmoothModel",
    "Settings",
    "Stage",
    "admm",
    "drs",
    "estimate_noise",
    "fista",
    "gradient",
    "hqs",
    "pgd",
    "pilot",
]
