"""Which images are whose when several processes work on one job.

    process r of W takes the images r, r + W, r + 2 W, ... of the whole list

so no process has to talk to another: an image has one owner, a process that is started again finds its own
share, and results do not depend on W. Each process has a manifest of its own in the output folder and reads
those of the others. `torchrun`, and whatever else sets RANK and WORLD_SIZE, starts them on one or many machines
that share the folder.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Process `rank` of `world`; the default is the only one.

    Raises
    ------
    ValueError
        A rank outside 0 .. world - 1.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among the processes of this machine: which GPU is its own

    def __post_init__(self):
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be in 0 .. {self.world - 1}, got {self.rank}")

    @classmethod
    def from_environment(cls) -> "Share":
        """What torchrun says, or the only process.

        Raises
        ------
        ValueError
            RANK without WORLD_SIZE, or either is no number.
        """
        given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
        if not given:
            return cls()
        if len(given) == 1:
            raise ValueError(f"RANK and WORLD_SIZE must be set together, got {given}")
        try:
            return cls(int(given["RANK"]), int(given["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
        except ValueError as error:
            raise ValueError(f"RANK and WORLD_SIZE must be numbers, 0 <= RANK < WORLD_SIZE, got {given}") from error

    @property
    def is_only(self) -> bool:
        return self.world == 1

    def of(self, items: list) -> list:
        """Its own ones of the items."""
        return items[self.rank :: self.world]
