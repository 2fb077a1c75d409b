"""The linear maps of a network and their adjoints, as torch runs them fastest: W_l, A_l D_l and K.

    dense   W z: a matrix product;       W^T e: its transpose;           weight gradient: e^T z
    conv    W z: a strided correlation;  W^T e: the transposed one;      weight gradient: correlation of e and z

Convolutions run channels-last: what the sweeps pass between stages is then a matrix [pixels, channels],
so that the element-wise epilogues read and write memory in order. Images and volumes differ in the number of axes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.parameters import Parameters
from ..algebra.patches import Patches
from ..algebra.resize import resize, resize_adjoint
from ..algebra.spec import Spec, ceil_div
from . import patches


def maps_for(spec: Spec, parameters: Parameters, x: Tensor, storage: torch.dtype):
    """The maps of `spec` for inputs of x's shape, (N, C) or (N, C, *image); cores, z and e are in `storage`."""
    return DenseMaps(spec, parameters, storage) if spec.is_dense else ConvMaps(spec, parameters, x, storage)


class _Maps:
    """What the maps of dense and of convolutional networks share; subclasses bring `_skip_adjoint`."""

    def unit(self, l: int) -> Tensor | None:
        """What e_l and delta_l are stored in units of; None: as they are."""

    def projects(self, l: int) -> bool:
        """Whether the step that makes e_l can form A_l^T e_l in its stead (`add_product` of skips_adjoint)."""
        return False

    def skips_adjoint(self, x: Tensor) -> "SkipsAdjoint":
        """An empty sum_l D_l^T A_l^T e_l, of x's shape."""
        return SkipsAdjoint(self._skip_adjoint, torch.zeros_like(x))


class DenseMaps(_Maps):
    """Maps of a dense network; x is [N, d], z_l is [N, H_l]."""

    def __init__(self, spec: Spec, parameters: Parameters, storage: torch.dtype):
        self.spec = spec
        self.weights = parameters.stages
        self.storage = storage
        self.cores = [_cast(w.core, storage) for w in parameters.stages]
        self.K = parameters.quadratic

    def skip_inputs(self, x: Tensor) -> list[Tensor]:
        """What the skip of each stage reads: x itself."""
        return [x] * len(self.weights)

    def stage(self, l: int, z: Tensor | None, x_l: Tensor) -> tuple[Tensor, Tensor | None]:
        """(u, rest) with W_l z + A_l x_l = u + rest; fresh tensors [N, H_l], rest may be None."""
        core, skip = self.cores[l], self.weights[l].skip
        if core is None:
            return x_l @ skip.T, None
        return z @ core.T, (None if skip is None else x_l @ skip.T)

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        """W_l^T e, of the shape of z = z_{l-1}."""
        return e @ self.cores[l]

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) z over the pairs and the batch, [H_l, H_{l-1}]."""
        return _sum([e.T @ z for e, z in pairs])

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) x_l over the pairs and the batch, [H_l, d]."""
        return _sum([e.T.to(x.dtype) @ x for e, x in pairs])

    def _skip_adjoint(self, l: int, e: Tensor) -> tuple[int, Tensor] | None:
        skip = self.weights[l].skip
        return None if skip is None else (1, e.to(skip.dtype) @ skip)

    def quadratic(self, x: Tensor) -> Tensor:
        """K x, [N, M]."""
        return x @ self.K.T

    def quadratic_adjoint(self, y: Tensor, x: Tensor) -> Tensor:
        """K^T y, [N, d]."""
        return y @ self.K

    def quadratic_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """y (x) x summed over the batch, [M, d]."""
        return y.T @ x


