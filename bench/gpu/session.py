"""What the parts of the battery share: arguments, the session that keeps figures and checks, timing on the device."""

import argparse
import json
import os
import re
import statistics
import time
import traceback
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
NOTHING_HERE = 3  # exit code: nothing to measure on this machine
L2_BYTES = 64 * 2**20  # timed inputs are rotated past this


class Nothing(Exception):
    """There is nothing to measure here; the message says why."""


class Session:
    """Figures and checks of one part."""

    def __init__(self, name: str, out: Path, tiny: bool, seconds: float):
        from lpn_fast.benchmark.surroundings import gpu_facts, surroundings

        self.name, self.out, self.tiny = name, out, tiny
        self.failed: list[str] = []
        self.lines: list[str] = []
        self._measurements = []
        self._deadline = time.monotonic() + seconds
        self._where = surroundings(1) | gpu_facts()
        self._where["commit"] = os.environ.get("LPN_FAST_COMMIT", self._where["commit"])  # set where there is no git

    @property
    def device(self) -> str:
        """Where the part computes: "cuda", or "cpu" in a dry run without a GPU."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def commit(self) -> str:
        return self._where["commit"]

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    @property
    def file(self) -> Path:
        name = re.sub(r"[^a-z0-9]+", "_", self._where["device"].lower().removeprefix("nvidia ")).strip("_")
        return self.out / f"{name}_{self.name}.csv"

    def add(self, op: str, provider: str, p50: float, unit: str, *, line: str | None = None, **columns) -> None:
        """One measurement; written at once. Columns as in bench/report.py; `config` is a dict."""
        from bench.report import COLUMNS, Measurement, write

        row = dict.fromkeys(COLUMNS, "") | self._where
        row |= {"op": op, "provider": provider, "p50": p50, "unit": unit, "metric": "time", "backend": provider}
        row["config_json"] = json.dumps(columns.pop("config", {}))
        unknown = set(columns) - set(COLUMNS)
        if unknown:
            raise ValueError(f"columns must be among {COLUMNS}, got {sorted(unknown)}")
        self._measurements.append(Measurement(**(row | columns)))
        if not self.tiny:
            write(self.file, self._measurements)
        self.show(line or f"{op:<28}{provider:<22}{columns.get('precision', ''):<6}{p50:>12.4f} {unit}")

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Something that must hold."""
        self.show(f"{'ok  ' if ok else 'FAIL'} {name}  {detail}")
        if not ok:
            self.failed.append(f"{name}  {detail}")

    def show(self, line: str) -> None:
        """A line of the table, printed now and again at the end of a long part."""
        print(line, flush=True)
        self.lines.append(line)


def run_part(module: str, doc: str, measure, arguments: list[str] | None = None, needs_device: bool = True) -> int:
    """The command line of a part; the exit code."""
    name = Path(__import__("sys").modules[module].__file__).stem
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.gpu.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the CSV goes")
    parser.add_argument("--dry-run", action="store_true", help="smallest sizes, any machine, nothing written")
    parser.add_argument("--seconds", type=float, default=budget(name), help="no new work is begun after this long")
    args = parser.parse_args(arguments)
    import torch

    if args.dry_run and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    if needs_device and not args.dry_run and not torch.cuda.is_available():
        print(f"{name}: there is no CUDA device here; --dry-run checks the code without one")
        return NOTHING_HERE
    torch.manual_seed(0)
    session = Session(name, args.out, args.dry_run, args.seconds)
    try:
        measure(session)
    except Nothing as reason:
        if not session.failed and not session.lines:
            print(f"{name}: {reason}")
            return NOTHING_HERE
        session.show(f"---- {reason}")
    except Exception as failure:  # what was found before it counts
        traceback.print_exc()
        session.check(name, False, f"{type(failure).__name__}: {failure}".splitlines()[0][:200])
    for failure in session.failed:
        print(f"FAILED {failure}")
    return 1 if session.failed else 0


def budget(name: str) -> int:
    """Seconds of a part, from PARTS; 60 for one that is not listed."""
    from . import PARTS

    return next((part.seconds for part in PARTS if part.name == name), 60)


def milliseconds(call, seconds: float = 0.3, rounds: int = 20) -> tuple[float, float, float]:
    """(p50, p20, p80) of a call on the device, by events; on the CPU by the clock. `call` is warm already.

    Short calls are repeated between two events, so that the clock's grain and launch gaps of single calls do not count.
    """
    import torch

    def elapsed(repeats: int) -> float:
        if not torch.cuda.is_available():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return 1e3 * (time.perf_counter() - start) / repeats
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / repeats

    once = max(elapsed(1), 1e-3)
    repeats = max(1, int(2.0 / once))
    rounds = min(rounds, max(3, int(1e3 * seconds / (once * repeats))))
    times = sorted(elapsed(repeats) for _ in range(rounds))
    return statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5]


def graphed(call):
    """`call` captured in a CUDA graph: a function that replays it. Three eager calls come first, on a side stream."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
