"""Triton kernels for convolutional networks: each stage of each sweep is one kernel (lpn_fast/kernels/triton).

The sweeps (ops/sweeps.py) ask the maps for a product and hand it to an element-wise step. Here the maps only
describe the product, and the step computes both at once. Stages run in one of three ways:

    fused    an implicit GEMM with the step inside; covers every kernel, stride, padding, resize and width
    library  the library's convolution, then the step, where that was measured to be faster (kernels/triton/choices.py)
    whole    a core that covers its whole input (the published last stage) is a matrix product with few rows and a very
             long sum, which a library splits better: library product, then the step. Its transpose is fused again.

Weights are rounded once per call into one buffer [k, k, C_in, C_out], which both directions read. x, v, f, psi, P and
biases stay float32; the image enters as two halves in 16-bit precisions, so that only weights and activations round.

What a squared first stage hands on, z = u^2, dz = 2 u du and e, is never stored: kernels form it from tiles of what
is kept, in float32, and in half precision times a power of two that keeps u^2 in range.
"""

import functools
import importlib.util
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...algebra.parameters import Parameters
from ...algebra.resize import resize
from ...algebra.spec import Spec
from ...kernels.triton.interpreter import interpreted, mend
from .. import registry
from ..epilogues import Product, SquareEpilogues, TorchEpilogues, formed
from ..maps import ConvMaps, correlation_adjoint
from ..precision import storage
from ..sweeps import Sweeps
from .torch import SweepsBackend

# fp16 cores are stored times this power of two (correlate.py says why) and must stay below 65504 / 256.
FP16_SCALE = 256.0
FP16_SQUARE_GAIN = 1 / 256.0  # u^2 is formed times this: u in units of the noise reaches a few thousand
LEAST_CAPABILITY = (8, 0)  # bf16 and TF32 products, asynchronous copies


def register() -> None:
    """Offer this backend, or record why it cannot run. Triton itself is imported at the first call."""
    if importlib.util.find_spec("triton") is None:
        registry.register_absent("triton", "Triton is not installed; torch brings it on Linux with CUDA")
    else:
        registry.register(TritonBackend(), reservation)


class TritonBackend(SweepsBackend):
    """Convolutional networks on CUDA tensors; on CPU tensors under Triton's interpreter (TRITON_INTERPRET=1)."""

    name = "triton"

    def supports(self, spec: Spec, x: Tensor, precision: str) -> str | None:
        if spec.is_dense:
            return "dense networks are not covered, these kernels are convolutions"
        if spec.ndim == 3:
            return "volumes are not covered"
        if spec.stages[-1].competing:
            return "networks whose last units compete are not covered"
        if x.dtype != torch.float32:
            return f"x is {x.dtype}, this backend takes float32 (and rounds inside, as the precision says)"
        if x.device.type == "cuda":
            capability = torch.cuda.get_device_capability(x.device)
            if capability < LEAST_CAPABILITY:
                return f"the device has compute capability {capability}, {LEAST_CAPABILITY} is needed"
        elif not interpreted():
            return f"x is on {x.device}, this backend runs on CUDA"
        elif precision == "bf16":
            return "Triton's interpreter does not round to bfloat16 correctly"
        return None

    def vjp(self, spec, x, packed, features, p: Tensor | None, v: Tensor | None, tape: list[Tensor], precision):
        if precision != "fp16":
            return super().vjp(spec, x, packed, features, p, v, tape, precision)
        # Cotangents of a mean are tiny and the result is linear in them: bring the largest to [1, 2), exactly.
        scale = _power_of_two([t for t in (p, v) if t is not None])
        p, v = (None if t is None else t * scale for t in (p, v))
        gx, gradient = super().vjp(spec, x, packed, features, p, v, tape, precision)
        return gx.div_(scale), gradient.div_(scale)

    def hvp(self, spec, x, packed, features, v: Tensor, tape: list[Tensor], precision):
        if precision != "fp16":
            return super().hvp(spec, x, packed, features, v, tape, precision)
        scale = _power_of_two([v])
        return super().hvp(spec, x, packed, features, v * scale, tape, precision).div_(scale)

    def details(self, spec: Spec, x: Tensor, precision: str) -> list[str]:
        """Who computes the products of each stage, and why; for explain."""
        sizes, lines = spec.stage_sizes(*x.shape[2:]), []
        for l in range(1, len(spec.stages)):
            chosen = {}
            for what, role in (("forward", "forward"), ("back", "transposed"), ("second order", "adjoint")):
                library, why = _choice(spec, l, sizes, x, precision, role)
                chosen.setdefault(f"{'library' if library else 'ours'}, {why}", []).append(what)
            lines.append(f"stage {l}: " + "; ".join(f"{', '.join(names)}: {who}" for who, names in chosen.items()))
        return lines

    def _sweeps(self, spec: Spec, x, packed, features, precision: str) -> Sweeps:
        maps_for = functools.partial(TritonMaps, precision=precision)
        sweeps = Sweeps(spec, x, packed, features, FusedEpilogues(), storage(precision, x.dtype), maps_for)
        last = len(spec.stages) - 1
        sweeps.epilogues = [FusedEpilogues(sweeps.maps.head_unit(last))] * len(spec.stages)
        if spec.square_first:
            sweeps.epilogues[0] = FusedSquareEpilogues(sweeps.maps.head_unit(last))
        return sweeps


