"""Where "auto" takes these kernels: only where a measurement on the same device said that they are faster.

    admitted.csv   device, precision, width of the widest stage, pixels (batch x height x width), gain, commit

`gain` is the time of the torch backend over ours for one prox. bench/gpu/convolutions.py
writes such rows beside its figures, as triton_admitted.csv; they are appended here after a look at their errors.
"""

import csv
import functools
from pathlib import Path

TABLE = Path(__file__).with_name("admitted.csv")
LEAST_GAIN = 1.05  # below this the difference is within the spread of two runs
LEAST_FRACTION = 0.5  # of the pixels that were measured: less work shows other overheads


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
    """The rows of admitted.csv."""
    with open(TABLE, newline="") as file:
        return tuple(csv.DictReader(file))


def reservation(device: str, precision: str, width: int, pixels: int) -> str | None:
    """None where a measurement admits the call, else the reason against it."""
    force = "force with LPN_FAST_BACKEND=triton"
    measured = [r for r in rows() if (r["device"], r["precision"], int(r["width"])) == (device, precision, width)]
    if not measured:
        return f"not measured on {device} for stages of {width} channels in {precision}: {force}"
    fitting = [r for r in measured if pixels >= LEAST_FRACTION * int(r["pixels"])]
    if not fitting:
        return f"measured on {device} from {min(int(r['pixels']) for r in measured)} pixels on only: {force}"
    nearest = max(fitting, key=lambda r: int(r["pixels"]))
    if float(nearest["gain"]) < LEAST_GAIN:
        return f"measured at {nearest['gain']} times the speed of the torch backend on {device}: {force}"
    return None
