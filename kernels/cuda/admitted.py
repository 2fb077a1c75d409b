"""Where "auto" takes the dense network's kernels: only where a measurement on the device said they are faster.

    admitted.csv   device, precision, width (of the widest stage), rows, gain, commit

`gain` is the time of the torch backend over ours for one prox of that many rows. bench/gpu/mlp_bench.py writes such
lines, for results within the tolerances of bench/gpu/mlp_numerics.py.
"""

import csv
import functools
from pathlib import Path

TABLE = Path(__file__).with_name("admitted.csv")
LEAST_GAIN = 1.05  # below this the difference is within the spread of two runs


@functools.cache
def table(path: Path = TABLE) -> tuple[dict[str, str], ...]:
    """The lines of admitted.csv."""
    with open(path, newline="") as file:
        return tuple(csv.DictReader(file))


def reservation(device: str, precision: str, width: int) -> str | None:
    """None where measurements admit the call, else the reason against it; all measured batches have to gain.

    Widths count as the kernels see them, rounded up to multiples of 32.
    """
    force = "force with LPN_FAST_BACKEND=cuda"
    gains = [
        float(line["gain"])
        for line in table()
        if line["device"] == device and line["precision"] == precision and _padded(int(line["width"])) == _padded(width)
    ]
    if not gains:
        return f"not measured on {device} for stages of {width} units in {precision}: {force}"
    if min(gains) < LEAST_GAIN:
        return f"measured at {min(gains):.2f} times the speed of the torch backend on {device}: {force}"
    return None


def _padded(width: int) -> int:
    return -(-width // 32) * 32
