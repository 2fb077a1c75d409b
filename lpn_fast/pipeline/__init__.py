"""From image files to reconstructed image files: batched, restartable, one bad file never stops the rest."""

from ..io import Encoding, Image, UnreadableImage, read_image, write_image
from ..io.finding import find_images
from .job import Summary, reconstruct
from .manifest import ItemResult, Share
from .tasks import Denoise, Reconstruct, Restoration, Score

__all__ = [
    "Denoise",
    "Encoding",
    "Image",
    "ItemResult",
    "Reconstruct",
    "Restoration",
    "Score",
    "Share",
    "Summary",
    "UnreadableImage",
    "find_images",
    "read_image",
    "reconstruct",
    "write_image",
]
