"""W_l z + A_l x_l and W_l^T e, described and not yet computed: the step that follows computes both at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...epilogues import Product, formed
from ...maps import correlation_adjoint
from .choice import sweep_of
from .layouts import contiguous, nchw, nhwc, operand

if TYPE_CHECKING:
    from .maps import TritonMaps


@dataclass(frozen=True)
class ForwardProduct:
    """W_l z + A_l x_l, described and not yet computed."""

    maps: "TritonMaps"
    l: int
    z: Tensor | Product | None  # [N, H_{l-1}, h, w]
    image: Tensor | None  # [N, C, H, W]; the skip gathers from it

    def finish(self, epilogue: str, beta: float, z: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The element-wise step `epilogue` of it, [N, H_l, h, w] in storage."""
        maps, l = self.maps, self.l
        out = maps.empty(l)
        z = None if z is None else nhwc(z)
        bias = None if bias is None else bias.contiguous()
        if maps.whole(l):
            product, rest = maps.whole_products(l, self.z, self.image)
            maps.kernels.elementwise(out, product, epilogue, beta, rest=rest, bias=bias, z=z)
        elif maps.by_library(l, "forward"):
            stage = maps.spec.stages[l]
            product = F.conv2d(formed(self.z), maps.core(l), None, stage.stride, stage.padding)
            rest = maps.library_skip(l, self.image)
            maps.kernels.elementwise(out, nhwc(product), epilogue, beta, rest=rest, bias=bias, z=z)
        else:
            t, other, factor = (None, None, 1.0) if self.z is None else operand(self.z)
            gain = 1.0 if other is None else maps.square_gain
            maps.kernels.correlate(
                out, t, maps.cores[l], maps.core_geometry(l), epilogue, maps.config(l, out), maps.precision,
                image=self.image, skip=maps.skips[l], reading=maps.skip_geometry(l), bias=bias, z=z, beta=beta,
                unscale=maps.unscale / gain, other=other, gain=factor * gain,
            )  # fmt: skip
        return nchw(out)


@dataclass(frozen=True)
class TransposedProduct:
    """W_l^T e, described and not yet computed."""

    maps: "TritonMaps"
    l: int
    e: Tensor  # [N, H_l, h, w]

    def finish(
        self, epilogue: str, beta: float, z: Tensor, e=None, dz=None, head=None, head_squared=None, project=False
    ) -> Tensor:
        """The element-wise step `epilogue` of it, like z = z_{l-1}; e and dz are e_{l-1} and dz_{l-1}. To `project`
        it: A_{l-1}^T times that in its stead, per pixel and in parts, [parts, N, h, w, k k C] float32."""
        maps, l = self.maps, self.l
        z, t = nhwc(z), nhwc(self.e)
        out = z if project else torch.empty_like(z)  # a projection writes nothing there
        e, dz = (None if o is None else nhwc(o) for o in (e, dz))
        weight, geometry = maps.cores[l], maps.core_geometry(l)
        head, head_squared = contiguous(head), contiguous(head_squared)
        if maps.by_library(l, sweep_of(epilogue)):
            product = correlation_adjoint(self.e, nchw(z), maps.core(l), geometry.stride, geometry.padding)
            steps = {"z": z, "e": e, "dz": dz, "head": head, "head_squared": head_squared}
            return nchw(maps.kernels.elementwise(out, nhwc(product), epilogue, beta, **steps))
        views = [out, z, e, dz]
        if maps.whole(l):  # every output pixel has a weight of its own: one pixel with k k H_{l-1} channels
            views = [None if o is None else o.view(len(o), 1, 1, o.shape[1:].numel()) for o in views]
            weight, geometry = weight.view(-1, weight.shape[-1]), maps.kernels.Geometry(kernel=1)
        role = f"{sweep_of(epilogue)}_{geometry.stride}"
        result = maps.kernels.correlate(
            views[0], t, weight, geometry, epilogue, maps.config(l, views[0], True, role), maps.precision, True,
            z=views[1], e=views[2], dz=views[3], head=head, head_squared=head_squared, beta=beta,
            **maps.scales(l), projection=maps.skips[l - 1] if project else None,
            projected_unit=maps.unit(l - 1) if project else None,
        )  # fmt: skip
        return result if project else nchw(out)
