"""Experts that compete in contexts (contexts.py), by torch's operations: psi, f, Hessian products, gradients.

    c = K x,   z = c^2,   u = W z + b,   L = V exp(u),   l = log L,      lambda: contexts.py
    e = exp(u) V^T (lambda / L),   f = K^T (2 c (W^T e + h)) + alpha x

Along v, with dc = K v, dz = 2 c dc, du = W dz, dl = V (exp(u) du) / L, the gradient of sum p psi + <v, f> has of each
expert

    delta = exp(u) V^T ((mu - lambda dl) / L) + e du,

which goes down as e does: delta' = W^T delta + p h,  K^T (2 c delta' + 2 dc (W^T e + h)) + alpha (v + p x). With a
mirrored border h and all that is linear in it carry w_p, as lambda and mu do. Contexts see a neighbourhood, so that
images go through in two passes, whose blocks of rows keep exp(u) in the caches; it is computed anew in the second where
all of it would be more than KEPT_BYTES.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...algebra.parameters import parameter_count, unpack
from ...algebra.spec import Spec
from .contexts import Contexts
from .pointwise import affine, bias_of

POSITIONS = 2048  # of a block of rows: what is computed of so many stays in a CPU's caches
LONGER = 32  # blocks of devices, which want long kernels
KEPT_BYTES = 1 << 28  # of exp(u); what is kept beside it is as much again, or three times that with directions
SMALLEST = -60.0  # log of a share that counts; denormal numbers would cost a hundred times as much


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W), P (P,), noise features (N, F) or None."""
    parts = [each.value_prox(with_value) for each in _some_images(spec, x, packed, features)]
    if not parts:
        return x.new_zeros(0) if with_value else None, x.clone()
    return torch.cat([psi for psi, _ in parts]) if with_value else None, torch.cat([f for _, f in parts])


def hvp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor) -> Tensor:
    """H v, like x; v (N, C, H, W)."""
    return _second(spec, x, packed, features, None, v, None)


