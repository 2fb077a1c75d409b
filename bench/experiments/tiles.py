"""A network of one image size on larger images, as an exact prox.

    Psi(x) = (1/n) sum_p psi(P_p E x),      F(x) = grad Psi(x) = (1/n) E^T sum_p P_p^T f(P_p E x)

E pads with zeros by (side of a patch - stride), P_p cuts patch p out. Every pixel of x then lies in the same number
n = (side / stride)^2 of patches, so F is the gradient of a convex function. The published code pads nothing and
divides every pixel by a count of its own, which is the gradient of nothing at the borders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import lpn_fast as lf

AT_ONCE = 16  # patches per evaluation


class Tiled:
    """What the solvers need of a prior: `prox_and_prior` at strength 1.

    Parameters
    ----------
    model : LPN
        Of a fixed image size (side, side).
    stride : int
        Of the patches; it divides the side, and side + stride must fit into the images a whole number of times.
    """

    is_noise_conditional = False

    def __init__(self, model: lf.LPN, stride: int):
        self.model, self.side, self.stride = model, model.spec.image_size[0], stride
        self.card, self.alpha = model.card, model.alpha
        if self.side % stride:
            raise ValueError(f"stride must divide the side {self.side} of the patches, got {stride}")

    def parameters(self):
        """Those of the network."""
        return self.model.parameters()

    def potential_and_prox(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(Psi (N,) float64, F (N, C, H, W)) of x (N, C, H, W)."""
        pad, count = self.side - self.stride, (self.side // self.stride) ** 2
        for size in x.shape[-2:]:
            if (size + 2 * pad - self.side) % self.stride:
                raise ValueError(f"sides of x must be multiples of {self.stride}, got {tuple(x.shape[-2:])}")
        wide = F.pad(x, (pad, pad, pad, pad))
        columns = F.unfold(wide, self.side, stride=self.stride)  # [N, C side^2, patches]
        patches = columns.mT.reshape(-1, x.shape[1], self.side, self.side)
        parts = [self.model.potential_and_prox(p) for p in patches.split(AT_ONCE)]
        psi = torch.cat([p for p, _ in parts]).double().view(len(x), -1).sum(1) / count
        f = torch.cat([p for _, p in parts]).reshape(len(x), -1, columns.shape[1]).mT
        whole = F.fold(f, wide.shape[-2:], self.side, stride=self.stride) / count
        return psi, whole[..., pad : pad + x.shape[-2], pad : pad + x.shape[-1]]

    def __call__(self, x: Tensor) -> Tensor:
        return self.potential_and_prox(x)[1]

    def prox_and_prior(self, z: Tensor, strength=1.0, sigma=None) -> tuple[Tensor, Tensor]:
        """x = F(z) and R(x) = <z, x> - 1/2 |x|^2 - Psi(z), float64 (N,)."""
        if strength != 1.0 or sigma is not None:
            raise ValueError(f"tiles have strength 1 and no sigma, got {strength} and {sigma}")
        psi, x = self.potential_and_prox(z)
        terms = (z.double() - 0.5 * x.double()) * x.double()
        return x, terms.flatten(1).sum(1) - psi
