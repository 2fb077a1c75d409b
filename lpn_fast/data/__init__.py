"""Training data: random crops of image folders, decoded once."""

from .images import ImageCrops, read_gray_or_colour, validation_batch

__all__ = ["ImageCrops", "read_gray_or_colour", "validation_batch"]
