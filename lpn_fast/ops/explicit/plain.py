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
    patches = Patches(x.shape[2:], k, x)
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
                value[n] += (total.sum(0) * weights).sum(dtype=torch.float64) / patches.pixels
            if along is None:
                gates = (near.mul_(a)).sub_(far.mul_(e))
                sent = c.mul_(u_matrix.T @ gates)
            else:
                dc = atoms @ patches.gather(along[one], block)[0]
                third = a * near**3 - torch.where(energy > e * e, e * far**3, 0.0)
                gates = near.mul_(a).sub_(far.mul_(e))
                turned = u_matrix.T @ (third * (u_matrix @ (c * dc)))
                sent = dc.mul_(u_matrix.T @ gates).sub_(c * turned)
            patches.scatter((atoms.T @ sent.mul_(weights / patches.pixels))[None], result[one], block)
    return value, patches.folded(result)


def gradient(pot: "Potentials", x: Tensor, k: int) -> Tensor:
    """grad R of all samples of images at once, as one would write it for a compiler."""
    patches = Patches(x.shape[2:], k, x)
    extended = patches.extended(x)
    c = pot.atoms @ F.unfold(extended, k)  # [N, n, P]
    energy = pot.energies @ c.square()  # [N, M, P]
    a, b, e = (t[:, :, None] for t in (pot.slope, pot.near, pot.far))
    gates = a * torch.rsqrt(energy + b) - e * torch.rsqrt(energy.maximum(e * e))
    c = c * (pot.energies.mT @ gates) * (patches.weights.flatten() / k**2)
    return patches.folded(F.fold(pot.atoms.T @ c, extended.shape[2:], k))


def gradients(
    pot: "Potentials", x: Tensor, v: Tensor | None, scale: Tensor | None, k: int, precision: str = "fp32"
) -> tuple[Tensor, ...]:
    """The gradient of  sum over samples of <v, grad R(x)> + scale R(x)  in the tensors of a level, by autograd."""
    with torch.enable_grad():
        tensors = [t.detach().requires_grad_() for t in pot.tensors()[:5]]
        total = _pairing(pot.of_tensors(tensors), x, v, scale, k)
        return torch.autograd.grad(total, tensors, materialize_grads=True)


def _pairing(pot: "Potentials", x: Tensor, v: Tensor | None, scale: Tensor | None, k: int) -> Tensor:
    """sum over samples of <v, grad R(x)> + scale R(x), by operations that autograd differentiates in the potentials."""
    patches = Patches(x.shape[2:], k, x)
    at = patches.extended(x)
    along = None if v is None else patches.extended(v)
    total = pot.atoms.sum() * 0
    for n in range(len(x)):
        own, one = pot.of(slice(n, n + 1)), slice(n, n + 1)
        u_matrix, a, b, e = own.single()
        for block in patches.blocks():
            weights = patches.weights_of(block) / patches.pixels
            c = own.atoms @ patches.gather(at[one], block)[0]
            energy = u_matrix @ c.square()
            if along is not None:
                dc = own.atoms @ patches.gather(along[one], block)[0]
                gates = a * torch.rsqrt(energy + b) - e * torch.rsqrt(energy.maximum(e * e))
                total = total + (gates * (u_matrix @ (c * dc * weights))).sum()
            if scale is not None:
                value = a * ((energy + b).sqrt() - b.sqrt()) - huber(energy, e)
                total = total + scale[n] * (value.sum(0) * weights).sum()
    return total


def huber(energy: Tensor, e: Tensor) -> Tensor:
    """Huber's function of the root of energies."""
    outer = energy.maximum(e * e)
    return e * outer.sqrt() - (outer - energy + e * e) / 2
