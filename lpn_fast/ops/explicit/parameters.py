"""Gradients of R and of <v, grad R(x)> in atoms and potentials: by the CPU's kernel where it runs, else by autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu, kernels, potentials
from .coarse import Tilings, means
from .level import level_of
from .potentials import Potentials


def gradients(
    pot: Potentials, x: Tensor, v: Tensor | None, p: Tensor | None, k: int, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the sum over samples of <v, grad R(x)>, or of p R(x) where v is None, in `pot.tensors()`.

    v like x, p (N,); None for those that are not wanted.
    """
    found = _of_level(pot, x, v, p, k, wanted[:5])
    if pot.coarse is None:
        return found
    coarse = [torch.zeros_like(t) if want else None for t, want in zip(pot.coarse.tensors(), wanted[5:], strict=True)]
    if potentials.has_coarse(pot, x, k):
        z, along = means(x, k), None if v is None else means(v, k)
        tilings, side = Tilings(z.shape[2:], k), potentials.side(pot, x)
        directions = [None] * len(tilings.places) if along is None else tilings.split(along)
        for part, direction in zip(tilings.split(z), directions, strict=True):
            weights = None if p is None else p.repeat_interleave(len(part) // len(x))
            for total, own in zip(
                coarse, _of_level(pot.coarse, part, direction, weights, side, wanted[5:]), strict=True
            ):
                if total is not None:
                    total += own / k ** (x.dim() - 2)
    return found + coarse


def _of_level(
    pot: Potentials, x: Tensor, v: Tensor | None, p: Tensor | None, k: int, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The same of one level; the potentials are those of N / B samples each, one after another."""
    tensors = pot.tensors()[:5]
    if not (len(x) and any(wanted)):
        return [torch.zeros_like(t) if want else None for t, want in zip(tensors, wanted, strict=True)]
    if kernels.select(level_of(pot, x, k), x) is cpu:
        found = cpu.parameter_gradient(pot, x, v, p, k)
        return [t if want else None for t, want in zip(found, wanted, strict=True)]
    with torch.enable_grad():
        copies = [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
        own = Potentials(*copies).repeated(len(x) // len(pot.energies))
        if v is not None:
            scalar = potentials.pairing(own, x, v, k)
        else:
            assert p is not None
            scalar = (potentials.values(own, x, k) * p.to(x)).sum()
        parts = iter(torch.autograd.grad(scalar, [t for t in copies if t.requires_grad]))
    return [next(parts) if want else None for want in wanted]
