"""Which networks reconstruct: those that are given, or shipped ones, by operator and channels; in jobs, too."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .networks import LPN, ExplicitLPN, pretrained
from .physics import Blur, LinearOperator
from .physics.noise import without_noise

Network = LPN | ExplicitLPN

GRAY, COLOR = "fast-gray", "fast-color"
# Networks of the descent, by that of the pilot: R itself, and those trained through the minimisers of blurs.
EXPLICIT = {GRAY: "natural-gray", COLOR: "natural-color"}
BLUR = {GRAY: "natural-gray-deblur", COLOR: "natural-color-deblur"}
# Instead, where the prox is asked for; behind blurs these try the weights, too, which takes a tenth of the time.
ONE_PASS = {EXPLICIT[GRAY]: GRAY, EXPLICIT[COLOR]: COLOR, BLUR[GRAY]: "fast-gray-deblur"}


@dataclass(frozen=True)
class Choice:
    """Networks of pilot and descent, why these, and the one that tries weights; None is that of the descent."""

    pilot: Network
    descent: Network
    reason: str
    trial: LPN | None = None

    @property
    def by_gradient(self) -> bool:
        """Whether the descent has R and its gradient in one pass."""
        return isinstance(self.descent, ExplicitLPN)

    @property
    def through_minimisers(self) -> bool:
        """Whether the network of the descent was trained through the minimisers of such problems alone."""
        return str(self.descent.card.get("task", "")).lower().startswith("deblur")

    @property
    def apart(self) -> bool:
        """Whether the weight of the prior is that of the descent alone, and the pilot's its own."""
        return self.by_gradient or self.through_minimisers


def choose(model: Network | Choice | str, physics: LinearOperator, x: Tensor) -> Choice:
    """The networks for images like x, (N, C, H, W): its channels, device and type."""
    if isinstance(model, Choice):
        return model
    if isinstance(model, Network):
        own = next(model.parameters())
        if own.dtype != x.dtype:
            raise TypeError(f"y must be {own.dtype} as the model is, got {x.dtype}; convert with y.to({own.dtype})")
        return Choice(model, model, "the model given")
    if not isinstance(model, str):
        raise TypeError(f'model must be an LPN, the name of a shipped one or "auto", got {type(model).__name__}')
    if model != "auto":
        named = pretrained(model, x.device).to(x.dtype)
        return Choice(named, named, f"model {model}, as asked")
    if x.dim() != 4:
        raise ValueError(
            f"model='auto' has networks for images (N, C, H, W), this operator's have shape {tuple(x.shape)}"
        )
    names = shipped_for(physics, x.shape[1])
    networks = [pretrained(name, x.device).to(x.dtype) for name in names]
    usual = {1: "for gray images", 3: "for images of three channels"}
    reason = f"model {names[0]} {usual.get(x.shape[1], f'for each of {x.shape[1]} channels')}"
    return chosen(networks, reason if len(names) == 1 else f"{reason}, {names[1]} to descend")


def chosen(networks: Sequence[Network], reason: str) -> Choice:
    """The choice of the networks of `shipped_for`."""
    return Choice(networks[0], networks[min(1, len(networks) - 1)], reason, *networks[2:])


def shipped_for(physics: LinearOperator, channels: int, solver: str | None = None) -> tuple[str, ...]:
    """Names of the shipped networks of pilot, descent and trials of weights, or of fewer that do for all.

    With a solver, of lf.solvers by its name, the one network that suits it.
    """
    name = COLOR if channels == 3 else GRAY
    is_blur = isinstance(without_noise(physics), Blur)
    descent = (BLUR if is_blur else EXPLICIT).get(name, name)
    if solver is not None:
        return (descent if solver == "gradient" else ONE_PASS.get(descent, descent),)
    if descent == name:
        return (name,)
    return (name, descent, ONE_PASS[descent]) if is_blur and descent in ONE_PASS else (name, descent)
