"""Which kernels were measured to be faster than torch's on a device: what "auto" takes there, and nothing else.

    cuda/measured.csv     device, precision, width (of the widest stage), rows, gain, commit
    triton/measured.csv   device, precision, width (of the widest stage), pixels (batch x height x width), gain, commit
    triton/choices.csv    per role of a convolution, see triton/choices.py

`gain` is the time of the torch backend over ours for one prox. bench/gpu/mlp_bench.py and bench/gpu/convolutions.py
write such rows beside their figures; they are appended here after a look at their errors. Plain Python.
"""

import csv
import functools
from pathlib import Path

DENSE = Path(__file__).parent / "cuda" / "measured.csv"
CONVOLUTIONS = Path(__file__).parent / "triton" / "measured.csv"
LEAST_GAIN = 1.05  # below this the difference is within the spread of two runs
LEAST_FRACTION = 0.5  # relative to the pixels measured: less work shows other overheads


@functools.cache
def rows(table: Path) -> tuple[dict[str, str], ...]:
    """The rows of a table."""
    with open(table, newline="") as file:
        return tuple(csv.DictReader(file))


def matching(table: Path, **wanted: str | int) -> list[dict[str, str]]:
    """The rows with these entries."""
    return [row for row in rows(table) if all(row[column] == str(entry) for column, entry in wanted.items())]


def dense_not_faster(device: str, precision: str, width: int) -> str | None:
    """None where the dense networks' kernels were measured faster at every number of rows, else what is known.

    Widths count as the kernels see them, rounded up to multiples of 32.
    """
    measured = matching(DENSE, device=device, precision=precision)
    gains = [float(row["gain"]) for row in measured if -(-int(row["width"]) // 32) == -(-width // 32)]
    return _not_faster(min(gains, default=None), device, f"{width} units in {precision}", "cuda")


def convolutions_not_faster(device: str, precision: str, width: int, pixels: int) -> str | None:
    """None where the convolutions' kernels were measured faster at the nearest size, else what is known."""
    measured = matching(CONVOLUTIONS, device=device, precision=precision, width=width)
    sizes = {int(row["pixels"]): float(row["gain"]) for row in measured}
    fitting = [size for size in sizes if pixels >= LEAST_FRACTION * size]
    if sizes and not fitting:
        return f"measured on {device} from {min(sizes)} pixels on only: force with LPN_FAST_BACKEND=triton"
    gain = sizes[max(fitting)] if fitting else None
    return _not_faster(gain, device, f"{width} channels in {precision}", "triton")


def _not_faster(gain: float | None, device: str, stages: str, backend: str) -> str | None:
    force = f"force with LPN_FAST_BACKEND={backend}"
    if gain is None:
        return f"not measured on {device} for stages of {stages}: {force}"
    if gain < LEAST_GAIN:
        return f"measured at {gain:.2f} times the speed of the torch backend on {device}: {force}"
    return None
