"""Squared first stages under gates of single pixels, in few passes over memory: psi and f by torch's operations.

    c = K x,  z_1 = c^2,  z_l = softplus(W_l z_{l-1} + b_l),  the last of them perhaps competing
    e_l = s_l (W_{l+1}^T e_{l+1} + w_l);   f = K^T (c 2 (W_2^T e_2 + w_1)) + alpha x

with K E for K and the weights w_p of algebra/patches.py in all sums over positions where the border is mirrored.

What the sweeps keep for second order is not kept here, constants are folded into the weights, biases into the products,
and steps happen in place: of a mixture of 128 over 49 coefficients 3.8 kB of traffic per position in the place of
about 8 (bench/gpu/arithmetic.py counts). Everything is stored in x's type: 16 bits would need a pass of their own to
round, and c^2 and the energies leave half precision's range; products are TF32's where 16 bits are named.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...algebra.parameters import unpack
from ...algebra.patches import Patches
from ...algebra.reference import SOFTPLUS_THRESHOLD
from ...algebra.spec import Spec
from ..maps import correlation_adjoint

# Images of so many positions go one by one: their bias is then part of the product, and kernels are long enough.
LARGE = 1 << 16
CHUNK_BYTES = 1 << 28  # one stage's activations; small images go through that many at a time


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W), P (P,), noise features (N, F) or None."""
    positions = (x.shape[2] + spec.stages[0].skip_kernel - 1) * (x.shape[3] + spec.stages[0].skip_kernel - 1)
    widest = max(stage.width for stage in spec.stages)
    images = 1 if positions >= LARGE else max(1, CHUNK_BYTES // (positions * widest * x.element_size()))
    f = torch.empty_like(x, memory_format=torch.contiguous_format)
    psi = []
    for first in range(0, len(x), images):
        some = slice(first, first + images)
        value, f[some] = _value_prox(spec, x[some], packed, None if features is None else features[some], with_value)
        psi.append(value)
    return (torch.cat(psi) if psi else x.new_zeros(0)) if with_value else None, f


def _value_prox(spec: Spec, x, packed, features, with_value: bool) -> tuple[Tensor | None, Tensor]:
    first, *gates = unpack(spec, packed).stages
    k, competing = first.skip.shape[-1], spec.stages[-1].competing
    patches = Patches(x.shape[2:], k, x) if spec.is_mirrored else None
    padding, at = (k - 1, x) if patches is None else (0, patches.extended(x))
    weights = None if patches is None else patches.weights.flatten()  # [positions]
    psi = (0.5 * spec.alpha) * x.square().sum((1, 2, 3)) if with_value else None
    image = F.conv2d(at, first.skip.contiguous(memory_format=torch.channels_last), None, 1, padding)
    c = image.permute(0, 2, 3, 1).flatten(1, 2)  # [N, positions, n], memory of a channels-last result
    z = c * c
    if with_value and first.head is not None:
        psi += _counted(z, weights) @ first.head
    steps = []  # softmax(beta u) of gates that compete, u of the others
    for gate in gates:
        u, last = affine(z, gate.core.flatten(1), bias_of(gate, features)), gate is gates[-1]
        if last and competing:
            if with_value:
                psi += gate.head * _counted(u.mul(spec.beta).logsumexp(2).div_(spec.beta), weights)
            u = (u if spec.beta == 1 else u.mul_(spec.beta)).softmax(2)
        elif not last or (with_value and gate.head is not None):
            z = F.softplus(u, spec.beta, SOFTPLUS_THRESHOLD)
            if with_value and gate.head is not None:
                psi += _counted(z, weights) @ gate.head
        steps.append(u)
    a = None  # W_{l+1}^T e_{l+1} + w_l, twice that at the first stage
    for l in reversed(range(len(gates))):
        gate, weight, e = gates[l], gates[l].core.flatten(1), steps[l]
        if not (competing and a is None):
            e = (e if spec.beta == 1 else e.mul_(spec.beta)).sigmoid_()  # sigma'
        if a is None:
            weight = weight * gate.head[:, None]  # e_L is w g
        else:
            e = e.mul_(a)
        below, scale = (gates[l - 1].head, 1.0) if l else (first.head, 2.0)
        weight = (weight * scale).T
        a = e @ weight.T if below is None else affine(e, weight, scale * below[None])
    if a is None:
        a = 2 * first.head
    e = c.mul(a)
    if weights is not None:
        e = e.mul_(weights[:, None])
    e = e.unflatten(1, image.shape[2:]).permute(0, 3, 1, 2)
    f = correlation_adjoint(e, at, first.skip, 1, padding)
    if patches is not None:
        f = patches.folded(f)
    return psi, f.add_(x, alpha=spec.alpha)


def _counted(t: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over the positions of t, [N, L] or [N, L, m], with their weights [L]."""
    if weights is None:
        return t.sum(1)
    return (t * weights.view(-1, *(1,) * (t.dim() - 2))).sum(1)


def affine(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """z weight^T + bias, [N, L, m], from z [N, L, n], weight [m, n] and bias [1 or N, m]."""
    if len(bias) == 1:
        return torch.addmm(bias[0], z.flatten(0, 1), weight.T).unflatten(0, z.shape[:2])
    return torch.baddbmm(bias[:, None], z, weight.T.expand(len(z), -1, -1))


def bias_of(gate, features: Tensor | None) -> Tensor:
    """b + B phi(sigma), [1 or N, m]."""
    return gate.bias[None] if gate.noise is None else torch.addmm(gate.bias, features, gate.noise.T)
