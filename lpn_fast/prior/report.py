"""What `verify` gives back: one line per property, for people and for machines."""

import math
from dataclasses import asdict, dataclass

from .. import display

HEADER = ("property", "", "measured", "limit", "what")
MARKS = {True: "holds", False: "FAILS", None: "-"}


@dataclass(frozen=True)
class Property:
    """One property and how it was found.

    Attributes
    ----------
    name : str
    holds : bool or None
        None: for information, or it could not be tested; `detail` says which.
    measured : float or None
        The worst value seen.
    limit : str
        What `measured` is compared with, e.g. "<= 1e-09".
    detail : str
        What was measured, or what is wrong and where.
    """

    name: str
    holds: bool | None
    measured: float | None
    limit: str
    detail: str


@dataclass(frozen=True, repr=False)
class Report:
    """Properties of one network; prints as a table.

    Attributes
    ----------
    properties : tuple of Property
    """

    properties: tuple[Property, ...]

    @property
    def all_hold(self) -> bool:
        """Whether no property failed."""
        return all(p.holds is not False for p in self.properties)

    @property
    def failed(self) -> tuple[Property, ...]:
        """The properties that do not hold."""
        return tuple(p for p in self.properties if p.holds is False)

    def to_dict(self) -> dict:
        """JSON-ready: {"all_hold": bool, "properties": [{name, holds, measured, limit, detail}, ...]}."""
        rows = [asdict(p) for p in self.properties]
        for row in rows:  # JSON has neither NaN nor infinity
            if row["measured"] is not None and not math.isfinite(row["measured"]):
                row["measured"] = None
        return {"all_hold": self.all_hold, "properties": rows}

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (p.name, MARKS[p.holds], "" if p.measured is None else f"{p.measured:.2e}", p.limit, p.detail)
            for p in self.properties
        ]

    def _verdict(self) -> str:
        if self.all_hold:
            return "all properties hold: f is the exact prox of a function"
        return f"{len(self.failed)} of {len(self.properties)} properties fail: f is not trusted to be a prox"

    def _repr_html_(self) -> str:
        return display.table(self._verdict(), [HEADER, *self._rows()])

    def __repr__(self) -> str:
        return f"{display.aligned([HEADER, *self._rows()])}\n{self._verdict()}"
