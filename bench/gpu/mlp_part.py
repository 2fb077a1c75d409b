"""What the parts about dense networks share: their command line, their checks and figures, and how they time.

    python -m bench.gpu.mlp_numerics [--out FOLDER] [--dry-run] [--seconds S]

Exit codes as bench/gpu/__init__.py says: 0 done, 1 a check failed, 3 nothing to measure here. A dry run goes through
the same Python on CPU tensors, with the torch backend in the kernels' place, and writes nothing.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import lpn_fast as lf

from ..report import Measurement, surroundings, write

WARM_CALLS = 3
CALLS_PER_ROUND = 20
ROUNDS = 15


@dataclass
class Session:
    """One run of a part."""

    tiny: bool
    seconds: float
    out: Path | None
    part: str
    measurements: list[Measurement] = field(default_factory=list)
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    @property
    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Calls of the package inside run in the CUDA kernels; in a dry run in the torch backend."""
        with lf.use_backend("torch" if self.tiny else "cuda"):
            yield

    def check(self, what: str, holds: bool, detail: str = "") -> None:
        """Something that must hold; a line for each."""
        print(f"{'ok  ' if holds else 'FAIL'} {what} {detail}", flush=True)
        self.failed += not holds

    def add(self, op, shape, batch, provider, precision, milliseconds, rel_err="", **config) -> None:
        """A time per call, as (p20, p50, p80); written at once."""
        p20, p50, p80 = milliseconds
        print(f"{op:<10}{shape:<16}{batch:>9}  {provider:<10}{precision:<6}{p50:10.4f} ms  {rel_err}", flush=True)
        where = surroundings(torch.get_num_threads())
        if not self.tiny:
            where |= {"device": torch.cuda.get_device_name(), "driver": str(torch.version.cuda)}
        what = {"op": op, "family": "dense", "shape": shape, "batch": batch, "mode": "graph" if config else "call"}
        result = {"metric": "time", "unit": "ms", "p50": p50, "p20": p20, "p80": p80, "flop": "", "bytes": ""}
        backend = "cuda" if provider == "ours" else "torch"
        self.measurements.append(
            Measurement(
                **what, backend=backend, provider=provider, precision=precision, **result, roofline_fraction="",
                rel_err=rel_err, **where, config_json=json.dumps(config),
            )
        )  # fmt: skip
        if self.out is not None and not self.tiny:
            name = torch.cuda.get_device_name().replace(" ", "_").lower()
            write(self.out / f"{name}_{self.part}.csv", self.measurements)


def run_part(part: str, description: str, measure: Callable[[Session], None], arguments=None) -> int:
    """Run `measure` as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.gpu.{part}", description=description)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("nothing to measure here: torch sees no CUDA device")
        return 3
    session = Session(options.dry_run, options.seconds, options.out, part)
    measure(session)
    print(f"{session.failed} checks failed, {len(session.measurements)} figures")
    return 1 if session.failed else 0


def network(session: Session, dim=2, hidden=64, layers=4, **options) -> lf.MLPLPN:
    """A network with fixed random parameters, on the session's device."""
    torch.manual_seed(0)
    model = lf.MLPLPN(dim, hidden=hidden, layers=layers, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("bias", "linear", "constant"):
                parameter.normal_(std=0.3)
    return model.to(session.device)


def error(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance in float64; NaN if anything is NaN."""
    return float((got.detach().double() - want).norm() / want.norm().clamp_min(1e-300))


def times(session: Session, call: Callable[[], object]) -> tuple[float, float, float]:
    """(p20, p50, p80) in ms of one call, many calls between two events."""
    calls, rounds = (1, 3) if session.tiny else (CALLS_PER_ROUND, ROUNDS)
    for _ in range(1 if session.tiny else WARM_CALLS):
        call()
    found = []
    for _ in range(rounds):
        if session.tiny:
            start = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - start))
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / calls)
    low, middle, high = torch.tensor(found, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    return float(low), float(middle), float(high)


def captured(session: Session, call: Callable[[], object]) -> Callable[[], object]:
    """`call` as the replay of a CUDA graph; itself in a dry run."""
    if session.tiny:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay():
        graph.replay()
        return result

    return replay
