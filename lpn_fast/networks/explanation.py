"""Which backend runs a network, and why the others do not."""

from torch import Tensor

from ..ops import registry
from .inputs import checked_network
from .lpn import LPN


def explain(model: LPN, x: Tensor) -> str:
    """Which backend runs `model` on `x`, and why the others do not, one line each.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> print(lf.explain(lf.MLPLPN(dim=3), torch.zeros(5, 3)))  # doctest: +SKIP
    """
    checked_network(model)
    backend = registry.select(model.spec, x, model.precision)
    runs = backend.name
    lines = [f"{runs}: runs this call (chosen by {registry.chosen()!r})"]
    if hasattr(backend, "details"):  # who computes what within it
        lines += [f"  {line}" for line in backend.details(model.spec, x, model.precision)]
    slower = registry.not_admitted(model.spec, x, model.precision)
    for name, reason in registry.reasons(model.spec, x, model.precision).items():
        if name != runs:
            reason = reason or slower.get(name)
            lines.append(f"{name}: {reason or 'could run it, others come first'}")
    return "\n".join(lines)
