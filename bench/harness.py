"""One run: ceilings, then row by row warm-up, errors, interleaved rounds, and at the end peak memory.

Warm-up runs every provider once (C compiles there), reads its result against float64 and, for images, keeps the
faster memory layout of A. A provider that cannot run is skipped with its reason; it never falls back.
"""

import json
import time
from dataclasses import dataclass

import torch

from lpn_fast.benchmark.ceilings import Ceilings, measure
from lpn_fast.benchmark.surroundings import surroundings
from lpn_fast.benchmark.timing import interleaved, ratios, spread
from lpn_fast.benchmark.works import Provider, relative_error
from lpn_fast.ops.plain_torch import why_no_compiler

from . import memory
from .report import Measurement, heading, lines
from .rows import ROWS, Row, Setup, provider, provider_names


@dataclass(frozen=True)
class Options:
    """What to run, and how long. `budget` in seconds: past it nothing is compiled any more and rounds are fewest."""

    rows: tuple[Row, ...] = ROWS
    threads: int = 1
    rounds: int = 25
    budget: float = 330.0
    seconds_factor: float = 1.0  # scales each row's own measuring time
    compiled: bool = True
    memory: bool = True


def run(options: Options, show=print, save=lambda measurements: None) -> list[Measurement]:
    """Measure everything; `show` receives the table line by line, `save` all measurements so far after each row."""
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    where = surroundings(options.threads)
    ceilings = measure(2.0 * min(1.0, options.seconds_factor))
    show(f"{where['device']}, {options.threads} threads, torch {where['torch']}, commit {where['commit']}")
    show(f"ceilings: {ceilings.gemm_gflops:.0f} GFLOP/s float32 products, {ceilings.copy_gbytes:.1f} GB/s copy")
    show(heading())
    measured: dict[Row, list[Measurement]] = {}
    for row in options.rows:
        out_of_time = time.monotonic() - started > options.budget
        measured[row] = _measure_row(row, options, ceilings, where, out_of_time)
        for line in lines(row.name, measured[row], row.goals):
            show(line)
        save([m for group in measured.values() for m in group])
    fractions = [m.roofline_fraction for group in measured.values() for m in group if m.roofline_fraction != ""]
    if fractions and max(fractions) > 1:
        show("a roofline fraction above 1 means that the machine was busy when the ceilings were measured: run again")
    if options.memory:
        show("peak memory of one warm call, MB above what was resident before (lpn_fast/benchmark/memory.py)")
        for row, found in _memory(measured, where, options.threads).items():
            measured[row] += found
            line = ", ".join(f"{m.provider} {m.p50:.1f}" for m in found)
            show(f"{row.name:<19}{line}")
    show(f"{time.monotonic() - started:.0f} s in all")
    return [m for group in measured.values() for m in group]