def reservation(spec: Spec, x: Tensor, precision: str) -> str | None:
    """Why "auto" passes this backend over although it could run: no measurement says that it is faster."""
    if x.device.type != "cuda":
        return "runs under the interpreter here; force it with LPN_FAST_BACKEND=triton"
    from ...kernels.triton import admitted

    width = max(stage.width for stage in spec.stages)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return admitted.reservation(torch.cuda.get_device_name(x.device), precision, width, pixels)


@dataclass(frozen=True)
class Forward:
    """W_l z + A_l x_l, described and not yet computed."""

    maps: "TritonMaps"
    l: int
    z: Tensor | Product | None  # [N, H_{l-1}, h, w]
    image: Tensor | None  # [N, C, H, W]; the skip gathers from it

    def finish(self, epilogue: str, beta: float, z: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The element-wise step `epilogue` of it, [N, H_l, h, w] in storage."""
        maps, l = self.maps, self.l
        out = maps.empty(l)
        z = None if z is None else _nhwc(z)
        bias = None if bias is None else bias.contiguous()
        if maps.whole(l):
            product, rest = maps.whole_products(l, self.z, self.image)
            maps.kernels.elementwise(out, product, epilogue, beta, rest=rest, bias=bias, z=z)
        elif maps.by_library(l, "forward"):
            stage = maps.spec.stages[l]
            product = F.conv2d(formed(self.z), maps.core(l), None, stage.stride, stage.padding)
            rest = maps.library_skip(l, self.image)
            maps.kernels.elementwise(out, _nhwc(product), epilogue, beta, rest=rest, bias=bias, z=z)
        else:
            t, other, factor = (None, None, 1.0) if self.z is None else _operand(self.z)
            gain = 1.0 if other is None else maps.square_gain
            maps.kernels.correlate(
                out, t, maps.cores[l], maps.core_geometry(l), epilogue, maps.config(l, out), maps.precision,
                image=self.image, skip=maps.skips[l], reading=maps.skip_geometry(l), bias=bias, z=z, beta=beta,
                unscale=maps.unscale / gain, other=other, gain=factor * gain,
            )  # fmt: skip
        return _nchw(out)


@dataclass(frozen=True)
class Transposed:
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
        z, t = _nhwc(z), _nhwc(self.e)
        out = z if project else torch.empty_like(z)  # a projection writes nothing there
        e, dz = (None if o is None else _nhwc(o) for o in (e, dz))
        weight, geometry = maps.cores[l], maps.core_geometry(l)
        head, head_squared = _contiguous(head), _contiguous(head_squared)
        if maps.by_library(l, _sweep(epilogue)):
            product = correlation_adjoint(self.e, _nchw(z), maps.core(l), geometry.stride, geometry.padding)
            steps = {"z": z, "e": e, "dz": dz, "head": head, "head_squared": head_squared}
            return _nchw(maps.kernels.elementwise(out, _nhwc(product), epilogue, beta, **steps))
        views = [out, z, e, dz]
        if maps.whole(l):  # every output pixel has a weight of its own: one pixel with k k H_{l-1} channels
            views = [None if o is None else o.view(len(o), 1, 1, o.shape[1:].numel()) for o in views]
            weight, geometry = weight.view(-1, weight.shape[-1]), maps.kernels.Geometry(kernel=1)
        role = f"{_sweep(epilogue)}_{geometry.stride}"
        result = maps.kernels.correlate(
            views[0], t, weight, geometry, epilogue, maps.config(l, views[0], True, role), maps.precision, True,
            z=views[1], e=views[2], dz=views[3], head=head, head_squared=head_squared, beta=beta,
            **maps.scales(l), projection=maps.skips[l - 1] if project else None,
            projected_unit=maps.unit(l - 1) if project else None,
        )  # fmt: skip
        return result if project else _nchw(out)


class FusedEpilogues(TorchEpilogues):
    """ops/epilogues.py's steps on products that are still to be computed; `heads` is torch's. `head_unit` is the last
    stage's, where there is no product."""

    def __init__(self, head_unit: Tensor | None = None):
        self._head_unit = head_unit

    def softplus(self, u: Forward, rest: None, b: Tensor | None, beta: float, storage: torch.dtype) -> Tensor:
        return u.finish("forward", beta, bias=b)

    def tangent(self, a: Forward, rest: None, z: Tensor, beta: float) -> Tensor:
        return a.finish("tangent", beta, z=z)

    def slope_mul(self, a: Transposed | None, z: Tensor, w: Tensor | None, g: Tensor | None, beta: float) -> Tensor:
        if a is not None:
            return a.finish("slope", beta, z, head=w, head_squared=g)
        return self._alone("slope", beta, z, head=w, head_squared=g)

    def adjoint(self, a: Transposed | None, z: Tensor, e: Tensor, dz: Tensor, g: Tensor | None, beta: float) -> Tensor:
        if a is not None:
            return a.finish("adjoint", beta, z, e, dz, head_squared=g)
        return self._alone("adjoint", beta, z, e=_nhwc(e), dz=_nhwc(dz), head_squared=g)

    def _alone(self, epilogue: str, beta: float, z: Tensor, head=None, head_squared=None, **operands) -> Tensor:
        z = _nhwc(z)
        heads = {"head": _contiguous(head), "head_squared": _contiguous(head_squared), "head_unit": self._head_unit}
        return _nchw(_kernels().elementwise(torch.empty_like(z), None, epilogue, beta, z=z, **operands, **heads))


class FusedSquareEpilogues(SquareEpilogues, FusedEpilogues):
    """The steps of a first stage z = u^2 on such products; z, e and dz stay products of what is kept."""

    def softplus(self, u: Forward, rest: None, b: None, beta: float, storage: torch.dtype) -> Tensor:
        return u.finish("plain", beta)

    def tangent(self, a: Forward, rest: None, u: Tensor, beta: float) -> Tensor:
        return a.finish("plain", beta)

    def slope_mul(self, a: Transposed | None, u: Tensor, w: Tensor | None, g: None, beta: float) -> Tensor:
        if a is not None:
            return a.finish("square_factor", beta, u, head=w)
        return self._alone("square_factor", beta, u, head=w)

    def adjoint(self, a: Transposed | None, u: Tensor, e: Tensor, du: Tensor, g: None, beta: float) -> Tensor:
        if a is not None:
            return a.finish("square_adjoint", beta, u, e, du)
        return self._alone("square_adjoint", beta, u, e=_nhwc(e), dz=_nhwc(du))

    def z_of(self, u: Tensor) -> Product:
        return Product(u, u)

    def e_of(self, e: Tensor, u: Tensor) -> Product:
        return Product(e, u)

    def dz_of(self, du: Tensor, u: Tensor) -> Product:
        return Product(du, u, 2.0)


class TritonMaps(ConvMaps):
    """The maps of a convolutional network, as descriptions; gradients and the skips' adjoints are computed at once."""

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor, storage: torch.dtype, precision: str):
        self.spec = spec
        self.weights = parameters.stages
        self.storage, self.precision = storage, precision
        self.batch, self.image = len(x), tuple(x.shape[2:])
        self.sizes = spec.stage_sizes(*self.image)
        self.kernels = _kernels()
        self.device, self.x = x.device, x
        scale = FP16_SCALE if precision == "fp16" else 1.0
        self.unscale = 1 / scale
        self.square_gain = FP16_SQUARE_GAIN if precision == "fp16" else 1.0
        self.cores = [_relaid(w.core, storage, scale) for w in parameters.stages]  # [k, k, H_{l-1}, H_l]
        self.skips = [_relaid(w.skip, storage, 1.0) for w in parameters.stages]  # [k, k, C, H_l]
        self.K = parameters.quadratic
        self.arch, self.processors = _device_facts(x.device)
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
        return _choice(self.spec, l, self.sizes, self.x, self.precision, sweep)[0]

    def core(self, l: int) -> Tensor:
        """W_l in storage as the library takes it, a view [H_l, H_{l-1}, k, k]."""
        return self.cores[l].permute(3, 2, 0, 1)

    def library_skip(self, l: int, image: Tensor | None) -> Tensor | None:
        """A_l x_l by the library, [N, h, w, H_l] float32."""
        skip, stage = self.skips[l], self.spec.stages[l]
        if skip is None or image is None:
            return None
        x_l = resize(image, stage.resize)
        return _nhwc(F.conv2d(x_l, skip.permute(3, 2, 0, 1).float(), None, stage.skip_stride, stage.skip_padding))

    def skip_inputs(self, x: Tensor) -> list[Tensor | None]:
        """The image itself: the kernels gather and resize."""
        return [x if stage.skip_kernel else None for stage in self.spec.stages]

    def stage(self, l: int, z: Tensor | Product | None, x_l: Tensor | None) -> tuple[Forward, None]:
        """(W_l z + A_l x_l, None)."""
        return Forward(self, l, z, x_l), None

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Transposed:
        """W_l^T e."""
        return Transposed(self, l, e)

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor | Product]]) -> Tensor:
        """Sum of e (x) z over the pairs, the batch and the pixels, [H_l, H_{l-1}, k, k] float32."""
        if self.whole(l):
            pairs = [(_nhwc(e).flatten(1), _nhwc(formed(z, torch.float32)).flatten(1)) for e, z in pairs]
            total = sum(_wide_product(z.T, e) for e, z in pairs).view(self.cores[l].shape)
            return total.permute(3, 2, 0, 1)
        operands = [_operand(z) for _, z in pairs]
        gain = 1.0 if operands[0][1] is None else self.square_gain
        pairs = [(_nhwc(e), t) for (e, _), (t, _, _) in zip(pairs, operands, strict=True)]
        total = self.kernels.gradient(
            pairs, self.core_geometry(l), self.config(l, pairs[0][0], role=f"gradient_{self.spec.stages[l].stride}"),
            self.precision, processors=self.processors,
            others=[other for _, other, _ in operands], gains=[factor * gain for *_, factor in operands],
        )  # fmt: skip
        return (total if gain == 1.0 else total.mul_(1 / gain)).permute(3, 2, 0, 1)

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor | Product, Tensor]]) -> Tensor:
        """Sum of e (x) x_l over the pairs, the batch and the pixels, [H_l, C, k, k] float32."""
        pairs = [(_nhwc(formed(e)), x) for e, x in pairs]
        if self.whole(l):
            products = (self._whole_image(l, x).T @ e.flatten(1).float() for e, x in pairs)
            return sum(products).view(self.skips[l].shape).permute(3, 2, 0, 1)
        config = self.config(l, pairs[0][0], role="gradient_image")
        total = self.kernels.gradient(
            pairs, self.skip_geometry(l), config, self.precision, image=True, processors=self.processors
        )
        return total.permute(3, 2, 0, 1)

    def skips_adjoint(self, x: Tensor) -> "SkipsAdjoint":
        """An empty sum_l D_l^T A_l^T e_l, [N, C, H, W]."""
        return SkipsAdjoint(self, torch.zeros_like(x, memory_format=torch.contiguous_format))

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
        if chosen.tma and not self._tma_fits(l, chosen, transposed, role):
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
        product = (
            _wide_product(_nhwc(formed(z, torch.float32)).flatten(1), core.view(-1, core.shape[-1])) * self.unscale
        )
        rest = None if skip is None else self._whole_image(l, image) @ skip.view(-1, skip.shape[-1]).float()
        return product[:, None, None], rest if rest is None else rest[:, None, None]

    def _whole_image(self, l: int, image: Tensor) -> Tensor:
        """D_l x as rows in the order of the skip's weights, [N, k k C]."""
        return resize(image, self.spec.stages[l].resize).permute(0, 2, 3, 1).flatten(1)


