"""Peak memory of one call.

    peak = highest resident set during the call - resident set before it

The call runs once (libraries build their kernels, pools start), freed memory goes back to the system, the kernel's
high-water mark is reset (/proc/self/clear_refs), and the call runs again. Where MALLOC_MMAP_THRESHOLD_ was set to
MMAP_THRESHOLD before the process began, allocations above 64 KB are mapped one by one, so that what is freed leaves the
resident set at once and fragmentation is not counted. Results are counted, and what existed before is not. Linux only.
A GPU's is what torch's allocator held at most.
"""

import ctypes
import gc
from pathlib import Path

import torch

MMAP_THRESHOLD = 65536
CLEAR = Path("/proc/self/clear_refs")


def peak_megabytes(call, warm=None) -> float:
    """High-water mark of a warm call above what was resident before, in MB (2^20); `warm` warms up in its place."""
    (warm or call)()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    CLEAR.write_text("5")  # resets the high-water mark
    result = call()
    peak = status("VmHWM")
    del result
    return max(0, peak - before) / 1024


def status(key: str) -> int:
    """An entry of /proc/self/status, in kB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])


def peak_on(device: torch.device, call) -> float | None:
    """The same of a call on a device; None where nothing says it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        return peak_megabytes(call)
    except OSError:  # no Linux, or no right to reset the mark
        return None
