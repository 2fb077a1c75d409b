"""The executable specification: psi written as in algebra/spec.py, everything else by automatic differentiation.

No tricks, any device, float64-clean, differentiable to any order. When a fast path disagrees with this
file the fast path is wrong. It is also the third-order fallback of the autograd Functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import unpack
from .patches import Patches
from .spec import Spec

# torch's softplus returns u itself above beta u > threshold. exp(-40) = 4e-18 is below float64's eps.
SOFTPLUS_THRESHOLD = 40.0


def potential(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None = None) -> Tensor:
    """psi(x), shape (N,), for x (N, C), (N, C, H, W) or (N, C, D, H, W), P (P,), noise features (N, F) or None."""
    p = unpack(spec, packed)
    axes = tuple(range(1, x.dim()))
    psi = 0.5 * spec.alpha * (x * x).sum(axes)  # [N]
    z: Tensor | None = None
    weights_at, at = x.new_ones(()), x  # w_p, and the image as the skips read it
    if spec.is_mirrored:
        height, width = x.shape[2:]
        patches = Patches((height, width), spec.stages[0].skip_kernel, x, spec.spacing)
        weights_at, at = patches.weights, patches.extended(x)
    for stage, above, weights in zip(spec.stages, (*spec.stages[1:], None), p.stages, strict=True):
        u = x.new_zeros(())  # [N, H_l, ..]
        if weights.odds is not None and weights.sharpness is not None and z is not None:
            at_sigma = x.new_ones(len(x), 1) if features is None else features
            s = (at_sigma @ weights.sharpness).exp().view(-1, 1, 1, 1)
            largest = z.detach().amax(1, keepdim=True)
            sums = torch.einsum("nf,fcm,nmij->ncij", at_sigma, weights.odds, (z - largest).exp())
            u = s * _averaged(sums.log() + largest, stage.window, weights_at)
        elif weights.core is not None and z is not None:
            u = u + _apply(spec, z, weights.core, stage.stride, stage.padding)
        if weights.skip is not None:
            resized = _published_resize(at, stage.resize)
            padding = 0 if spec.is_mirrored else stage.skip_padding
            u = u + _apply(spec, resized, weights.skip, stage.skip_stride, padding)
        if weights.bias is not None:
            u = u + _per_channel(weights.bias[None], x.dim())
        if weights.noise is not None:
            if features is None:
                raise ValueError("features must have shape (N, F) for a noise-conditional network, got None")
            u = u + _per_channel(features @ weights.noise.T, x.dim())
        if stage.competing:
            z = (spec.beta * u).logsumexp(1, keepdim=True) / (s if stage.window else spec.beta)
        elif above is not None and above.window:
            z = u
        else:
            z = u * u if z is None and spec.square_first else F.softplus(u, spec.beta, SOFTPLUS_THRESHOLD)
        if weights.head is not None:
            psi = psi + (z * weights_at * _per_channel(weights.head[None], x.dim())).sum(axes)
        if weights.head_squared is not None:
            psi = psi + (z * z * _per_channel(weights.head_squared[None], x.dim())).sum(axes)
    if p.linear is not None:
        psi = psi + (x * _per_channel(p.linear[None], x.dim())).sum(axes)
    if p.constant is not None:
        psi = psi + p.constant
    if p.quadratic is not None:
        k = _apply(spec, x, p.quadratic, 1, spec.quadratic_kernel // 2)
        psi = psi + 0.5 * (k * k).sum(axes)
    return psi


def prox(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None = None) -> Tensor:
    """f(x) = grad psi(x), of x's shape."""
    return torch.func.grad(lambda t: potential(spec, t, packed, features).sum())(x)


def hvp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor) -> Tensor:
    """grad^2 psi(x) v, by reverse differentiation of f."""
    return torch.func.vjp(lambda t: prox(spec, t, packed, features), x)[1](v)[0]


def vjp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, p: Tensor | None, v: Tensor | None):
    """Gradient of sum (p psi(x) + <v, f(x)>) over the batch, with respect to x and P; p (N,), v like x."""

    def pairing(x, packed):
        total = x.new_zeros(())
        if p is not None:
            total = total + (p * potential(spec, x, packed, features)).sum()
        if v is not None:
            total = total + (v * prox(spec, x, packed, features)).sum()
        return total

    return torch.func.grad(pairing, argnums=(0, 1))(x, packed)


def _apply(spec: Spec, z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if spec.is_dense:
        return z @ weight.T
    correlation = F.conv2d if spec.ndim == 2 else F.conv3d
    return correlation(z, weight, stride=stride, padding=padding)


def _per_channel(t: Tensor, dims: int) -> Tensor:
    """[N, H] as [N, H, 1, ..] where the network has pixels."""
    return t.reshape(t.shape + (1,) * (dims - 2))


def _averaged(l: Tensor, side: int, weights: Tensor) -> Tensor:
    """G of algebra/windows.py as matrices, applied to l (N, C, h, w); weights (h, w) or ()."""
    height, width = l.shape[2:]
    near = []
    for length in (height, width):
        at = torch.arange(length, device=l.device)
        distance = (at[:, None] - at).abs()
        t = torch.cos(torch.pi * distance.to(l.dtype) / (side + 1)).square()
        near.append(torch.where(distance <= side // 2, t, 0.0))
    rows, columns = near  # symmetric
    w = weights.expand(height, width)
    return rows @ (l * (w / (rows @ w @ columns))) @ columns


def _published_resize(x: Tensor, factor: int) -> Tensor:
    """D_r by torch's own bi- or trilinear interpolation, independent of algebra/resize.py."""
    if factor == 1:
        return x
    image = x.shape[2:]
    x = F.pad(x, [p for n in reversed(image) for p in (0, -n % factor)], mode="replicate")
    size = [n // factor for n in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear" if len(image) == 2 else "trilinear", align_corners=False)
