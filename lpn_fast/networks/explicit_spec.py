"""The architecture of an explicit prior, as data."""

import json
from dataclasses import asdict, dataclass, fields

from ..algebra.parameters import Slot
from ..algebra.spec import Stage
from .explicit_blocks import check_blocks
from .families import check_side

MOST_FILTERS = 256

ADDED = {
    "filters": 0,
    "ndim": 2,
    "blocks": 0,
    "joint": 0,
}  # what files that are older than these mean, and others leave out
SOLVE_IMAGES = 30  # that a solve holds at once: pairs of L-BFGS and iterates


@dataclass(frozen=True)
class ExplicitSpec:
    """What an `ExplicitLPN` is, beyond its parameters.

    Attributes
    ----------
    channels, kernel, groups : int
        Image channels, side of the patches, groups M.
    concavity : float
        mu, the largest curvature of the concave part.
    bend : float
        Largest rho^2 of a group: the curvature of R is at most concavity * (bend - 1).
    noise_levels : tuple of float
        Knots between which potentials are interpolated.
    coarse_kernel, coarse_groups : int
        The same of patches of patch means; 0 for none.
    filters : int
        Free filters, in fours of a seed and its mirror images; 0 for an orthonormal basis of patches.
    ndim : int
        Axes of space: 2 for images, 3 for volumes.
    blocks : int
        Of filters, each seen by as many groups of its own, in fours of mirror images; 0: all groups see all filters.
    joint : int
        How many of the groups see the filters of all blocks; the last ones.
    """

    channels: int
    kernel: int
    groups: int
    concavity: float
    bend: float
    noise_levels: tuple[float, ...]
    coarse_kernel: int = 0
    coarse_groups: int = 0
    filters: int = 0
    ndim: int = 2
    blocks: int = 0
    joint: int = 0

    # what callers ask of the spec of any network
    kind = "explicit"
    is_dense = False
    image_size = None
    noise_units = True
    is_mirrored = True
    has_contexts = False

    def __post_init__(self):
        check_side("kernel", self.kernel, 2, 15)
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if not 0 < self.concavity < 1:
            raise ValueError(f"concavity must be in (0, 1), got {self.concavity}")
        if self.ndim not in (2, 3):
            raise ValueError(f"ndim must be 2 for images or 3 for volumes, got {self.ndim!r}")
        if not self.bend > 1:
            raise ValueError(f"bend must be above 1, got {self.bend}")
        if self.filters % 4 or not 0 <= self.filters <= MOST_FILTERS:
            raise ValueError(f"filters must be a multiple of 4 up to {MOST_FILTERS}, or 0 for none, got {self.filters}")
        if self.filters and self.ndim != 2:
            raise ValueError(f"ndim must be 2 with free filters, got {self.ndim}")
        if self.coarse_kernel:
            check_side("coarse_kernel", self.coarse_kernel, 2, 15)
            if self.filters:
                raise ValueError(
                    f"coarse_kernel must be 0 with free filters, which see means, too, got {self.coarse_kernel}"
                )
        if self.blocks or self.joint:
            check_blocks(self.filters, self.groups, self.blocks, self.joint)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of x behind (N, C)."""
        return ("D", "H", "W")[-self.ndim :]

    @property
    def atoms(self) -> int:
        """n: free filters, or C k^ndim."""
        return self.filters or self.channels * self.kernel**self.ndim

    @property
    def own(self) -> int:
        """Groups of every block."""
        return (self.groups - self.joint) // self.blocks if self.blocks else 0

    @property
    def products(self) -> int:
        """Multiply-adds of a patch and sweep: four mirrored filters by parts that they share, and no group's zeros."""
        taps = self.channels * self.kernel**self.ndim
        return self.atoms * (
            taps // (4 if self.filters else 1) + (self.own + self.joint if self.blocks else self.groups)
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What a solve keeps per pixel, as if it were one stage's units: for whoever sizes batches by memory."""
        return (Stage(SOLVE_IMAGES * self.channels),)

    def stage_sizes(self, *image: int) -> list[tuple[int, ...]]:
        """Sizes of `stages` for an image."""
        return [image]

    @property
    def encoded(self) -> str:
        """The spec as JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict:
        """Plain JSON-ready dictionary; without what files had no word for, where it says nothing."""
        given = {name: value for name, value in asdict(self).items() if ADDED.get(name) != value}
        return {"kind": self.kind, **given}

    @classmethod
    def from_dict(cls, data: dict) -> "ExplicitSpec":
        """Spec from `to_dict`'s dictionary; ValueError names missing and unknown keys."""
        given: dict = ADDED | {key: value for key, value in data.items() if key != "kind"}
        known = {field.name for field in fields(cls)}
        if set(given) != known:
            raise ValueError(f"spec must have the keys {sorted(known)}, got {sorted(given)}")
        return cls(**given | {"noise_levels": tuple(given["noise_levels"])})

    def _shapes(self, prefix: str, kernel: int, groups: int) -> dict[str, tuple[int, ...]]:
        n, knots, patch = self.channels * kernel**self.ndim, len(self.noise_levels), (kernel,) * self.ndim
        free = self.filters and not prefix
        rows = groups
        if self.blocks:
            rows, groups = (self.own + self.joint) // 4, groups // 4
        return {
            prefix + ("seeds" if free else "atoms"): (self.filters // 4 if free else n, self.channels, *patch),
            prefix + "shares": (knots, rows, self.filters if free else n - self.channels),
            **dict.fromkeys((prefix + "far", prefix + "bends", prefix + "tails"), (knots, groups)),
        }

    def slots(self) -> tuple[Slot, ...]:
        """Names and shapes of the parameters, in order."""
        shapes = self._shapes("", self.kernel, self.groups)
        if self.coarse_kernel:
            shapes |= self._shapes("coarse_", self.coarse_kernel, self.coarse_groups)
        slots: list[Slot] = []
        offset = 0
        for name, shape in shapes.items():
            slots.append(Slot(name, shape, offset, nonnegative=False))
            offset = slots[-1].end
        return tuple(slots)