def _measure_row(row: Row, options: Options, ceilings: Ceilings, where: dict, out_of_time: bool) -> list[Measurement]:
    setup = Setup(row)
    work, truth = setup.work(), setup.truth()
    providers, errors, skipped = _warm(row, setup, truth, options.compiled, out_of_time)
    other = _choose_layout(providers)
    seconds = 0.0 if out_of_time else row.seconds * options.seconds_factor
    times = interleaved({p.name: p.call for p in providers.values()}, options.rounds, seconds)

    base = {"op": row.op, "family": row.network, "shape": "x".join(map(str, setup.shape)), "batch": row.batch}
    base |= {"mode": row.mode} | where
    out = []
    for name, p in providers.items():
        milliseconds = spread([1e3 * t for t in times[name]])
        config = {"rounds": len(times[name]), "gemm_gflops": round(ceilings.gemm_gflops, 1)}
        config |= {"copy_gbytes_per_s": round(ceilings.copy_gbytes, 2)}
        if name == "A-cl":
            config |= {"memory_format": "channels_last"}
        if name.startswith("A") and other:
            config |= {"other_layout_ms": round(1e3 * other, 3)}
        own = row.op != "invert" or name.startswith("ours")  # a baseline's inversion does other evaluations
        fraction = ""
        if own and row.batch:
            fraction = ceilings.best_seconds(work) / (1e-3 * milliseconds.p50)
            config |= {"gflops": round(work.flop / milliseconds.p50 / 1e6, 2)}
            config |= {"gbytes_per_s": round(work.bytes / milliseconds.p50 / 1e6, 3)}
        out.append(
            Measurement(
                **base,
                backend=p.backend,
                provider="A" if name == "A-cl" else name,
                precision=p.precision,
                metric="time" if row.batch else "overhead",
                unit="ms",
                p50=milliseconds.p50,
                p20=milliseconds.p20,
                p80=milliseconds.p80,
                flop=work.flop if own else "",
                bytes=work.bytes if own else "",
                roofline_fraction=fraction,
                rel_err=errors[name],
                config_json=json.dumps(config | ({"mark": " (chl)"} if name == "A-cl" else {})),
            )
        )
    empty = {"flop": "", "bytes": "", "roofline_fraction": "", "rel_err": ""}
    for name in providers:
        if name != "ours":
            r = ratios(times[name], times["ours"])
            out.append(
                Measurement(
                    **base, **empty, backend=providers["ours"].backend, precision=providers["ours"].precision,
                    provider=f"{'A' if name == 'A-cl' else name}/ours", metric="ratio", unit="x",
                    p50=r.p50, p20=r.p20, p80=r.p80, config_json=json.dumps({"rounds": len(times[name])}),
                )
            )  # fmt: skip
    for name, reason in skipped.items():
        out.append(
            Measurement(
                **base, **empty, backend="", precision="", provider=name, metric="skipped", unit="",
                p50="", p20="", p80="", config_json=json.dumps({"reason": reason}),
            )
        )  # fmt: skip
    return out


def _warm(row: Row, setup: Setup, truth, compiled: bool, out_of_time: bool) -> tuple[dict[str, Provider], dict, dict]:
    """(providers that ran, their errors, reasons of the others)."""
    providers, errors, skipped = {}, {}, {}
    for name in provider_names(row):
        if name == "C":
            reason = None if compiled else "compilation is off in a quick run"
            reason = reason or ("the run's time budget was used up" if out_of_time else None) or why_no_compiler()
            reason = reason or ("an empty batch is not worth a compilation" if not row.batch else None)
            if reason:
                skipped[name] = reason
                continue
        try:
            p = provider(name, setup)
            # before anything else runs: a training step moves the weights, its gradients are those of the start
            errors[name] = relative_error(p.result(p.call()), truth)
            p.call()
        except Exception as error:  # whatever a compiler or a library raises, the rest of the table must come
            if name == "ours":
                raise
            skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        providers[name] = p
    return providers, errors, skipped


def _choose_layout(providers: dict[str, Provider]) -> float | None:
    """Drop the slower of A and A-cl; its best time of two, in seconds, or None where there is one only."""
    if not {"A", "A-cl"} <= set(providers):
        return None
    best = {}
    for name in ("A", "A-cl"):
        elapsed = []
        for _ in range(2):
            start = time.perf_counter()
            providers[name].call()
            elapsed.append(time.perf_counter() - start)
        best[name] = min(elapsed)
    slower = max(best, key=best.get)
    del providers[slower]
    return best[slower]


def _memory(measured: dict[Row, list[Measurement]], where: dict, threads: int) -> dict[Row, list[Measurement]]:
    """Peaks of ours and of A in the layout that was timed; C is left out, its compiler's memory stays resident."""
    asked = {}
    for row, group in measured.items():
        for m in group:
            if m.metric == "time" and m.provider != "C":
                channels_last = "memory_format" in json.loads(m.config_json)
                asked[row.name, "A-cl" if channels_last else m.provider] = (row, m)
    found = memory.measure(list(asked), threads)
    out: dict[Row, list[Measurement]] = {}
    for key, (row, m) in asked.items():
        if key not in found:
            continue
        same = {
            c: getattr(m, c) for c in ("op", "family", "shape", "batch", "mode", "backend", "provider", "precision")
        }
        out.setdefault(row, []).append(
            Measurement(
                **same, **where, metric="memory", unit="MB", p50=found[key], p20="", p80="", flop="", bytes="",
                roofline_fraction="", rel_err="", config_json=json.dumps({"method": "resident high-water mark"}),
            )
        )  # fmt: skip
    return out
