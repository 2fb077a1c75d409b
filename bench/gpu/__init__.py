"""What is measured on a CUDA device, in parts that run one by one and do not need each other.

    bench/gpu_battery.sh [FOLDER]            the parts, in the order of PARTS, each in a process of its own
    python -m bench.gpu.PART [--out FOLDER] [--dry-run] [--seconds S]

A part is a module bench/gpu/PART.py that ends with

    if __name__ == "__main__":
        raise SystemExit(run_part(__name__, __doc__, measure))          # from .session import run_part

and whose `measure(session: Session)` does the work: it calls `session.add(...)` for each figure (written at once, so
that a part that dies leaves what it had), `session.check(...)` for each thing that must hold, and looks at
`session.seconds_left` before it starts something new. `session.tiny` is true in a dry run: the smallest sizes;
`session.device` is "cpu" where there is no GPU: Triton under its interpreter and the torch backend in the place of
the CUDA kernels, so that the Python of every part is tested there.

A part writes FOLDER/<device>_<PART>.csv with bench/report.py's columns and prints a short table last. Exit codes:
0 done, 1 a check failed, 3 nothing to measure here (the reason is printed). A dry run writes no figures.

To add a part: write the module, add a line to PARTS.
"""

from typing import NamedTuple


class Part(NamedTuple):
    """One line of the battery."""

    name: str  # the module is bench/gpu/<name>.py
    seconds: int  # what it may take on an H200; the battery stops it at 1.5 times this
    group: str


PARTS = (
    Part("gates", 30, "checks"),  # what the compilers made of the kernels; needs no device
    Part("mlp_numerics", 45, "checks"),  # the dense network's kernels against float64
    Part("warm_numerics", 60, "checks"),  # compiles what the next one launches
    Part("numerics", 80, "checks"),  # every backend and precision against float64, determinism, graphs, streams
    Part("mlp_sanitizer", 50, "checks"),  # compute-sanitizer over the dense network's kernels
    Part("sanitizer", 50, "checks"),  # and over the convolutions, at small sizes
    Part("admission", 40, "timings"),  # the verdicts that "auto" follows, for the models that ship
    Part("ceilings", 20, "timings"),  # copy, matrix product per dtype
    Part("mlp_bench", 60, "timings"),  # the dense network's prox, gradients and inversion against A and C
    Part("tune", 80, "timings"),  # launch table of the convolutions; admits a row only after a numeric check
    Part("warm_convolutions", 60, "timings"),  # compiles what the next one launches, C included
    Part("convolutions", 120, "timings"),  # prox, hvp, training step against A, C and bare library convolutions
    Part("training", 480, "training"),  # the denoisers that ship, trained for longer; only where it is asked for
)
