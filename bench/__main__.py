"""`python -m bench`: the CPU table of the README, measured here and now.

    python -m bench                         all rows, under 8 minutes on two idle cores
    python -m bench --quick                 no compiled baseline, no large network, under a minute
    python -m bench --rows 'lpn128'         rows whose name matches
    python -m bench --against CHECKOUT      our times beside another version's, built in place, in turns

Prints the table and writes bench/results/cpu_<isa>_<threads>t.csv; some rows alone are written where --out says, else
only printed. Every row holds ours, A and C, measured interleaved.
"""

import argparse
import csv
import functools
import re
from pathlib import Path

import torch

from lpn_fast.benchmark.surroundings import isa

from .against import COLUMNS, compare
from .harness import Options, run
from .report import write
from .rows import ROWS

QUICK = {"rounds": 5, "seconds_factor": 0.15, "compiled": False}


def main(arguments: list[str] | None = None) -> int:
    """Run the harness; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", metavar="REGEX", default="", help="only rows whose name matches: " + _names())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    parser.add_argument("--rounds", type=int, help="at most so many rounds per row (25; quick: 5)")
    parser.add_argument("--budget", type=float, default=330.0, help="seconds after which compiling and rounds stop")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version of the package")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV file")
    args = parser.parse_args(arguments)
    rows = tuple(r for r in ROWS if re.search(args.rows, r.name) and (r.quick or not args.quick))
    if not rows:
        parser.error(f"--rows must match a row, got {args.rows!r}; there are {_names()}")
    for name, value in (("--threads", args.threads), ("--rounds", args.rounds)):
        if value is not None and value < 1:
            parser.error(f"{name} must be at least 1, got {value}")
    if args.against is not None:
        return _against(args, tuple(row.name for row in rows))
    chosen = {"rows": rows, "threads": args.threads, "budget": args.budget, "memory": not args.no_memory}
    chosen |= QUICK if args.quick else {}
    if args.rounds is not None:
        chosen["rounds"] = args.rounds
    name = f"cpu_{'quick_' if args.quick else ''}{isa().replace(' ', '_')}_{args.threads}t.csv"
    out = args.out or (None if args.rows else Path(__file__).parent / "results" / name)

    def save(measurements):
        if out is not None:
            write(out, measurements)

    save(run(Options(**chosen), functools.partial(print, flush=True), save=save))
    print("not written: --out was not given with --rows" if out is None else f"written: {out}")
    return 0


def _against(args: argparse.Namespace, rows: tuple[str, ...]) -> int:
    found = compare(args.against, rows, args.rounds or 15, args.threads, functools.partial(print, flush=True))
    if args.out is not None:
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *found])
        print(f"written: {args.out}")
    return 0


def _names() -> str:
    return ", ".join(row.name for row in ROWS)


if __name__ == "__main__":
    raise SystemExit(main())
