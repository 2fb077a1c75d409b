"""Image files in, image files out: one table of formats, for training and for jobs."""

from .containers import Member, is_container, members
from .formats import FORMATS, decode, decode_stored, encode, read_image, write_image
from .image import Encoding, Image, Range, Stored, UnreadableImage

__all__ = [
    "FORMATS",
    "Encoding",
    "Image",
    "Member",
    "Range",
    "Stored",
    "UnreadableImage",
    "decode",
    "decode_stored",
    "encode",
    "is_container",
    "members",
    "read_image",
    "write_image",
]
