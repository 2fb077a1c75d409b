"""Training data: images from folders, archives and array files, decoded once; images and numbers made up."""

from .augment import Augment
from .ct import WINDOWS, Window, read_dicom, series_in_order
from .densities import GaussianMixture, Laplace
from .images import ImageCrops, read_gray_or_colour, validation_batch
from .sources import Item, find_items, open_stack, read_idx
from .store import ImageStore
from .synthetic import synthetic_crops, synthetic_images

__all__ = [
    "WINDOWS",
    "Augment",
    "GaussianMixture",
    "ImageCrops",
    "ImageStore",
    "Item",
    "Laplace",
    "Window",
    "find_items",
    "open_stack",
    "read_dicom",
    "read_gray_or_colour",
    "read_idx",
    "series_in_order",
    "synthetic_crops",
    "synthetic_images",
    "validation_batch",
]
