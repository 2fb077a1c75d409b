"""The networks: `LPN` and its families, the published ones, checkpoints and shipped models."""

from .checkpoint import load, save
from .explanation import explain
from .explicit import ExplicitLPN
from .families import MLPLPN, ConvLPN
from .frame import FrameLPN
from .gain import asymptotic_gain, limit_gain_, lipschitz_bound
from .lpn import LPN
from .mixture import MixtureLPN
from .published import from_reference, paper_network
from .ridge import RidgeLPN
from .shipped import is_shipped, list_pretrained, pretrained, shipped_or_loaded
from .tiles import InTiles

__all__ = [
    "LPN",
    "ConvLPN",
    "ExplicitLPN",
    "MLPLPN",
    "FrameLPN",
    "InTiles",
    "MixtureLPN",
    "RidgeLPN",
    "asymptotic_gain",
    "lipschitz_bound",
    "explain",
    "from_reference",
    "is_shipped",
    "limit_gain_",
    "list_pretrained",
    "load",
    "paper_network",
    "pretrained",
    "save",
    "shipped_or_loaded",
]
