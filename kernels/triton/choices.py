"""Whether a stage's product is our kernel's or the library's convolution with our element-wise step after it.

    choices.csv   device, role, c_in, c_out, precision, pixels, ours_us, library_us, error, commit

The library is taken where a measurement on the same device said that it is faster, step included, and only where it
loses no digits; everywhere else our kernel runs. bench/gpu/tune.py measures both and writes such lines into its
FOLDER/choices.csv; they are appended here after a look at their errors. Plain Python.

A 16-bit library convolution rounds what it returns. Before softplus that is a rounded u, whose slope is wrong by
beta |u| 2^-9 and more; after a transposed product it is one more rounding of the size of e's own, which bfloat16 takes.
fp16 does not: its stored weights carry a factor that a 16-bit product would not survive (correlate.py).
"""

import csv
import functools
from pathlib import Path

from .launch import Key

TABLE = Path(__file__).with_name("choices.csv")
LEAST_GAIN = 1.05  # below this the difference is within the spread of two runs
PIXELS = (0.5, 2.0)  # relative to those measured: other sizes have other overheads


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
    """The rows of the table."""
    with open(TABLE, newline="") as file:
        return tuple(csv.DictReader(file))


def loses_digits(role: str, precision: str) -> str | None:
    """Why the library may not compute the product of this role, or None."""
    if precision == "fp16":
        return "a library's fp16 product rounds before the step and leaves half precision's range"
    if precision == "bf16" and role.startswith("forward"):
        return "a library's bf16 product rounds u before softplus"
    return None


def choice(device: str, key: Key, pixels: int) -> tuple[bool, str]:
    """(whether the library computes the product, why), for a kernel that covers `pixels` output pixels."""
    reason = loses_digits(key.role, key.precision)
    if reason:
        return False, reason
    what = {"role": key.role, "c_in": key.c_in, "c_out": key.c_out, "precision": key.precision}
    measured = [row for row in rows() if all(row[c] == str(entry) for c, entry in ({"device": device} | what).items())]
    near = [r for r in measured if PIXELS[0] <= pixels / int(r["pixels"]) <= PIXELS[1]]
    if not near:
        return False, f"not measured on {device}" + (f" for {pixels} pixels" if measured else "")
    row = min(near, key=lambda r: abs(pixels - int(r["pixels"])))
    gain = float(row["ours_us"]) / float(row["library_us"])
    return gain >= LEAST_GAIN, f"the library was measured at {gain:.2f} times our speed on {device}"
