"""Training data: images from folders, archives and array files, decoded once; images made up."""

from .augment import Augment
from .images import ImageCrops, ImageStore, validation_batch
from .readers import WINDOWS, Item, find_items
from .synthetic import synthetic_crops, synthetic_images

__all__ = [
    "WINDOWS",
    "Augment",
    "ImageCrops",
    "ImageStore",
    "Item",
    "find_items",
    "synthetic_crops",
    "synthetic_images",
    "validation_batch",
]
