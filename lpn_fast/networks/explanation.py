"""Which backend runs a network, and why the others do not."""

from torch import Tensor

from ..ops import admission, registry
from ..ops.explicit import kernels
from .explicit import ExplicitLPN
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
    if isinstance(model, ExplicitLPN):
        levels = model.kernel_levels()
        return "\n".join(line for level in levels for line in kernels.explain(level, x))
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


def examine(model: LPN | ExplicitLPN, precision: str, compiled: bool = True) -> dict[str, "admission.Verdict | str"]:
    """Check the GPU kernels of `model` on its device, whatever is known: per backend a verdict, or why it cannot run.

    A network is checked with its own weights, an explicit prior with potentials of every kind, for each of its levels.
    `compiled`: beside torch.compile, too, which takes a minute.
    """
    if isinstance(model, ExplicitLPN):
        levels = model.kernel_levels()
        found = [kernels.examine(level, model.far.device, compiled) for level in levels]
        named = [f" ({level.kernel} x {level.kernel})" if len(levels) > 1 else "" for level in levels]
        return {name + which: said for one, which in zip(found, named, strict=True) for name, said in one.items()}
    packed = model.packed().detach()
    return registry.examine(model.spec, packed.device, precision, packed, compiled)
