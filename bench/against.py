"""Two versions of the package on the same rows, in turns: `python -m bench --against CHECKOUT`.

Each version is a process of its own, started as this file with its checkout on the path: it builds the rows with its
own bench.rows and times our provider alone, once for every line on its standard input, the name of a row. The other
version's time over this one's is formed per round, so that what the machine does meanwhile hits both.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parents[1]
TURN = 0.5  # seconds that one version's calls take in a round, or one call if that is longer
COLUMNS = (
    *("row", "this_ms", "other_ms", "other_over_this", "p20", "p80", "rounds", "this_commit", "other_commit"),
    *("device", "threads", "torch", "timestamp"),
)


def compare(checkout: Path, rows: tuple[str, ...], rounds: int, threads: int, show=print) -> list[tuple]:
    """Measure the rows of those names; one tuple per row in the order of `COLUMNS`."""
    from lpn_fast.benchmark.surroundings import commit, surroundings
    from lpn_fast.benchmark.timing import ratios, spread

    roots = HERE, checkout.resolve()
    where = surroundings(threads)
    found = []
    with contextlib.ExitStack() as stack:
        versions = [start(stack, root, threads) for root in roots]
        for row in rows:
            turns = [[ask(version, row) for version in versions[:: 1 if r % 2 else -1]] for r in range(rounds + 1)]
            ours, others = zip(*(t[:: 1 if r % 2 else -1] for r, t in enumerate(turns) if r), strict=True)  # 0 warms up
            ratio = ratios(others, ours)
            milliseconds = [spread(t).p50 * 1e3 for t in (ours, others)]
            show(f"{row:<19}{milliseconds[0]:10.3f} ms, other {milliseconds[1]:10.3f} ms, other / this {ratio.p50:.3f}"
                 f" [{ratio.p20:.3f}..{ratio.p80:.3f}]")  # fmt: skip
            found.append((row, *milliseconds, ratio.p50, ratio.p20, ratio.p80, rounds, *map(commit, roots))
                         + tuple(where[k] for k in ("device", "threads", "torch", "timestamp")))  # fmt: skip
    return found


def ask(version: subprocess.Popen, what: str):
    """What a version answers to one line."""
    version.stdin.write(f"{what}\n")
    version.stdin.flush()
    answer = version.stdout.readline()
    if not answer:
        raise RuntimeError(f"the version at {version.args[3]} stopped at {what!r}; its message is above")
    return json.loads(answer)


def start(stack: contextlib.ExitStack, root: Path, *arguments: object) -> subprocess.Popen:
    """A process of this file with the version in `root`; the stack ends it."""
    command = [sys.executable, "-P", __file__, str(root), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    version = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(version.wait)
    stack.callback(version.stdin.close)
    return version


def _timed(row: str) -> Callable[[], float]:
    """Seconds per call over one turn of our provider, from the version on the path."""
    from bench.rows import ROWS, Setup, provider

    call = provider("ours", Setup(next(r for r in ROWS if r.name == row))).call

    def turn() -> float:
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < TURN:
            call()
            calls += 1
        return (time.perf_counter() - start) / calls

    return turn


def take(root: Path) -> None:
    """Import the package of a checkout, which may not be the one that is installed; RuntimeError if another comes.

    An editable installation stands before the path: it is passed over.
    """
    sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")]
    import lpn_fast

    if Path(lpn_fast.__file__).resolve().parents[1] != root:
        raise RuntimeError(f"lpn_fast of {root} was wanted, {lpn_fast.__file__} was imported")


def _serve(threads: int) -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(threads)
    turns: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        row = line.strip()
        turns = {row: turns.get(row) or _timed(row)}  # the last row alone stays in memory
        print(json.dumps(turns[row]()), flush=True)


if __name__ == "__main__":  # CHECKOUT THREADS, or CHECKOUT FILE ARGUMENTS...: that file with that version
    if (root := Path(sys.argv[1])) != HERE:
        take(root)
    if sys.argv[2].isdigit():
        _serve(int(sys.argv[2]))
    else:
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
