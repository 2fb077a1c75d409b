"""The rows of the CPU table: an operation of one network at one batch each (lpn_fast/benchmark/works.py does them)."""

from dataclasses import dataclass, field

import torch

import lpn_fast as lf
from lpn_fast.benchmark import works
from lpn_fast.benchmark.works import Provider

NETWORKS = {
    "mlp": (lambda: lf.paper_network("laplacian"), (1,)),
    "mlp-strongly-convex": (lambda: lf.MLPLPN(1, hidden=50, layers=4, alpha=0.1), (1,)),
    "mnist": (lambda: lf.paper_network("mnist"), (1, 28, 28)),
    "lpn128": (lambda: lf.paper_network("celeba"), (3, 128, 128)),
    "frame": (lambda: lf.FrameLPN(1), (1, 256, 256)),
    "mixture": (lambda: lf.MixtureLPN(1, experts=128), (1, 256, 256)),
    # as denoise-gray is
    "contexts": (
        lambda: lf.MixtureLPN(1, 9, 320, filters=385, contexts=64, window=17, border="mirror"),
        (1, 128, 128),
    ),
}
OURS = {"ours": "auto", "ours-torch": "torch"}  # provider -> backend asked for
BASELINES = ("A", "A-cl", "C")
# prox and hvp: as many suffice
TRUTH_SAMPLES = {
    "mlp": 4096,
    "mlp-strongly-convex": 4096,
    "mnist": 64,
    "lpn128": 1,
    "frame": 1,
    "mixture": 1,
    "contexts": 1,
}
TRUTH_CHUNK = {"mlp": 2000, "mnist": 16, "lpn128": 1}  # samples of a gradient that fit in memory together


@dataclass(frozen=True)
class Row:
    """One line of the table. `goals`: the least ratio against each baseline to be had.

    `precision` is that of ours; the baselines compute in float32 in every row.
    """

    name: str
    op: str  # "prox", "hvp", "step" (a training step), "invert"
    network: str
    batch: int
    seconds: float  # measuring, within a full run
    goals: dict[str, float] = field(default_factory=dict, compare=False)
    quick: bool = True  # whether --quick includes it
    precision: str = "fp32"

    @property
    def mode(self) -> str:
        """The CSV's word for the operation."""
        return {"prox": "forward", "hvp": "hvp", "step": "full", "invert": "full"}[self.op]


# The rows with goals first; what is cut when time runs out are compilations of the later ones.
ROWS = (
    Row("mlp prox 2000", "prox", "mlp", 2000, 6, {"A": 4, "C": 3}),
    Row("mlp prox 100000", "prox", "mlp", 100_000, 10, {"A": 6, "C": 2.2}),
    Row("mlp step 2000", "step", "mlp", 2000, 6, {"A": 7, "C": 2.5}),
    Row("mnist prox 64", "prox", "mnist", 64, 8, {"A": 1.5, "C": 1.5}),
    Row("mnist step 64", "step", "mnist", 64, 12, {"A": 1.8, "C": 1.8}, quick=False),
    Row("lpn128 prox 4", "prox", "lpn128", 4, 20, {"A": 1.35, "C": 1.4}, quick=False),
    Row("lpn128 step 4", "step", "lpn128", 4, 40, {"A": 1.35, "C": 1.6}, quick=False),
    Row("lpn128 bf16 prox 4", "prox", "lpn128", 4, 20, {"A": 2.8, "C": 3}, quick=False, precision="bf16"),
    Row("lpn128 bf16 step 4", "step", "lpn128", 4, 40, {"A": 2.2, "C": 2.8}, quick=False, precision="bf16"),
    Row("frame prox 4", "prox", "frame", 4, 15, quick=False),
    Row("mixture prox 4", "prox", "mixture", 4, 15, quick=False),
    Row("contexts prox 4", "prox", "contexts", 4, 20, quick=False),
    Row("mlp prox 0", "prox", "mlp", 0, 1),
    Row("mlp invert 2000", "invert", "mlp-strongly-convex", 2000, 10),
    Row("mlp hvp 2000", "hvp", "mlp", 2000, 5),
    Row("mnist hvp 64", "hvp", "mnist", 64, 8, quick=False),
    Row("frame hvp 1", "hvp", "frame", 1, 8, quick=False),
    Row("mixture hvp 1", "hvp", "mixture", 1, 8, quick=False),
    Row("contexts hvp 1", "hvp", "contexts", 1, 12, quick=False),
    Row("lpn128 hvp 4", "hvp", "lpn128", 4, 20, quick=False),
)


class Setup(works.Setup):
    """Model and inputs of a row, the same for every provider."""

    def __init__(self, row: Row):
        build, sample = NETWORKS[row.network]
        self.row = row
        torch.manual_seed(0)
        kept, chunk = TRUTH_SAMPLES[row.network], TRUTH_CHUNK.get(row.network)
        super().__init__(build().eval(), row.op, (row.batch, *sample), row.precision, kept, chunk)


def provider(name: str, setup: Setup) -> Provider:
    """The provider of that name; it owns a copy of the model wherever it trains."""
    if name in OURS:
        return works.ours(name, OURS[name], setup)
    return works.plain(name, setup, compiled=name == "C", channels_last=name == "A-cl")


def provider_names(row: Row) -> list[str]:
    """All that can be asked of a row; channels-last means something for images only."""
    return [*OURS, *(name for name in BASELINES if name != "A-cl" or not row.network.startswith("mlp"))]
