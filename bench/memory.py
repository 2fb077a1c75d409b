"""Peak memory of one call (lpn_fast/benchmark/memory.py), measured in a process of its own.

Model, inputs and optimizer state exist before and are not counted. Linux only; elsewhere there is no figure rather than
another one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from lpn_fast.benchmark.memory import CLEAR, MMAP_THRESHOLD, peak_megabytes

TIMEOUT = 120  # seconds; what was measured until then is kept


def measure(wanted: list[tuple[str, str]], threads: int) -> dict[tuple[str, str], float]:
    """Peak in MB of (row name, provider name) pairs, all in one child process; failures are left out."""
    if not CLEAR.exists():
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


def _child(wanted: list[tuple[str, str]]) -> None:
    from .rows import ROWS, Setup, provider  # after the environment is set

    rows = {row.name: row for row in ROWS}
    for row, name in wanted:
        call = provider(name, Setup(rows[row])).call
        print(json.dumps([row, name, peak_megabytes(call)]), flush=True)


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
