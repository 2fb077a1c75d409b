"""The compiled CPU path: `backend` offers it; the other files are its products, layer by layer.

frame     whole frame, mixture and ridge networks in one pass
experts   mixtures in contexts, in two passes
narrow    correlations of few input channels: skips and first stages
winograd  3 x 3 correlations of many channels
maps      which of these, or the library's convolution, computes each linear map
memory    large results on huge pages
"""

from .backend import CpuBackend, register

__all__ = ["CpuBackend", "register"]
