"""Where a number was measured: the columns every CSV of the experiments ends with, and the writing of it."""

import csv
import datetime
import functools
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import lpn_fast

ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def device_name() -> str:
    """The model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


@functools.cache
def commit() -> str:
    """The commit of the checkout, with -dirty where tracked files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def where(config: dict) -> dict:
    """The columns device, threads, python, torch, lpn_fast, commit, timestamp and config_json."""
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lpn_fast": lpn_fast.__version__,
        "commit": commit(),
        "timestamp": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config_json": json.dumps(config, sort_keys=True),
    }


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Write rows with the same keys, through a temporary file and a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_among(path: Path, rows: Sequence[dict], same: Sequence[str], order: Callable[[dict], object]) -> None:
    """Write rows into a table that may be there: those that agree with one in the columns `same` go, others stay.

    `order` of a row, whose values are texts, is what the table is sorted by.
    """
    new = [{name: str(value) for name, value in row.items()} for row in rows]
    measured = {tuple(row[name] for name in same) for row in new}
    kept = [row for row in read_csv(path) if tuple(row[name] for name in same) not in measured]
    columns = dict.fromkeys(name for row in [*new, *kept] for name in row)  # tables grow columns
    write_csv(path, [{name: row.get(name, "") for name in columns} for row in sorted([*kept, *new], key=order)])


def read_csv(path: Path) -> list[dict]:
    """The rows of a table, none where there is no table; all values are texts."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
