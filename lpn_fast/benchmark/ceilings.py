"""What this device can do, measured in the same run: the lines of the roofline.

    fastest possible time of a call = max( FLOP / peak,  bytes / bandwidth,  special functions / their rate ),
    roofline fraction = that / time

Peak is the faster of torch's two products, the matrix product and the 1 x 1 convolution, which come from different
libraries: on some CPUs the first uses half of the vector unit. The best of several runs counts (a ceiling is a maximum,
not a median). Bandwidth is a copy of arrays far larger than the caches, read and write counted once each. Special
functions are chains of exp2: on a GPU in registers, by Triton, on a CPU those of torch on an array that stays in cache.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .counters import Work
from .timing import wait_for

GEMM_SIZE = {"cpu": 2048, "cuda": 8192}  # 17 GFLOP, 50 MB: long against its overhead
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
CACHED = 2**14  # elements
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Ceilings:
    """Rates of this device, of a CPU at the number of threads in use."""

    gemm_gflops: float  # float32 products
    copy_gbytes: float
    special_g: float | None = None  # exp2; None: not measured
    products: dict[str, float] = field(default_factory=dict)  # GFLOP/s by precision, of a GPU

    def best_seconds(self, work: Work, precision: str = "fp32") -> float:
        """What the roofline allows."""
        peak = self.products.get(precision, self.gemm_gflops)
        special = work.special / (self.special_g * 1e9) if self.special_g else 0.0
        return max(work.flop / (peak * 1e9), work.bytes / (self.copy_gbytes * 1e9), special)


def measure(seconds: float = 2.0, device: torch.device | str = "cpu", special: bool = False) -> Ceilings:
    """The ceilings, in about `seconds`; the special functions where they are asked for."""
    device = torch.device(device)
    side = GEMM_SIZE[device.type]
    a, b = torch.randn(2, side, side, device=device)
    kinds = list(DTYPES) if device.type == "cuda" else ["fp32"]
    share = seconds / (2 * len(kinds))
    rates = {kind: 2 * side**3 / _product_seconds(a, b, kind, share) / 1e9 for kind in kinds}
    exponentials = _special(seconds / 4, device) if special else None
    return Ceilings(rates["fp32"], _copy(seconds / 4, device), exponentials, rates if device.type == "cuda" else {})


def _product_seconds(a: torch.Tensor, b: torch.Tensor, kind: str, seconds: float) -> float:
    a, b = a.to(DTYPES[kind]), b.to(DTYPES[kind])
    out = torch.empty_like(a)
    products: list[Callable[[], object]] = [lambda: torch.mm(a, b, out=out)]
    if a.device.type == "cpu":
        pixels = a.t()[None, :, :, None].contiguous(memory_format=torch.channels_last)  # [1, channels, pixels, 1]
        kernel = b[:, :, None, None].contiguous(memory_format=torch.channels_last)  # [channels, channels, 1, 1]
        products.append(lambda: torch.nn.functional.conv2d(pixels, kernel))
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if a.is_cuda:
        matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    try:
        with torch.no_grad():
            return min(_fastest(product, seconds / len(products), a.device) for product in products)
    finally:
        if a.is_cuda:
            matmul.fp32_precision = before


def _copy(seconds: float, device: torch.device) -> float:
    """GB/s."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * COPY_BYTES[device.type] / _fastest(lambda: target.copy_(source), seconds, device) / 1e9


def _special(seconds: float, device: torch.device) -> float | None:
    """exp2 in 1e9 per second."""
    if device.type == "cpu":
        x = torch.rand(torch.get_num_threads(), CACHED)
        out = torch.empty_like(x)
        return x.numel() / _fastest(lambda: torch.exp2(x, out=out), seconds, device) / 1e9
    try:
        from ..kernels.triton.special import exponentials
    except ImportError:  # no Triton
        return None
    count = exponentials(torch.empty(0, device=device))
    return count / _fastest(lambda: exponentials(torch.empty(0, device=device)), seconds, device) / 1e9


def _fastest(call, seconds: float, device: torch.device) -> float:
    call()
    wait_for(device)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best
