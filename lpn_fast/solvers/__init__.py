"""Plug-and-play solvers: batched, stopped per sample, with a real objective and checked conditions."""

from lpn_fast.solvers.admm import admm
from lpn_fast.solvers.conditions import Condition, Conditions
from lpn_fast.solvers.pgd import pgd
from lpn_fast.solvers.reconstruction import Reconstruction

__all__ = ["Condition", "Conditions", "Reconstruction", "admm", "pgd"]
