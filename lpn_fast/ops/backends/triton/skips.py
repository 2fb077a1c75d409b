"""What the skips send back to the image: per pixel products, gathered into f."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...epilogues import Product
from .layouts import operand
from .products import TransposedProduct

if TYPE_CHECKING:
    from .maps import TritonMaps


class GatheredSkipsAdjoint:
    """sum_l D_l^T A_l^T e_l: per stage the products A_l^T e_l of each pixel, then a gather that adds them to f."""

    def __init__(self, maps: "TritonMaps", total: Tensor):
        self._maps, self._total = maps, total

    def add(self, l: int, e: Tensor | Product) -> None:
        """Add stage l."""
        maps, skip, reading = self._maps, self._maps.skips[l], self._maps.skip_geometry(l)
        if skip is None:
            return
        e, other, factor = operand(e)
        products = torch.empty(*e.shape[:3], skip.shape[:3].numel(), dtype=torch.float32, device=e.device)
        maps.kernels.correlate(
            products, e, skip, maps.kernels.Geometry(kernel=1), "plain",
            maps.config(l, products, transposed=True, role="project"), maps.precision, True,
            product_unit=maps.unit(l), other=other, gain=factor,
        )  # fmt: skip
        if maps.whole(l):  # the products are the image D_l^T is to be applied to
            products = products.view(e.shape[0], *skip.shape[:3])
            reading = maps.kernels.Geometry(kernel=1, resize=reading.resize)
        maps.kernels.assemble(self._total, products, reading)

    def add_product(
        self, l: int, a: TransposedProduct, epilogue: str, z: Tensor, head, head_squared, e=None, dz=None
    ) -> None:
        """Add stage l, whose e or delta is the step `epilogue` of the product a, without storing it."""
        maps = self._maps
        if maps.spec.square_first and l == 0:
            epilogue = f"square_{epilogue}"
        products = a.finish(epilogue, maps.spec.beta, z, e, dz, head, head_squared, project=True)
        maps.kernels.assemble(self._total, products, maps.skip_geometry(l))

    def result(self) -> Tensor:
        """The sum, like x."""
        return self._total
