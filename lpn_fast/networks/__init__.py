"""The networks: `LPN` and its families, the published ones, checkpoints and shipped models."""

from .checkpoint import load, save
from .families import MLPLPN, ConvLPN
from .lpn import LPN, explain
from .pretrained import list_pretrained, pretrained
from .published import from_reference, paper_network

__all__ = [
    "LPN",
    "ConvLPN",
    "MLPLPN",
    "explain",
    "from_reference",
    "list_pretrained",
    "load",
    "paper_network",
    "pretrained",
    "save",
]
