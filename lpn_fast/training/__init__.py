"""Training: losses, schedules, and a trainer whose runs can be stopped and resumed at any moment."""

from .laplacian import soft_threshold, train_laplacian
from .losses import ProximalMatchingLoss, l1_loss, l2_loss
from .schedule import Phase, published_phases
from .trainer import Trainer
from .trajectories import SolverStates

__all__ = [
    "Phase",
    "ProximalMatchingLoss",
    "SolverStates",
    "Trainer",
    "l1_loss",
    "l2_loss",
    "published_phases",
    "soft_threshold",
    "train_laplacian",
]
