"""Training: losses, schedules, configurations, and a trainer whose runs can be stopped and resumed at any moment."""

from .config import TrainingConfig, from_dict, read_config
from .laplacian import soft_threshold, train_laplacian
from .losses import ProximalMatchingLoss, l1_loss, l2_loss, log_loss
from .problems import Deblurring, Problems
from .run import train
from .schedule import Phase, published_phases
from .trainer import Trainer

__all__ = [
    "Deblurring",
    "Phase",
    "Problems",
    "ProximalMatchingLoss",
    "Trainer",
    "TrainingConfig",
    "from_dict",
    "l1_loss",
    "l2_loss",
    "log_loss",
    "published_phases",
    "read_config",
    "soft_threshold",
    "train",
    "train_laplacian",
]
