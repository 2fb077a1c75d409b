"""`python -m bench.experiments NAME`. Exit codes: 0 done, 1 the work or its claim failed, 2 wrong use."""

import argparse
import importlib
import sys

from bench.experiments import EXPERIMENTS

EXAMPLES = """examples:
  python -m bench.experiments mnist-prior --data mnist.npz
  python -m bench.experiments mnist-prior --data mnist.npz --quick --out look
  python -m bench.experiments mnist-inversion --data mnist.npz --count 1000

NAME --help shows the options of one experiment. Without --data, the folder in the environment variable
LPN_FAST_DATA is searched.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one experiment and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments",
        description="Experiments with learned proximal networks; each writes a CSV that says where it was measured.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="experiments", metavar="NAME", required=True, dest="experiment")
    for name, module in EXPERIMENTS.items():
        experiment = importlib.import_module(f"bench.experiments.{module}")
        experiment.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=experiment.run)
    try:
        args = parser.parse_args(argv)
    except SystemExit as leave:  # --help, wrong use
        return int(leave.code or 0)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"{parser.prog} {args.experiment}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