def vjp(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, p: Tensor | None, v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient of sum p psi + <v, f> in x and P; p (N,), v (N, C, H, W), either may be None."""
    gradient = x.new_zeros(parameter_count(spec))
    return _second(spec, x, packed, features, p, v, gradient), gradient


def _second(spec, x, packed, features, p, v, gradient: Tensor | None) -> Tensor:
    """H v + p f, like x; `gradient` of P is added to."""
    gx, first = torch.empty_like(x, memory_format=torch.contiguous_format), 0
    for each in _some_images(spec, x, packed, features):
        some = slice(first, first := first + len(each.x))
        gx[some] = each.second(None if p is None else p[some], None if v is None else v[some], gradient)
    return gx


def _some_images(spec: Spec, x, packed, features) -> "Iterator[_Images]":
    """Small images go through many at a time."""
    height, width = spec.stage_sizes(*x.shape[2:])[0]
    images = max(1, _positions(x) // (height * width))
    for first in range(0, len(x), images):
        some = slice(first, first + images)
        yield _Images(spec, x[some], packed, None if features is None else features[some])


def _positions(x: Tensor) -> int:
    return POSITIONS if x.device.type == "cpu" else LONGER * POSITIONS


@dataclass
class _Block:
    """What the first pass finds out about some rows of positions, all but patches as [N, positions, units]."""

    rows: slice
    patches: Tensor  # [N, C k^2, positions]
    c: Tensor
    largest: Tensor  # u, [N, positions, 1]
    powers: Tensor  # exp(u - largest)
    sums: Tensor  # L of these
    directions: Tensor | None = None  # patches of v
    dc: Tensor | None = None
    mean: Tensor | None = None  # du, [N, positions, 1]
    du: Tensor | None = None  # du - mean
    dl: Tensor | None = None  # of these


class _Images:
    """A network at some images x (N, C, H, W)."""

    def __init__(self, spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None):
        self.spec, self.x, self.features = spec, x, features
        self.first, self.experts, contexts = unpack(spec, packed).stages
        self.k = spec.stages[0].skip_kernel
        self.contexts = Contexts(spec, contexts, x.shape[2:], x, features)
        self.patches, self.weights, self.odds = self.contexts.patches, self.contexts.weights, self.contexts.odds
        self.skip, self.core = self.first.skip.flatten(1), self.experts.core.flatten(1)
        height, width = self.weights.shape
        step = max(1, _positions(x) // (len(x) * width))
        self.blocks = [slice(row, min(row + step, height)) for row in range(0, height, step)]
        self.keeps = x.element_size() * len(x) * height * width * len(self.core) <= KEPT_BYTES

    def value_prox(self, with_value: bool) -> tuple[Tensor | None, Tensor]:
        """(psi (N,) or None, f)."""
        at = self._continued(self.x)
        sums, _, blocks = self._upwards(at, None)
        psi, slopes = self.contexts.value_slopes(sums.log(), self.shared if with_value else None)
        if psi is not None:
            psi = psi.to(at.dtype) + 0.5 * self.spec.alpha * self.x.square().sum((1, 2, 3))
        out = torch.zeros_like(at)
        for block in blocks:
            weights = self._weights_of(block)
            if with_value and self.first.head is not None:
                psi = psi + (block.c.square() * weights).sum(1) @ self.first.head
            e = block.powers * ((_of(slopes, block) / block.sums) @ self.odds)
            self._put_back(out, block, block.c.mul(self._to_energies(e, weights)).mul_(2))
        return psi, self._folded(out).add_(self.x, alpha=self.spec.alpha)

    def second(self, p: Tensor | None, v: Tensor | None, gradient: Tensor | None) -> Tensor:
        """H v + p f; p (N,), v like x, either may be None. The `gradient` of P is added to."""
        at, v_at = self._continued(self.x), None if v is None else self._continued(v)
        grads = None if gradient is None else unpack(self.spec, gradient)
        sums, dl, blocks = self._upwards(at, v_at)
        slopes, changes = self.contexts.second(sums.log(), dl, p, self.shared, self.shared_change, grads)
        out = torch.zeros_like(at)
        p = None if p is None else p.view(-1, 1, 1)
        for block in blocks:
            weights = self._weights_of(block)
            change = _of(changes, block)
            if v is None:
                e = below = None
            else:
                slope = _of(slopes, block) / block.sums
                change = change - _of(slopes, block) * block.dl
                e = block.powers * (slope @ self.odds)
                below = self._to_energies(e, weights)
            change = change / block.sums
            delta = block.powers * (change @ self.odds)
            if e is not None:
                delta = delta.addcmul_(e, block.du)
            under = delta @ self.core
            if p is not None and self.first.head is not None:
                under = under + p * weights * self.first.head
            back = block.c.mul(under)
            if v is not None:
                back = back.addcmul_(block.dc, below)
            back = back.mul_(2)
            self._put_back(out, block, back)
            if grads is None:
                continue
            self._add(grads.stages[0].skip, back, block.patches.mT)
            self._add(grads.stages[1].core, delta, block.c.square())
            self.contexts.add_odds(grads.stages[2].odds, change.mT @ block.powers)
            if v is not None:
                self._add(grads.stages[0].skip, block.c.mul(below).mul_(2), block.directions.mT)
                self._add(grads.stages[1].core, e, (block.c * block.dc).mul_(2))
                self.contexts.add_odds(grads.stages[2].odds, slope.mT @ (block.powers * block.du))
            self.contexts.add_bias(grads.stages[1], delta.sum(1))
            if self.first.head is not None:
                if p is not None:
                    grads.stages[0].head.add_((block.c.square() * p * weights).sum((0, 1)))
                if v is not None:
                    grads.stages[0].head.add_((block.c * block.dc * weights).sum((0, 1)), alpha=2)
        gx = self._folded(out)
        if v is not None:
            gx = gx.add_(v, alpha=self.spec.alpha)
        return gx if p is None else gx.add_(p[..., None] * self.x, alpha=self.spec.alpha)

    # ---- positions

    def _upwards(self, at: Tensor, v_at: Tensor | None) -> tuple[Tensor, Tensor | None, "Iterator[_Block]"]:
        """(L, its logarithm's derivative along v, both [N, C, h, w]; the blocks, kept or once more).

        Sets what is shared, the largest u and the mean of du, summed over positions with w_p: [N] each.
        """
        shape = len(at), *self.weights.shape, self.odds.shape[1]
        sums = at.new_empty(shape)
        dl = None if v_at is None else torch.empty_like(sums)
        kept = []
        self.shared, self.shared_change = at.new_zeros(len(at)), at.new_zeros(len(at))
        for rows in self.blocks:
            block = self._block(rows, at, v_at)
            weights = self._weights_of(block)
            sums[:, rows] = block.sums.view_as(sums[:, rows])
            self.shared += (block.largest * weights).sum((1, 2))
            if dl is not None:
                dl[:, rows] = block.dl.view_as(dl[:, rows])
                self.shared_change += (block.mean * weights).sum((1, 2))
            if self.keeps:
                kept.append(block)
        again = iter(kept) if self.keeps else (self._block(rows, at, v_at) for rows in self.blocks)
        return sums.movedim(3, 1), None if dl is None else dl.movedim(3, 1), again

    def _block(self, rows: slice, at: Tensor, v_at: Tensor | None) -> _Block:
        patches = self._unfolded(at, rows)
        c = patches.mT @ self.skip.T
        u = affine(c * c, self.core, bias_of(self.experts, self.features))
        largest = u.amax(2, keepdim=True)
        powers = u.sub_(largest).clamp_(min=SMALLEST).exp_()
        # an expert without odds in any context leaves nothing where it is alone
        sums = (powers @ self.odds.mT).clamp_(min=torch.finfo(u.dtype).tiny)
        block = _Block(rows, patches, c, largest, powers, sums)
        if v_at is not None:
            block.directions = self._unfolded(v_at, rows)
            block.dc = block.directions.mT @ self.skip.T
            du = (c * block.dc).mul_(2) @ self.core.T
            block.mean = (powers * du).sum(2, keepdim=True) / powers.sum(2, keepdim=True)
            block.du = du.sub_(block.mean)
            block.dl = (powers * block.du) @ self.odds.mT / sums
        return block

    def _to_energies(self, e: Tensor, weights: Tensor) -> Tensor:
        """W^T e + w_p h."""
        below = e @ self.core
        return below if self.first.head is None else below.addcmul_(weights, self.first.head)

    def _weights_of(self, block: _Block) -> Tensor:
        """w_p, [positions, 1]."""
        return self.weights[block.rows].reshape(-1, 1)

    def _unfolded(self, at: Tensor, rows: slice) -> Tensor:
        return F.unfold(self._under(at, rows), self.k, stride=self.spec.spacing)

    def _put_back(self, out: Tensor, block: _Block, e: Tensor) -> None:
        """Add K^T e."""
        part = self._under(out, block.rows)
        part += F.fold(self.skip.T @ e.mT, part.shape[2:], self.k, stride=self.spec.spacing)

    def _under(self, at: Tensor, rows: slice) -> Tensor:
        """What the patches of rows of positions lie on."""
        spacing = self.spec.spacing
        return at[:, :, spacing * rows.start : spacing * (rows.stop - 1) + self.k]

    def _continued(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.k - 1,) * 4) if self.patches is None else self.patches.extended(x)

    def _folded(self, out: Tensor) -> Tensor:
        """The adjoint of `_continued`."""
        if self.patches is not None:
            return self.patches.folded(out)
        height, width = self.x.shape[2:]
        return out[:, :, self.k - 1 : self.k - 1 + height, self.k - 1 : self.k - 1 + width].contiguous()

    # ---- gradients

    @staticmethod
    def _add(to: Tensor, e: Tensor, z: Tensor) -> None:
        """Add sum over images and positions of e (x) z."""
        to += (e.mT @ z).sum(0).view_as(to)


def _of(t: Tensor, block: _Block) -> Tensor:
    """Maps [N, C, h, w] at the positions of a block, [N, positions, C]."""
    return t.movedim(1, 3)[:, block.rows].flatten(1, 2)
