"""The rows of the CPU table, and one setup factory for all that is measured of them: time, memory and error.

A row is an operation of one network at one batch. `Setup` draws its model and inputs; `providers` gives the
functions to time, each with a way to read its result; `truth` is the same result in float64, by autograd through
the plain module, hence by none of the package's code.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import lpn_fast as lf
from lpn_fast.algebra.parameters import layout
from lpn_fast.ops import registry
from lpn_fast.optim import ProjectedAdam

from .baselines import Compiled, Eager, invert
from .counters import Work, work

NETWORKS = {
    "mlp": (lambda: lf.paper_network("laplacian"), (1,)),
    "mlp-strongly-convex": (lambda: lf.MLPLPN(1, hidden=50, layers=4, alpha=0.1), (1,)),
    "mnist": (lambda: lf.paper_network("mnist"), (1, 28, 28)),
    "lpn128": (lambda: lf.paper_network("celeba"), (3, 128, 128)),
    "frame": (lambda: lf.FrameLPN(1), (1, 256, 256)),
    "mixture": (lambda: lf.MixtureLPN(1, experts=128), (1, 256, 256)),
}
OURS = {"ours": "auto", "ours-torch": "torch"}  # provider -> backend asked for
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # named precision -> the CSV's word for it
BASELINES = ("A", "A-cl", "C")
LEARNING_RATE = 1e-4
INVERT_TOL = 1e-5
SIGMA = 1.0  # for noise-conditional networks: baselines.py knows no other
# prox and hvp: as many suffice
TRUTH_SAMPLES = {"mlp": 4096, "mlp-strongly-convex": 4096, "mnist": 64, "lpn128": 1, "frame": 1, "mixture": 1}
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
    Row("mlp prox 0", "prox", "mlp", 0, 1),
    Row("mlp invert 2000", "invert", "mlp-strongly-convex", 2000, 10),
    Row("mlp hvp 2000", "hvp", "mlp", 2000, 5),
    Row("mnist hvp 64", "hvp", "mnist", 64, 8, quick=False),
    Row("frame hvp 1", "hvp", "frame", 1, 8, quick=False),
    Row("mixture hvp 1", "hvp", "mixture", 1, 8, quick=False),
    Row("lpn128 hvp 4", "hvp", "lpn128", 4, 20, quick=False),
)


class Setup:
    """Model and inputs of a row, the same for every provider."""

    def __init__(self, row: Row, batch: int | None = None):
        build, sample = NETWORKS[row.network]
        self.row = row
        self.batch = row.batch if batch is None else batch
        torch.manual_seed(0)
        self.model = build().eval()
        shape = (self.batch, *sample)
        self.x, self.v, self.target = torch.randn(3, *shape)  # [N, ...] each
        if row.op == "invert":
            with torch.no_grad():
                self.x = self.model(2 * self.x)  # points that have a preimage

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    def work(self) -> Work:
        """Least work of one call; an inversion counts one evaluation per sample and iteration, and one to start."""
        if self.row.op != "invert":
            return work(self.model.spec, self.row.op, self.shape)
        iterations = lf.invert(self.model, self.x, tol=INVERT_TOL).iterations.double().mean().item()
        return work(self.model.spec, "prox", self.shape).times(iterations + 1)

    def truth(self) -> Tensor:
        """The result in float64, as `Provider.result` gives it (for an inversion: x itself)."""
        if self.row.op == "invert":
            return self.x.double()
        plain = Eager(copy.deepcopy(self.model).double())
        x, v, target = (t.double() for t in (self.x, self.v, self.target))
        if self.row.op != "step":
            kept = slice(TRUTH_SAMPLES[self.row.network])
            return plain.prox(x[kept]).detach() if self.row.op == "prox" else plain.hvp(x[kept], v[kept])
        total = 0
        for rows in torch.arange(self.batch).split(TRUTH_CHUNK[self.row.network]):
            plain.loss_gradients(x[rows], target[rows])
            total = total + plain.potential.gradients() * (len(rows) / self.batch)
        return total


@dataclass(frozen=True)
class Provider:
    """One way to do a row's work."""

    name: str
    backend: str
    precision: str
    call: Callable[[], object]
    result: Callable[[object], Tensor]  # from what `call` returned, comparable with Setup.truth


def provider(name: str, setup: Setup) -> Provider:
    """The provider of that name; it owns a copy of the model wherever it trains."""
    if name in OURS:
        return _ours(name, setup)
    model = copy.deepcopy(setup.model)
    plain = Compiled(model) if name == "C" else Eager(model, channels_last=name == "A-cl")
    backend = "torch.compile" if name == "C" else "torch eager"
    x, v, target = setup.x, setup.v, setup.target
    if name == "A-cl":
        x, v, target = (t.contiguous(memory_format=torch.channels_last) for t in (x, v, target))
    if setup.row.op == "step":
        fused = {"fused": True} if name == "C" else {}  # whoever compiles takes torch's fused Adam too
        optimizer = torch.optim.Adam(plain.potential.parameters(), lr=LEARNING_RATE, **fused)

        def step():
            plain.loss_gradients(x, target)
            optimizer.step()
            plain.potential.clamp_()

        return Provider(name, backend, "float32", step, lambda _: plain.potential.gradients())
    calls = {
        "prox": lambda: plain.prox(x).detach(),
        "hvp": lambda: plain.hvp(x, v),
        "invert": lambda: invert(lambda y: plain.prox(y).detach(), x, INVERT_TOL),
    }
    return Provider(name, backend, "float32", calls[setup.row.op], _reader(setup))


def provider_names(row: Row) -> list[str]:
    """All that can be asked of a row; channels-last means something for images only."""
    return [*OURS, *(name for name in BASELINES if name != "A-cl" or not row.network.startswith("mlp"))]


def _ours(name: str, setup: Setup) -> Provider:
    asked = OURS[name]
    model = copy.deepcopy(setup.model)
    model.precision = setup.row.precision
    x, v, target = setup.x, setup.v, setup.target
    sigma = SIGMA if model.is_noise_conditional else None
    optimizer = ProjectedAdam(model, lr=LEARNING_RATE)

    def step():
        loss = (model(x, sigma) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    calls = {
        "prox": lambda: model(x, sigma),
        "hvp": lambda: model.hvp(x, v, sigma),
        "invert": lambda: lf.invert(model, x, tol=INVERT_TOL).preimage,
    }

    def call():
        with lf.use_backend(asked):
            if setup.row.op == "step":
                return step()
            with torch.no_grad():
                return calls[setup.row.op]()

    def gradients(_):
        return torch.cat([model.get_parameter(slot.name).grad.reshape(-1) for slot in layout(model.spec)])

    with lf.use_backend(asked):
        runs = registry.select(model.spec, x, model.precision).name
    return Provider(name, runs, DTYPES[model.precision], call, gradients if setup.row.op == "step" else _reader(setup))


def _reader(setup: Setup) -> Callable[[Tensor], Tensor]:
    """What is compared with the truth: the leading samples, or f(y) in float64 for an inversion."""
    if setup.row.op == "invert":
        plain = Eager(copy.deepcopy(setup.model).double())
        return lambda y: plain.prox(y.double()).detach()
    kept = slice(TRUTH_SAMPLES[setup.row.network])
    return lambda result: result[kept]


def relative_error(result: Tensor, truth: Tensor) -> float:
    """|result - truth| / |truth|, L2, in float64; 0 for nothing."""
    if not truth.numel():
        return 0.0
    return ((result.detach().double() - truth).norm() / truth.norm()).item()
