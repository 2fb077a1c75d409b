"""Contexts in which experts compete (algebra/spec.py): slopes of psi in what experts say, and their derivatives.

    y = G l,   zeta = 1/s log sum_c exp(s y_c + b_c),   psi = w (sum of zeta, and of what is shared),
    rho = softmax(s y + b),   lambda = w G^T rho

for maps l = log L of the soft maxima of experts in every context, G the averages of algebra/windows.py, sums and rho
with the weights w_p of a mirrored border. Along dl, with dy = G dl and dzeta = sum_c rho_c dy_c, lambda in the gradient
of sum p psi + <v, f> becomes

    mu = w G^T (p rho + s rho (dy - dzeta)).

What is found at positions is experts.py's, or csrc's (cpu/experts.py). What all contexts share, the largest u and the
mean of du, is taken off before: G gives it to all of them alike, so that of psi and <v, f> it changes the sums over
positions, where G^T w = w, and no slope.
"""

import torch
from torch import Tensor

from ...algebra.parameters import Parameters, StageParameters
from ...algebra.patches import Patches
from ...algebra.spec import Spec
from ...algebra.windows import Windows


class Contexts:
    """The contexts of a network at images of one size and their noise levels.

    Attributes
    ----------
    patches : Patches or None
        Where the border is mirrored.
    weights : Tensor, shape (h, w)
        w_p.
    at_sigma : Tensor, shape (N, F) or (1, 1)
        Shares of the knots of the noise level.
    odds : Tensor, shape (N or 1, C, M)
        V of every image.
    s, bias : Tensor, shape (N or 1, 1 or C, 1, 1)
        The sharpness of every image, and b.
    """

    averages = Windows  # a backend may have another

    def __init__(self, spec: Spec, stage: StageParameters, size: torch.Size, like: Tensor, features: Tensor | None):
        self._stage, first = stage, spec.stages[0]
        self.patches = Patches(size, first.skip_kernel, like, spec.spacing) if spec.is_mirrored else None
        rows, columns = (like.new_ones(side) for side in spec.stage_sizes(*size)[0])
        if self.patches is not None:
            rows, columns = self.patches.axis_weights
        self.weights = rows[:, None] * columns
        self._average = self.averages(spec.stages[2].window, rows, columns)
        self.at_sigma = like.new_ones(1, 1) if features is None else features
        self.odds = self._at_sigma(stage.odds)
        self.s = self._at_sigma(stage.sharpness).exp().view(-1, 1, 1, 1)
        bias = stage.bias if stage.noise is None else stage.bias + self._at_sigma(stage.noise.T)
        self.bias = bias.view(-1, len(stage.bias), 1, 1)

    def _at_sigma(self, levels: Tensor) -> Tensor:
        """An image's own, which shall not depend on how many others there are."""
        wide = _wide(levels)
        return torch.tensordot(self.at_sigma.to(wide), levels.to(wide), 1).to(levels.dtype)

    def value_slopes(self, logs: Tensor, shared: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """(their part of psi, (N,), unless `shared` (N,) is None; lambda, (N, C, h, w)); log L (N, C, h, w).

        Two such maps more are in memory at most: of 64 contexts each is as much as the image in 64 channels.
        """
        slopes, _, zeta, _ = self.compete(self._average(logs), None, None, with_zeta=shared is not None)
        value = None
        if shared is not None:
            value = self._stage.head * (_summed(zeta * self.weights) + shared)
        return value, self._average.adjoint(slopes)

    def second(
        self,
        logs: Tensor,
        dl: Tensor | None,
        p: Tensor | None,
        shared: Tensor,
        shared_change: Tensor | None,
        grads: Parameters | None,
    ) -> tuple[Tensor, Tensor]:
        """(lambda, mu), (N, C, h, w); the contexts' own gradients, but that of their odds, are added to `grads`."""
        y, dy = self._average(logs), None if dl is None else self._average(dl)
        slopes, changes, zeta, dzeta = self.compete(y if grads is None else y.clone(), dy, p, grads is not None)
        if grads is not None:
            own = grads.stages[2]
            self.add_bias(own, changes.sum((2, 3)) / self.s.flatten(1))
            sharper = _summed(changes * y)  # in log s, per image
            if dl is not None:
                own.head.add_((_summed(dzeta * self.weights) + shared_change).sum())
            if p is not None:
                counted = _summed(zeta * self.weights)
                own.head.add_(((counted + shared) * p).sum())
                sharper = sharper - p * self._stage.head * counted
            own.sharpness.add_(sharper.to(y.dtype) @ self.at_sigma.expand(len(y), -1))
        return self._average.adjoint(slopes), self._average.adjoint(changes)

    def compete(
        self, y: Tensor, dy: Tensor | None, p: Tensor | None, with_zeta: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(w rho, w (p rho + s rho (dy - dzeta)) or None, zeta or None, dzeta or None); y and dy are used up."""
        w = self._stage.head * self.weights
        v = y.mul_(self.s).add_(self.bias)
        largest = v.amax(1, keepdim=True)
        total = v.sub_(largest).exp_().sum(1, keepdim=True)
        slopes = v.mul_(w / total)
        zeta = total.log().add_(largest).div_(self.s) if with_zeta else None
        changes = dzeta = None
        if dy is not None:
            dzeta = (slopes * dy).sum(1, keepdim=True) / w
            changes = dy.sub_(dzeta).mul_(self.s).mul_(slopes)
        if p is not None:
            of_value = p.view(-1, 1, 1, 1) * slopes
            changes = of_value if changes is None else changes.add_(of_value)
        return slopes, changes, zeta, dzeta

    def add_odds(self, to: Tensor, of_images: Tensor) -> None:
        """Add the gradient of V at the knots, from that of every image, (N, C, M)."""
        to += torch.tensordot(self.at_sigma.expand(len(of_images), -1).T, of_images, 1)

    def add_bias(self, to: StageParameters, of_images: Tensor) -> None:
        """Add the gradient of b + B phi(sigma), from that of every image, (N, units)."""
        to.bias.add_(of_images.sum(0))
        if to.noise is not None:
            to.noise.add_(of_images.T @ self.at_sigma)


def _summed(t: Tensor) -> Tensor:
    """Sums of all but the first axis of (N, C, h, w): along the rows first, whatever the threads and the images."""
    return t.sum(3, dtype=_wide(t)).flatten(1).sum(1)


def _wide(like: Tensor) -> torch.dtype:
    """Double precision where there is one."""
    return torch.float64 if like.device.type == "cpu" else like.dtype
