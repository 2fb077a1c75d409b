"""One level of an explicit prior by torch's operations, for any type and device: what kernels are compared with."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...algebra.patches import Patches

if TYPE_CHECKING:
    from .potentials import Potentials

name = "torch"


def run(
    pot: "Potentials", x: Tensor, v: Tensor | None, k: int, with_value: bool, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(R(x) (N,) float64, or zeros without values, grad R(x)); where v is given, H v is the second one."""
    patches = Patches(*x.shape[2:], k, x)
    at = patches.extended(x)
    along = None if v is None else patches.extended(v)
    result = torch.zeros_like(at)
    value = x.new_zeros(len(x), dtype=torch.float64)
    for n in range(len(x)):
        own, one = pot.of(slice(n, n + 1)), slice(n, n + 1)
        atoms, (u_matrix, a, b, e) = own.atoms, own.single()
        for block in patches.blocks():
            weights = patches.weights_of(block)
            c = atoms @ patches.gather(at[one], block)[0]  # [n, P]
            energy = u_matrix @ c.square()  # [M, P]
            near, far = torch.rsqrt(energy + b), torch.rsqrt(energy.maximum(e * e))
            if with_value:
                total = a * (near.reciprocal() - b.sqrt()) - huber(energy, e)
                value[n] += (total.sum(0) * weights).sum(dtype=torch.float64) / k**2
            if along is None:
                gates = (near.mul_(a)).sub_(far.mul_(e))
                sent = c.mul_(u_matrix.T @ gates)
            else:
                dc = atoms @ patches.gather(along[one], block)[0]
                third = a * near**3 - torch.where(energy > e * e, e * far**3, 0.0)
                gates = near.mul_(a).sub_(far.mul_(e))
                turned = u_matrix.T @ (third * (u_matrix @ (c * dc)))
                sent = dc.mul_(u_matrix.T @ gates).sub_(c * turned)
            patches.scatter((atoms.T @ sent.mul_(weights / k**2))[None], result[one], block)
    return value, patches.folded(result)


def gradient(pot: "Potentials", x: Tensor, k: int) -> Tensor:
    """grad R of all samples at once, as one would write it for a compiler."""
    patches = Patches(*x.shape[2:], k, x)
    extended = patches.extended(x)
    c = pot.atoms @ F.unfold(extended, k)  # [N, n, P]
    energy = pot.energies @ c.square()  # [N, M, P]
    a, b, e = (t[:, :, None] for t in (pot.slope, pot.near, pot.far))
    gates = a * torch.rsqrt(energy + b) - e * torch.rsqrt(energy.maximum(e * e))
    c = c * (pot.energies.mT @ gates) * (patches.weights.flatten() / k**2)
    return patches.folded(F.fold(pot.atoms.T @ c, extended.shape[2:], k))


def huber(energy: Tensor, e: Tensor) -> Tensor:
    """Huber's function of the root of energies."""
    outer = energy.maximum(e * e)
    return e * outer.sqrt() - (outer - energy + e * e) / 2