class ConvMaps(_Maps):
    """Maps of a convolutional network; x is [N, C, H, W], z_l is [N, H_l, h, w], all channels-last.

    For volumes x is [N, C, D, H, W], z_l is [N, H_l, d, h, w], kernels have three sides; what is said of (h, w) holds.
    """

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor, storage: torch.dtype):
        self.spec = spec
        self.weights = parameters.stages
        self.storage = storage
        self.image = tuple(x.shape[2:])  # (H, W)
        self.mirrored = Patches(x.shape[2:], spec.stages[0].skip_kernel, x, spec.spacing) if spec.is_mirrored else None
        self.cores = [_channels_last(_cast(w.core, storage)) for w in parameters.stages]
        self.skips = [_channels_last(w.skip) for w in parameters.stages]
        self.K = _channels_last(parameters.quadratic)
        self.sizes = spec.stage_sizes(*self.image)
        self.on_cpu = x.device.type == "cpu"

    def _patched(self, l: int) -> bool:
        """Whether this stage's skip runs as a matrix product with patches."""
        columns = self.spec.channels * self.spec.stages[l].skip_kernel ** self.spec.ndim
        return self.on_cpu and (columns <= patches.MAX_COLUMNS or math.prod(self.sizes[l]) == 1)

    def _whole(self, l: int) -> bool:
        """Whether the core of this stage covers its whole input: one matrix product then, and better sums."""
        stage = self.spec.stages[l]
        return stage.padding == 0 and self.sizes[l - 1] == (stage.kernel,) * self.spec.ndim

    def skip_inputs(self, x: Tensor) -> list[Tensor | None]:
        """What the skip of each stage reads: D_l x, in the form `_skip_input` gives it."""
        images, known, inputs = {}, {}, []
        if self.mirrored is not None:
            x = self.mirrored.extended(x)
        for l, stage in enumerate(self.spec.stages):
            if not stage.skip_kernel:
                inputs.append(None)
                continue
            if stage.resize not in images:
                images[stage.resize] = resize(x, stage.resize)
            key = (stage.resize, *self._skip_form(l))
            if key not in known:
                known[key] = self._skip_input(l, images[stage.resize])
            inputs.append(known[key])
        return inputs

    def _skip_form(self, l: int) -> tuple:
        """What the form of stage l's input depends on, besides the factor of D_l."""
        stage = self.spec.stages[l]
        return (stage.skip_kernel, stage.skip_stride, self._skip_padding(l)) if self._patched(l) else ()

    def _skip_padding(self, l: int) -> int:
        """Zeros around what the skip of stage l reads."""
        return self.spec.stages[l].skip_padding if self.mirrored is None else 0

    def _skip_input(self, l: int, image: Tensor) -> Tensor:
        """An image as the skip of stage l reads it: as patches where that is a matrix product."""
        return patches.columns(image, *self._skip_form(l)) if self._patched(l) else _channels_last(image)

    def stage(self, l: int, z: Tensor | None, x_l: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(u, rest) with W_l z + A_l x_l = u + rest; fresh channels-last tensors, rest may be None."""
        stage, products = self.spec.stages[l], []
        if self.cores[l] is not None:
            products.append(self._core(l, z))
        if self.skips[l] is not None:
            if self._patched(l):
                products.append(patches.apply(x_l, self.skips[l], self.sizes[l]))
            else:
                skip = correlation(x_l, self.skips[l], stage.skip_stride, self._skip_padding(l))
                products.append(_channels_last(skip))
        return products[0], products[1] if len(products) == 2 else None

    def _core(self, l: int, z: Tensor) -> Tensor:
        """W_l z, [N, H_l, h, w]."""
        stage = self.spec.stages[l]
        if self._whole(l):
            # Line by line: one sum over all entries of z, of one sign, would lose a digit against a convolution's.
            u = (_lines(z) @ _lines(self.cores[l]).mT).sum(0)
            return u[(..., *(None,) * self.spec.ndim)]
        return _channels_last(correlation(z, self.cores[l], stage.stride, stage.padding))

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        """W_l^T e, of the shape of z = z_{l-1}."""
        stage = self.spec.stages[l]
        if self._whole(l):
            return _images(e.flatten(1) @ _rows(self.cores[l]), self.cores[l].shape)
        return correlation_adjoint(e, z, self.cores[l], stage.stride, stage.padding)

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) z over the pairs, the batch and the pixels, [H_l, H_{l-1}, k, k]."""
        stage, core = self.spec.stages[l], self.cores[l]
        if self._whole(l):
            return _images(_sum([e.flatten(1).T @ _rows(z) for e, z in pairs]), core.shape)
        return _sum([_correlation_gradient(e, z, core, stage.stride, stage.padding) for e, z in pairs])

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) x_l over the pairs, the batch and the pixels, [H_l, C, k, k]."""
        stage, skip = self.spec.stages[l], self.skips[l]
        pairs = [(e.to(skip.dtype), x) for e, x in pairs]
        if self._patched(l):
            return _sum([patches.gradient(e, x) for e, x in pairs])
        padding = self._skip_padding(l)
        return _sum([_correlation_gradient(e, x, skip, stage.skip_stride, padding) for e, x in pairs])

    def _skip_adjoint(self, l: int, e: Tensor) -> tuple[int, Tensor] | None:
        """(factor of D_l, A_l^T e_l), or None without a skip."""
        stage, skip = self.spec.stages[l], self.skips[l]
        if skip is None:
            return None
        e = e.to(skip.dtype)
        size, padding = self.resized(stage.resize), self._skip_padding(l)
        if self.mirrored is not None:
            size = tuple(n + 2 * stage.skip_padding for n in size)
        if self._patched(l):
            image = patches.adjoint(e, skip, size, stage.skip_stride, padding)
        else:
            x_l = e.new_empty(e.shape[0], self.spec.channels, *size)
            image = correlation_adjoint(e, x_l, skip, stage.skip_stride, padding)
        return stage.resize, image if self.mirrored is None else self.mirrored.folded(image)

    def resized(self, factor: int) -> tuple[int, ...]:
        """(h, w) of D_r x."""
        return tuple(ceil_div(n, factor) for n in self.image)

    def quadratic(self, x: Tensor) -> Tensor:
        """K x, [N, M, h, w]."""
        return correlation(x, self.K, 1, self.spec.quadratic_kernel // 2)

    def quadratic_adjoint(self, y: Tensor, x: Tensor) -> Tensor:
        """K^T y, of x's shape."""
        return correlation_adjoint(y, x, self.K, 1, self.spec.quadratic_kernel // 2)

    def quadratic_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """y (x) x summed over batch and pixels, [M, C, k, k]."""
        return _correlation_gradient(y, x, self.K, 1, self.spec.quadratic_kernel // 2)


class SkipsAdjoint:
    """sum_l D_l^T A_l^T e_l, stage by stage as the e_l come; stages that share a factor share one D^T."""

    def __init__(self, skip_adjoint, total: Tensor):
        self._skip_adjoint = skip_adjoint  # (l, e) -> (factor of D_l, A_l^T e) or None
        self._total = total  # like x
        self._by_factor: dict[int, Tensor] = {}

    def add(self, l: int, e: Tensor) -> None:
        """Add stage l."""
        term = self._skip_adjoint(l, e)
        if term is not None:
            self._add_image(*term)

    def _add_image(self, factor: int, image: Tensor) -> None:
        known = self._by_factor.get(factor)
        self._by_factor[factor] = image if known is None else known.add_(image)

    def result(self) -> Tensor:
        """The sum, like x."""
        total = self._total
        for factor, image in self._by_factor.items():
            total = total.add_(image if factor == 1 else resize_adjoint(image, factor, *total.shape[2:]))
        return total


def correlation(z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The zero-padded correlation with weight, [H, C, k, k] on images or [H, C, k, k, k] on volumes."""
    return (F.conv2d if weight.dim() == 4 else F.conv3d)(z, weight, None, stride, padding)


def correlation_adjoint(e: Tensor, z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Adjoint in z of the correlation with weight, at e; of z only the shape is read."""
    return _convolution_backward(e, z, weight, stride, padding, [True, False, False])[0]


def _correlation_gradient(e: Tensor, z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Gradient in weight of <e, correlation of z with it>; of weight only the shape is read."""
    return _convolution_backward(e, z, weight, stride, padding, [False, True, False])[1]


def _convolution_backward(e, z, weight, stride, padding, mask):
    if e.numel() == 0:  # some libraries refuse an empty batch
        return torch.zeros_like(z), torch.zeros_like(weight), None
    n = weight.dim() - 2
    return torch.ops.aten.convolution_backward.default(
        e, z, weight, None, [stride] * n, [padding] * n, [1] * n, False, [0] * n, 1, mask
    )


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


def channels_last(dims: int) -> torch.memory_format:
    """The memory format of that name for tensors of so many axes, 4 for images and 5 for volumes."""
    return torch.channels_last if dims == 4 else torch.channels_last_3d


def _channels_last(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous(memory_format=channels_last(t.dim()))


def _rows(t: Tensor) -> Tensor:
    """[N, C, h, w] channels-last as the matrix [N, h w C], without a copy."""
    return t.movedim(1, -1).flatten(1)


def _lines(t: Tensor) -> Tensor:
    """[N, C, h, w] channels-last as the matrices [h, N, w C], without a copy."""
    return t.movedim(1, -1).flatten(2).movedim(1, 0)


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_rows`: [N, h w C] as [N, C, h, w] channels-last, C h w as in `shape`."""
    return rows.view(len(rows), *shape[2:], shape[1]).movedim(-1, 1)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