class SkipsAdjoint:
    """sum_l D_l^T A_l^T e_l: per stage the products A_l^T e_l of each pixel, then a gather that adds them to f."""

    def __init__(self, maps: TritonMaps, total: Tensor):
        self._maps, self._total = maps, total

    def add(self, l: int, e: Tensor | Product) -> None:
        """Add stage l."""
        maps, skip, reading = self._maps, self._maps.skips[l], self._maps.skip_geometry(l)
        if skip is None:
            return
        e, other, factor = _operand(e)
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

    def add_product(self, l: int, a: Transposed, epilogue: str, z: Tensor, head, head_squared, e=None, dz=None) -> None:
        """Add stage l, whose e or delta is the step `epilogue` of the product a, without storing it."""
        maps = self._maps
        if maps.spec.square_first and l == 0:
            epilogue = f"square_{epilogue}"
        products = a.finish(epilogue, maps.spec.beta, z, e, dz, head, head_squared, project=True)
        maps.kernels.assemble(self._total, products, maps.skip_geometry(l))

    def result(self) -> Tensor:
        """The sum, like x."""
        return self._total


def _choice(spec: Spec, l: int, sizes, x: Tensor, precision: str, sweep: str) -> tuple[bool, str]:
    """(whether the library computes the product of stage l, why) in a sweep, for inputs like x."""
    from ...kernels.triton import choices, launch

    stage, below = spec.stages[l], spec.stages[l - 1]
    covered, channels = sizes[l], (below.width, stage.width)
    if sweep != "forward":
        covered, channels = sizes[l - 1], channels[::-1]
    key = launch.Key(f"{sweep}_{stage.stride}", *channels, precision, 0)
    return choices.choice(_device_name(x.device), key, x.shape[0] * covered[0] * covered[1])


