"""`python -m bench.scale WHAT`: how jobs behave beyond one machine; prints a table.

    killed         a worker and the driver of a job on Ray are killed at random; 1,000 images must all be right
    memory         peak memory of jobs on Ray of 1,000 and 10,000 images
    throughput     one Ray worker against two, in turns
    costs          what an image costs besides its solution, on this machine
    queue          1 to 1,000 workers with failures, simulated with those costs

Results are printed, and written as CSV where --out names a file.
"""

import argparse
import csv
import sys
from pathlib import Path

from ..experiments.provenance import where


def main(arguments: list[str] | None = None) -> int:
    """Run one of them; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("killed", "memory", "throughput", "costs", "queue"))
    parser.add_argument("--images", type=int, metavar="N", help="images of the (larger) job")
    parser.add_argument("--rounds", type=int, metavar="N", help="of throughput (default: 3)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="several for killed: a row for each")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV file")
    args = parser.parse_args(arguments)
    origin = where({"seed": args.seed, "images": args.images})
    rows = [row | origin for row in _rows(args)]
    header = list(dict.fromkeys(name for row in rows for name in row))
    for target in (sys.stdout, *([open(args.out, "w", newline="")] if args.out else [])):
        writer = csv.DictWriter(target, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        target.flush()
    return 0


def _rows(args) -> list[dict]:
    count = {} if args.images is None else {"count": args.images}
    if args.what == "killed":
        from .killed import run

        return [{"seed": seed} | run(seed=seed, **count) for seed in args.seed]
    if args.what == "memory":
        from .resources import memory

        return memory(**count)
    if args.what == "throughput":
        from .throughput import throughput

        return list(throughput(**count, **({} if args.rounds is None else {"rounds": args.rounds})))
    if args.what == "costs":
        from .costs import measure

        return measure()
    from .queue import table

    return table(seed=args.seed[0])


if __name__ == "__main__":
    sys.exit(main())
