"""The element-wise steps of ops/epilogues.py, on products that are still to be computed."""

import torch
from torch import Tensor

from ...epilogues import Product, SquareEpilogues, TorchEpilogues
from .device import launchers
from .layouts import contiguous, nchw, nhwc
from .products import ForwardProduct, TransposedProduct


class TritonEpilogues(TorchEpilogues):
    """ops/epilogues.py's steps on products that are still to be computed; `heads` is torch's. `head_unit` is the last
    stage's, where there is no product."""

    def __init__(self, head_unit: Tensor | None = None):
        self._head_unit = head_unit

    def softplus(self, u: ForwardProduct, rest: None, b: Tensor | None, beta: float, storage: torch.dtype) -> Tensor:
        return u.finish("forward", beta, bias=b)

    def tangent(self, a: ForwardProduct, rest: None, z: Tensor, beta: float) -> Tensor:
        return a.finish("tangent", beta, z=z)

    def slope_mul(
        self, a: TransposedProduct | None, z: Tensor, w: Tensor | None, g: Tensor | None, beta: float
    ) -> Tensor:
        if a is not None:
            return a.finish("slope", beta, z, head=w, head_squared=g)
        return self._alone("slope", beta, z, head=w, head_squared=g)

    def adjoint(
        self, a: TransposedProduct | None, z: Tensor, e: Tensor, dz: Tensor, g: Tensor | None, beta: float
    ) -> Tensor:
        if a is not None:
            return a.finish("adjoint", beta, z, e, dz, head_squared=g)
        return self._alone("adjoint", beta, z, e=nhwc(e), dz=nhwc(dz), head_squared=g)

    def _alone(self, epilogue: str, beta: float, z: Tensor, head=None, head_squared=None, **operands) -> Tensor:
        z = nhwc(z)
        heads = {"head": contiguous(head), "head_squared": contiguous(head_squared), "head_unit": self._head_unit}
        return nchw(launchers().elementwise(torch.empty_like(z), None, epilogue, beta, z=z, **operands, **heads))


class TritonSquareEpilogues(SquareEpilogues, TritonEpilogues):
    """The steps of a first stage z = u^2 on such products; z, e and dz stay products of what is kept."""

    def softplus(self, u: ForwardProduct, rest: None, b: None, beta: float, storage: torch.dtype) -> Tensor:
        return u.finish("plain", beta)

    def tangent(self, a: ForwardProduct, rest: None, u: Tensor, beta: float) -> Tensor:
        return a.finish("plain", beta)

    def slope_mul(self, a: TransposedProduct | None, u: Tensor, w: Tensor | None, g: None, beta: float) -> Tensor:
        if a is not None:
            return a.finish("square_factor", beta, u, head=w)
        return self._alone("square_factor", beta, u, head=w)

    def adjoint(self, a: TransposedProduct | None, u: Tensor, e: Tensor, du: Tensor, g: None, beta: float) -> Tensor:
        if a is not None:
            return a.finish("square_adjoint", beta, u, e, du)
        return self._alone("square_adjoint", beta, u, e=nhwc(e), dz=nhwc(du))

    def z_of(self, u: Tensor) -> Product:
        return Product(u, u)

    def e_of(self, e: Tensor, u: Tensor) -> Product:
        return Product(e, u)

    def dz_of(self, du: Tensor, u: Tensor) -> Product:
        return Product(du, u, 2.0)
