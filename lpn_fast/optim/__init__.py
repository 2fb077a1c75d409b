"""Optimizers that keep the non-negative weights of an LPN non-negative as they step."""

from .projected_adam import ProjectedAdam

__all__ = ["ProjectedAdam"]
