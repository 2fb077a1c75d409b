"""The three stages of a job as functions of batches of rows: any engine runs them, on any machine.

    read       where, named, place, ...    ->  + bytes, reason
    solve      + bytes, reason             ->  name, data, line
    write      name, data, line            ->  line, part

A batch is kept in this order: its lines in a part of the manifest, then its results. An image counts as finished if
both are there, so whoever is killed in between costs images computed again, never a result without a record.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

from ..io.image import one_line
from ..pipeline.manifest import manifest_name
from .inputs import Arrived, from_columns
from .places import place_of, read_any
from .reconstructor import Reconstructor, objects

Batch = Mapping[str, np.ndarray]
FIRST_PART = 2**32  # parts have numbers from here on, processes of torchrun those below


def read(batch: Batch) -> dict[str, np.ndarray]:
    """The rows with the bytes of their files; members of containers are read where they are solved."""
    columns, rows = dict(batch), len(batch["where"])
    alone = [row for row in range(rows) if not columns["is_member"][row]]
    found = read_any([columns["where"][row] for row in alone])
    data, reasons = [b""] * rows, [""] * rows
    for row, content in zip(alone, found, strict=True):
        if isinstance(content, bytes):
            data[row] = content
        else:
            reasons[row] = f"it cannot be read: {one_line(content)}"
    return columns | {"bytes": objects(data), "reason": objects(reasons)}


@dataclass(frozen=True)
class Solve:
    """Results of the rows and their lines of the manifest."""

    reconstructor: Reconstructor

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        sources = from_columns(batch)
        readable = [
            source if source.member is not None else Arrived(source.item, named, data, reason)
            for source, named, data, reason in zip(
                sources, batch["named"], batch["bytes"], batch["reason"], strict=True
            )
        ]
        outcomes = self.reconstructor.outcomes(readable)
        lines = [replace(line, source=named) for (line, _), named in zip(outcomes, batch["named"], strict=True)]
        names = [source.result(PurePath()).as_posix() for source in sources]
        return {
            "name": objects(names),
            "data": objects([data or b"" for _, data in outcomes]),
            "line": objects([line.to_line() for line in lines]),
        }


@dataclass(frozen=True)
class Write:
    """Results and lines at the place `out`; the lines go on to whoever collects them."""

    out: str

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        place, part = place_of(self.out), manifest_name(FIRST_PART + uuid.uuid4().int % 2**62)
        place.put({part: "".join(batch["line"]).encode()})
        place.put({name: data for name, data in zip(batch["name"], batch["data"], strict=True) if data})
        return {"line": objects(list(batch["line"])), "part": objects([part] * len(batch["line"]))}