@functools.cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the interpreter"


def _sweep(epilogue: str) -> str:
    """The role, in the launch table, of a transposed correlation: the adjoint step holds more tiles in registers."""
    return "adjoint" if epilogue.endswith("adjoint") else "transposed"


@functools.cache
def _kernels():
    """The kernels' launchers, loaded at the first call: importing Triton takes a while."""
    if interpreted():
        mend()
    from ...kernels.triton import launch
    from ...kernels.triton.assemble import assemble
    from ...kernels.triton.correlate import correlate
    from ...kernels.triton.elementwise import elementwise
    from ...kernels.triton.gradient import gradient
    from ...kernels.triton.units import units_of

    return SimpleNamespace(
        launch=launch,
        Geometry=launch.Geometry,
        assemble=assemble,
        correlate=correlate,
        elementwise=elementwise,
        gradient=gradient,
        units_of=units_of,
    )


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """(architecture as in the launch table, multiprocessors)."""
    if device.type != "cuda":
        return 0, 1
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def _relaid(weight: Tensor | None, dtype: torch.dtype, scale: float) -> Tensor | None:
    """[H, K, k, k] as [k, k, K, H] in storage, times `scale`: rounding, scaling and layout in one pass."""
    if weight is None:
        return None
    view = weight.permute(2, 3, 1, 0)
    return torch.mul(view, scale, out=torch.empty(view.shape, dtype=dtype, device=weight.device))


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b with a float32 result, of which no digit was rounded to 16 bits."""
    if torch.float32 in (a.dtype, b.dtype):
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _power_of_two(tensors: list[Tensor]) -> Tensor:
    """A power of two, on the device, that brings the largest entry to [1, 2); 1 for zeros."""
    largest = torch.stack([t.abs().amax() if t.numel() else t.new_zeros(()) for t in tensors]).amax()
    _, exponent = torch.frexp(torch.where(largest > 0, largest, 2.0))
    return torch.ldexp(torch.ones_like(largest), 1 - exponent)


def _operand(t: Tensor | Product) -> tuple[Tensor, Tensor | None, float]:
    """(t, other, factor) as the kernels take an operand, each NHWC; `other` is t for a square."""
    if not isinstance(t, Product):
        return _nhwc(t), None, 1.0
    left = _nhwc(t.left)
    return left, left if t.right is t.left else _nhwc(t.right), t.factor


def _nhwc(t: Tensor) -> Tensor:
    """[N, C, h, w] as contiguous [N, h, w, C]: a view of channels-last memory."""
    return t.permute(0, 2, 3, 1).contiguous()


def _nchw(t: Tensor) -> Tensor:
    """The view back."""
    return t.permute(0, 3, 1, 2)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
