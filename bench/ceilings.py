"""What this machine can do, measured in the same run: the two lines of the roofline.

    fastest possible time of a call = max( FLOP / peak,  bytes / bandwidth ),     roofline fraction = that / time

Peak is the faster of torch's two float32 products, the matrix product and the 1 x 1 convolution, which come from
different libraries: on some machines the first uses half of the vector unit. The best of several runs counts (a
ceiling is a maximum, not a median).
Bandwidth is a copy of arrays far larger than the caches, read and write counted once each.
"""

import time
from dataclasses import dataclass

import torch

from .counters import Work

GEMM_SIZE = 2048  # 17 GFLOP, 50 MB: long against its overhead
COPY_BYTES = 2**28


@dataclass(frozen=True)
class Ceilings:
    """Rates of this machine at the number of threads in use."""

    gemm_gflops: float
    copy_gbytes: float

    def best_seconds(self, work: Work) -> float:
        """What the roofline allows."""
        return max(work.flop / (self.gemm_gflops * 1e9), work.bytes / (self.copy_gbytes * 1e9))


def measure(seconds: float = 2.0) -> Ceilings:
    """Both ceilings, in about `seconds`."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    out = torch.empty_like(a)
    pixels = a.t()[None, :, :, None].contiguous(memory_format=torch.channels_last)  # [1, channels, pixels, 1]
    kernel = b[:, :, None, None].contiguous(memory_format=torch.channels_last)  # [channels, channels, 1, 1]
    with torch.no_grad():
        products = (lambda: torch.mm(a, b, out=out), lambda: torch.nn.functional.conv2d(pixels, kernel))
        gemm = min(_fastest(product, seconds / 4) for product in products)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.zeros_like(source)
    copy = _fastest(lambda: target.copy_(source), seconds / 2)
    return Ceilings(2 * GEMM_SIZE**3 / gemm / 1e9, 2 * COPY_BYTES / copy / 1e9)


def _fastest(call, seconds: float) -> float:
    call()
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
