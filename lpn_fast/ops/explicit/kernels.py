"""Which kernels compute one level of an explicit prior: the CPU's, the GPU's where they were admitted, or torch's."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import admission, registry
from ..backends.triton import explicit as gpu
from ..device_check import EXPLICIT_WORKS, GRADIENT_OF_R, HESSIAN, TRAINING, VALUE
from . import cpu, plain
from .level import Level, level_of

if TYPE_CHECKING:
    from .potentials import Potentials

KERNELS: tuple[Any, ...] = (cpu, gpu)  # in order of preference
TO_BE_ADMITTED = frozenset({gpu.name})


def run(pot: "Potentials", x: Tensor, v: Tensor | None, k: int, with_value: bool) -> tuple[Tensor, Tensor]:
    """(R(x) (N,) float64, or zeros without values, grad R(x)), or the Hessian times v as the second one.

    x, v (N, C, H, W), in units of the noise.
    """
    work = HESSIAN if v is not None else VALUE if with_value else GRADIENT_OF_R
    return select(level_of(pot, x, k), x, work).run(pot, x, v, k, with_value)


def gradients(pot: "Potentials", x: Tensor, v: Tensor | None, scale: Tensor | None, k: int) -> tuple[Tensor, ...]:
    """The gradient of  sum over samples of <v, grad R(x)> + scale R(x)  in the tensors of this level; scale (N,)."""
    return select(level_of(pot, x, k), x, TRAINING).gradients(pot, x, v, scale, k)


def select(level: Level, x: Tensor, work: str = GRADIENT_OF_R) -> Any:
    """What runs such a call, a work of EXPLICIT_WORKS: by name, or the first that can and may."""
    wanted = registry.chosen()
    if wanted == plain.name:
        return plain
    if wanted == "auto":
        return next((kernel for kernel in KERNELS if not refused(kernel, level, x, work)), plain)
    for kernel in KERNELS:
        if kernel.name == wanted:
            reason = kernel.refusal(level, x)
            if reason:
                raise RuntimeError(f"backend {wanted!r} was asked for but cannot run this prior: {reason}")
            registry.raise_if_unproven(kernel, plain, level, x, "fp32")
            return kernel
    raise RuntimeError(f"backend {wanted!r} was asked for but has no kernel of explicit priors")


def refused(kernel: Any, level: Level, x: Tensor, work: str, ask: bool = True) -> str | None:
    """Why "auto" does not take a kernel for a work, or None."""
    reason = kernel.refusal(level, x)
    if reason or kernel.name not in TO_BE_ADMITTED:
        return reason
    return registry.refusal(kernel, plain, level, x, "fp32", work, ask)


def choices(level: Level, x: Tensor) -> tuple[dict[str, Any], dict[str, dict[str, str | None]]]:
    """Work -> what runs it; name -> work -> why that one is not taken, or None."""
    runs = {work: select(level, x, work) for work in EXPLICIT_WORKS}
    reasons = {k.name: {work: refused(k, level, x, work, ask=False) for work in EXPLICIT_WORKS} for k in KERNELS}
    return runs, reasons


def examine(level: Level, device: torch.device, compiled: bool = True) -> dict[str, "admission.Verdict | str"]:
    """Check the kernels that have to be admitted, whatever is known: a verdict each, or why it cannot run."""
    x = torch.empty(1, level.channels, *(1,) * level.ndim, device=device)
    found: dict[str, admission.Verdict | str] = {}
    for kernel in KERNELS:
        if kernel.name in TO_BE_ADMITTED:
            reason = kernel.refusal(level, x)
            found[kernel.name] = reason or admission.examine(kernel, plain, level, device, "fp32", None, compiled)
    return found
