"""What a run leaves: a CSV with one row per measurement in the columns of `Measurement`, and the table for people."""

import csv
import json
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Measurement:
    """One CSV row; the columns in order. Empty strings where something does not apply.

    metric "time": ms of a call; "overhead": the same at batch 0; "memory": MB at the peak of a call;
    "ratio": time of the baseline over ours (provider "A/ours"), formed per round; "skipped": why there is none.
    """

    op: str
    family: str
    shape: str
    batch: int
    mode: str
    backend: str
    provider: str
    precision: str
    metric: str
    unit: str
    p50: float | str
    p20: float | str
    p80: float | str
    flop: int | str
    bytes: int | str
    roofline_fraction: float | str
    rel_err: float | str
    device: str
    threads: int
    driver: str
    python: str
    torch: str
    triton: str
    lpn_fast: str
    commit: str
    timestamp: str
    config_json: str


COLUMNS = tuple(f.name for f in fields(Measurement))


def write(path: Path, measurements: list[Measurement]) -> None:
    """The CSV, through a temporary file, so that a stopped run leaves the last complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(astuple(m) for m in measurements)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


HEADINGS = ("row", "provider", "backend", "ms", "p20..p80", "GFLOP/s", "GB/s", "roof", "rel err", "A or C / ours")
LAYOUT = "{:<19}{:<13}{:<15}{:>9}  {:>17}  {:>8}{:>7}{:>6}{:>10}  {}"


def heading() -> str:
    return LAYOUT.format(*HEADINGS)


def lines(row_name: str, measurements: list[Measurement], goals: dict[str, float]) -> list[str]:
    """The measurements of one row of the table, one provider per line."""
    ratio = {m.provider.split("/")[0]: m for m in measurements if m.metric == "ratio"}
    out = []
    for m in measurements:
        if m.metric == "skipped":
            out.append(f"{row_name:<19}{m.provider:<13}skipped: {json.loads(m.config_json)['reason']}")
        if m.metric not in ("time", "overhead"):
            continue
        config = json.loads(m.config_json)
        compared = ""
        if m.provider in ratio:
            r = ratio[m.provider]
            compared = f"{r.p50:.2f}x [{r.p20:.2f}..{r.p80:.2f}]"
            if m.provider in goals:
                met = "met" if r.p50 >= goals[m.provider] else "MISSED"
                compared += f" goal {goals[m.provider]:g} {met}"
        out.append(
            LAYOUT.format(
                row_name, m.provider + config.get("mark", ""), m.backend, f"{m.p50:.3f}", f"{m.p20:.3f}..{m.p80:.3f}",
                f"{config['gflops']:.1f}" if "gflops" in config else "",
                f"{config['gbytes_per_s']:.1f}" if "gbytes_per_s" in config else "",
                "" if m.roofline_fraction == "" else f"{m.roofline_fraction:.2f}",
                f"{m.rel_err:.1e}", compared,
            ).rstrip()
        )  # fmt: skip
    return out
