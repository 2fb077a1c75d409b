"""Peak memory of one call, measured on a process of its own.

    peak = highest resident set during the call - resident set before it

In a fresh process the call runs once (libraries build their kernels, pools start), freed memory goes back to the
system, the kernel's high-water mark is reset (/proc/self/clear_refs), and the call runs again. Allocations above
64 KB are mapped one by one (MALLOC_MMAP_THRESHOLD_), so what is freed leaves the resident set at once and
fragmentation is not counted. Model, inputs and optimizer state exist before and are not counted; results are.
Linux only; elsewhere there is no figure rather than another one.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

MMAP_THRESHOLD = 65536
TIMEOUT = 120  # seconds; what was measured until then is kept


def measure(wanted: list[tuple[str, str]], threads: int) -> dict[tuple[str, str], float]:
    """Peak in MB of (row name, provider name) pairs, all in one child process; failures are left out."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "bench.memory", json.dumps(wanted)]
    root = Path(__file__).resolve().parents[1]
    try:
        child = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=TIMEOUT)
        output = child.stdout
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode()
    found = {}
    for line in output.splitlines():
        row, provider, megabytes = json.loads(line)
        found[row, provider] = megabytes
    return found


def peak_megabytes(call, warm=None) -> float:
    """High-water mark of a warm call above what was resident before, in MB (2^20); `warm` warms up in its place."""
    (warm or call)()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before) / 1024


def _status(key: str) -> int:
    """An entry of /proc/self/status, in kB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])


def _child(wanted: list[tuple[str, str]]) -> None:
    from .rows import ROWS, Setup, provider  # after the environment is set

    rows = {row.name: row for row in ROWS}
    for row, name in wanted:
        call = provider(name, Setup(rows[row])).call
        print(json.dumps([row, name, peak_megabytes(call)]), flush=True)


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
