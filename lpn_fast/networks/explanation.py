"""Which backend runs a network, and why the others do not."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..ops import admission, registry
from ..ops.explicit import kernels
from .explicit import ExplicitLPN
from .inputs import checked_network
from .lpn import LPN


def explain(model: LPN, x: Tensor) -> str:
    """Which backend runs `model` on `x`, and why the others do not, one line each.

    On a GPU that is decided for each of: prox (of an explicit prior the gradient of R), value, Hessian product, and
    parameter gradients. Lines name those that they are about, unless it is all.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> print(lf.explain(lf.MLPLPN(dim=3), torch.zeros(5, 3)))  # doctest: +SKIP
    """
    checked_network(model)
    if isinstance(model, ExplicitLPN):
        lines = [line for level in model.kernel_levels() for line in _told(*kernels.choices(level, x), lambda _: [])]
    else:
        call = model.spec, x, model.precision
        lines = _told(*registry.choices(*call), lambda backend: getattr(backend, "details", lambda *_: [])(*call))
    return "\n".join(lines)


def _told(runs: dict[str, Any], reasons: dict[str, dict[str, str | None]], details) -> Iterator[str]:
    """Lines of what runs each work, with who computes what within it, and of why the others do not."""
    named = {backend.name: backend for backend in runs.values()}
    for backend in named.values():
        works = [work for work, runner in runs.items() if runner.name == backend.name]
        yield f"{backend.name}: runs {_which(works, runs) or 'this call'} (chosen by {registry.chosen()!r})"
        yield from (f"  {line}" for line in details(backend))
    for name, by_work in reasons.items():
        grouped: dict[str, list[str]] = {}
        for work, reason in by_work.items():
            if runs[work].name != name and (reason or name not in named):
                grouped.setdefault(reason or "could run it, others come first", []).append(work)
        for reason, works in grouped.items():
            which = _which(works, runs)
            yield f"{name}{which and f', {which}'}: {reason}"


def _which(works: list[str], runs: dict[str, Any]) -> str:
    """The names of works, or nothing where they are all."""
    return "" if len(works) == len(runs) else ", ".join(works)


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
