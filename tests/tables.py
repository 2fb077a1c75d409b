"""What the tests read from CSV files."""

import csv
from pathlib import Path


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
