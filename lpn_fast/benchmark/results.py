"""What a benchmark leaves: a row per model, work, shape and way; CSV and JSON of it; two of them compared."""

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .. import atomic

FORMAT = 1
KEY = ("model", "work", "shape", "precision", "way")
SEEN = 0.05  # medians that are nearer to each other than this, and spreads that overlap, are called level


@dataclass(frozen=True)
class Row:
    """One measurement; None where something does not apply or nothing said it."""

    model: str
    work: str
    shape: str  # of x, 4x1x128x128
    precision: str
    way: str  # a backend of this package, "eager" or "compile"
    runs: str  # what ran
    ms: float  # median
    ms_20: float  # quantiles
    ms_80: float
    rounds: int
    samples_per_s: float
    tflops: float | None  # of the network's own operations
    gbytes_per_s: float | None
    ceiling: float | None  # share of the measured ceilings
    error: float  # relative, against float64
    peak_mb: float | None
    watts: float | None


@dataclass(frozen=True)
class Result:
    """All rows of a run, where it was, what the device can do, and what was left out with its reason."""

    where: dict
    ceilings: dict
    rows: list[Row]
    skipped: list[str]


def write(result: Result, folder: Path) -> list[Path]:
    """bench.csv and bench.json in a folder, which is made; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    names = [field.name for field in fields(Row)]
    table = csv.DictWriter(text, [*names, *result.where], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) | result.where for row in result.rows)
    contents = {"bench.csv": text.getvalue(), "bench.json": json.dumps({"format": FORMAT} | asdict(result), indent=1)}
    for name, content in contents.items():
        atomic.write(folder / name, content.encode())
    return [folder / name for name in contents]


def read(path: Path) -> Result:
    """A result from bench.json, or from the folder it is in.

    Raises
    ------
    ValueError
        No such file, or another kind of file.
    """
    path = path / "bench.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_bytes())
        if data.pop("format") != FORMAT:
            raise ValueError("it has another format")
        return Result(**data | {"rows": [Row(**row) for row in data["rows"]]})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"--compare must name results of lpn-fast bench --out, got {path}: {error}") from error


def compare(first: Result, second: Result) -> list[tuple]:
    """Of common rows: the columns of KEY, both medians in ms, how many times faster the second is, and in a word."""
    others = {_key(row): row for row in second.rows}
    found = []
    for row in first.rows:
        other = others.get(_key(row))
        if other is not None:
            gain = row.ms / other.ms
            apart = row.ms_20 > other.ms_80 or row.ms_80 < other.ms_20
            level = not apart or abs(gain - 1) < SEEN
            found.append((*_key(row), row.ms, other.ms, gain, "level" if level else "faster" if gain > 1 else "slower"))
    return found


def _key(row: Row) -> tuple:
    return tuple(getattr(row, name) for name in KEY)
