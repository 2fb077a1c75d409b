"""Plug-and-play solvers: batched, stopped per sample, with a real objective and checked conditions.

pgd, fista       gradient of the data term, step < 1 / ||A||^2; monotone objective
admm, drs        data prox, rho > ||A||^2; a falling envelope
hqs              data prox, any rho; a falling objective with a smoothed data term
"""

from lpn_fast.solvers.admm import admm
from lpn_fast.solvers.automatic import Settings
from lpn_fast.solvers.conditions import Condition, Conditions
from lpn_fast.solvers.drs import drs
from lpn_fast.solvers.fista import fista
from lpn_fast.solvers.hqs import hqs
from lpn_fast.solvers.noise import estimate_noise
from lpn_fast.solvers.pgd import pgd
from lpn_fast.solvers.reconstruction import Reconstruction

__all__ = [
    "Condition",
    "Conditions",
    "Reconstruction",
    "Settings",
    "admm",
    "drs",
    "estimate_noise",
    "fista",
    "hqs",
    "pgd",
]
