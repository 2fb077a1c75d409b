"""The linear maps of a convolutional network for Triton's kernels.

Weights are rounded once per call into one buffer [k, k, C_in, C_out], which both directions read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ....algebra.parameters import Parameters
from ....algebra.resize import resize
from ....algebra.spec import Spec
from ...epilogues import Product, formed
from ...maps import ConvMaps
from . import device
from .choice import choice
from .device import launchers
from .layouts import nhwc, operand, relaid, wide_product
from .products import ForwardProduct, TransposedProduct
from .skips import GatheredSkipsAdjoint

# fp16 cores are stored times this power of two (correlate.py says why) and must stay below 65504 / 256.
FP16_SCALE = 256.0
FP16_SQUARE_GAIN = 1 / 256.0  # u^2 is formed times this: u in units of the noise reaches a few thousand


class TritonMaps(ConvMaps):
    """The maps of a convolutional network, as descriptions; gradients and the skips' adjoints are computed at once."""

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor, storage: torch.dtype, precision: str):
        self.spec = spec
        self.weights = parameters.stages
        self.storage, self.precision = storage, precision
        self.batch, self.image = len(x), tuple(x.shape[2:])
        self.sizes = spec.stage_sizes(*self.image)
        self.kernels = launchers()
        self.device, self.x = x.device, x
        scale = FP16_SCALE if precision == "fp16" else 1.0
        self.unscale = 1 / scale
        self.square_gain = FP16_SQUARE_GAIN if precision == "fp16" else 1.0
        self.cores = [relaid(w.core, storage, scale) for w in parameters.stages]  # [k, k, H_{l-1}, H_l]
        self.skips = [relaid(w.skip, storage, 1.0) for w in parameters.stages]  # [k, k, C, H_l]
        self.K = parameters.quadratic
        self.arch, self.processors = device.facts(x.device)
        self._units = None
        if precision == "fp16":
            w = parameters.stages
            self._units = self.kernels.units_of(
                [s.core for s in w], [s.head for s in w], [s.head_squared for s in w], scale, spec.square_first
            )

    def unit(self, l: int) -> Tensor | None:
        """E_l, in whose units e_l and delta_l are stored; None: as they are."""
        return None if self._units is None else self._units[0, l, 0]

    def head_unit(self, l: int) -> Tensor | None:
        """1 / E_l."""
        return None if self._units is None else self._units[2, l, 0]

    def scales(self, l: int) -> dict:
        """What brings W_l^T e_l and the heads of the stage below into that stage's units."""
        if self._units is None:
            return {"unscale": self.unscale}
        return {"product_unit": self._units[1, l, 0], "head_unit": self.head_unit(l - 1)}

    def projects(self, l: int) -> bool:
        """Whether the step that makes e_l can form A_l^T e_l in its stead: for the first stage, whose skip is small."""
        skip = self.skips[l]
        if l or skip is None or skip.shape[:3].numel() > self.kernels.launch.MOST_PROJECTED or self.whole(1):
            return False
        return not (self.by_library(1, "transposed") or self.by_library(1, "adjoint"))

    def by_library(self, l: int, sweep: str) -> bool:
        """Whether the library computes the product of stage l in a sweep: "forward", "transposed" or "adjoint"."""
        if self.cores[l] is None or self.whole(l):
            return False
        return choice(self.spec, l, self.sizes, self.x, self.precision, sweep)[0]

    def core(self, l: int) -> Tensor:
        """W_l in storage as the library takes it, a view [H_l, H_{l-1}, k, k]."""
        return self.cores[l].permute(3, 2, 0, 1)

    def library_skip(self, l: int, image: Tensor | None) -> Tensor | None:
        """A_l x_l by the library, [N, h, w, H_l] float32."""
        skip, stage = self.skips[l], self.spec.stages[l]
        if skip is None or image is None:
            return None
        x_l = resize(image, stage.resize)
        return nhwc(F.conv2d(x_l, skip.permute(3, 2, 0, 1).float(), None, stage.skip_stride, stage.skip_padding))

    def skip_inputs(self, x: Tensor) -> list[Tensor | None]:
        """The image itself: the kernels gather and resize."""
        return [x if stage.skip_kernel else None for stage in self.spec.stages]

    def stage(self, l: int, z: Tensor | Product | None, x_l: Tensor | None) -> tuple[ForwardProduct, None]:
        """(W_l z + A_l x_l, None)."""
        return ForwardProduct(self, l, z, x_l), None

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> TransposedProduct:
        """W_l^T e."""
        return TransposedProduct(self, l, e)

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor | Product]]) -> Tensor:
        """Sum of e (x) z over the pairs, the batch and the pixels, [H_l, H_{l-1}, k, k] float32."""
        if self.whole(l):
            pairs = [(nhwc(e).flatten(1), nhwc(formed(z, torch.float32)).flatten(1)) for e, z in pairs]
            total = sum(wide_product(z.T, e) for e, z in pairs).view(self.cores[l].shape)
            return total.permute(3, 2, 0, 1)
        operands = [operand(z) for _, z in pairs]
        gain = 1.0 if operands[0][1] is None else self.square_gain
        pairs = [(nhwc(e), t) for (e, _), (t, _, _) in zip(pairs, operands, strict=True)]
        total = self.kernels.gradient(
            pairs, self.core_geometry(l), self.config(l, pairs[0][0], role=f"gradient_{self.spec.stages[l].stride}"),
            self.precision, processors=self.processors,
            others=[other for _, other, _ in operands], gains=[factor * gain for *_, factor in operands],
        )  # fmt: skip
        return (total if gain == 1.0 else total.mul_(1 / gain)).permute(3, 2, 0, 1)

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor | Product, Tensor]]) -> Tensor:
        """Sum of e (x) x_l over the pairs, the batch and the pixels, [H_l, C, k, k] float32."""
        pairs = [(nhwc(formed(e)), x) for e, x in pairs]
        if self.whole(l):
            products = (self._whole_image(l, x).T @ e.flatten(1).float() for e, x in pairs)
            return sum(products).view(self.skips[l].shape).permute(3, 2, 0, 1)
        config = self.config(l, pairs[0][0], role="gradient_image")
        total = self.kernels.gradient(
            pairs, self.skip_geometry(l), config, self.precision, image=True, processors=self.processors
        )
        return total.permute(3, 2, 0, 1)

    def skips_adjoint(self, x: Tensor) -> "GatheredSkipsAdjoint":
        """An empty sum_l D_l^T A_l^T e_l, [N, C, H, W]."""
        return GatheredSkipsAdjoint(self, torch.zeros_like(x, memory_format=torch.contiguous_format))

    def empty(self, l: int) -> Tensor:
        """Room for a z_l, [N, h, w, H_l]."""
        return torch.empty(
            self.batch, *self.sizes[l], self.spec.stages[l].width, dtype=self.storage, device=self.device
        )

    def core_geometry(self, l: int):
        stage = self.spec.stages[l]
        return self.kernels.Geometry(stage.kernel, stage.stride, stage.padding)

    def skip_geometry(self, l: int):
        stage = self.spec.stages[l]
        return self.kernels.Geometry(stage.skip_kernel, stage.skip_stride, stage.skip_padding, stage.resize)

    def config(self, l: int, out: Tensor, transposed: bool = False, role: str | None = None):
        """Tile sizes for stage l; `out` is what the kernel covers, [N, h, w, C]."""
        stage = self.spec.stages[l]
        c_in, c_out = self.spec.stages[l - 1].width if l else 0, stage.width
        if role == "gradient_image" or role == "project":
            c_in = self.spec.channels * stage.skip_kernel**2
        elif role is None and self.cores[l] is None:
            role = "image"
        elif role is None:
            role = f"forward_{stage.stride}"
        if transposed:
            c_in, c_out = c_out, out.shape[-1]
        launch = self.kernels.launch
        key = launch.Key(role, c_in, c_out, self.precision, self.arch)
        chosen = launch.config(key, out.shape[0] * out.shape[1] * out.shape[2])
        width = -(-out.shape[2] // stage.stride) if transposed else out.shape[2]  # that of a parity class
        fits = launch.rows_fill(chosen.pixels, width) and self._tma_fits(l, chosen, transposed, role)
        if chosen.tma and not (fits and device.tma_is_allowed()):
            chosen = launch.config(key, out.shape[0] * out.shape[1] * out.shape[2], forbid_tma=True)
        return chosen

    def _tma_fits(self, l: int, chosen, transposed: bool, role: str) -> bool:
        stage, size = self.spec.stages[l], torch.finfo(self.storage).bits // 8
        fits = self.kernels.launch.tma_fits
        if role.startswith("gradient"):  # channels tile both operands
            return fits(stage.width, chosen.channels, size, 1, *self.sizes[l]) and fits(
                self.spec.stages[l - 1].width, chosen.depth, size, stage.stride, *self.sizes[l - 1]
            )
        if transposed:
            return fits(stage.width, chosen.depth, size, 1, *self.sizes[l])
        return fits(self.spec.stages[l - 1].width, chosen.depth, size, stage.stride, *self.sizes[l - 1])

    def whole(self, l: int) -> bool:
        """Whether core and skip cover their whole inputs, without padding."""
        stage = self.spec.stages[l]
        if l == 0 or stage.padding or stage.skip_padding or self.sizes[l - 1] != (stage.kernel,) * 2:
            return False
        return stage.skip_kernel == 0 or self.resized(stage.resize) == (stage.skip_kernel,) * 2

    def whole_products(self, l: int, z: Tensor | Product, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(W_l z, A_l x_l), float32 [N, 1, 1, H_l] each."""
        core, skip = self.cores[l], self.skips[l]
        product = wide_product(nhwc(formed(z, torch.float32)).flatten(1), core.view(-1, core.shape[-1])) * self.unscale
        rest = None if skip is None else self._whole_image(l, image) @ skip.view(-1, skip.shape[-1]).float()
        return product[:, None, None], rest if rest is None else rest[:, None, None]

    def _whole_image(self, l: int, image: Tensor) -> Tensor:
        """D_l x as rows in the order of the skip's weights, [N, k k C]."""
        return resize(image, self.spec.stages[l].resize).permute(0, 2, 3, 1).flatten(1)
