"""Memory for the CPU kernels' results.

A fresh 67 MB tensor costs 16,000 page faults of 1.5 us in a virtual machine, more than the softplus that fills it.
Large results ask for pages of 2 MB before they are touched; where the system has none, nothing changes.
"""

import importlib

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes: two huge pages


def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Uninitialised CPU tensor of `shape`, (N, C, h, w) where channels-last."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(shape, dtype=dtype, memory_format=layout, device="cpu")
    if out.nbytes >= LARGE:
        importlib.import_module("lpn_fast._cpu").advise_huge_pages(out.data_ptr(), out.nbytes)
    return out
