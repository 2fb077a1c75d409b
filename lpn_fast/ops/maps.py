"""The linear maps of a network and their adjoints, as torch runs them fastest: W_l, A_l D_l and K.

    dense   W z: a matrix product;       W^T e: its transpose;           weight gradient: e^T z
    conv    W z: a strided correlation;  W^T e: the transposed one;      weight gradient: correlation of e and z

Convolutions run channels-last: what the sweeps pass between stages is then a matrix [pixels, channels],
so that the element-wise epilogues read and write memory in order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.parameters import Parameters
from ..algebra.resize import resize, resize_adjoint
from ..algebra.spec import Spec, Stage, ceil_div
from . import patches


def maps_for(spec: Spec, parameters: Parameters, x: Tensor):
    """The maps of `spec` for inputs of x's shape, (N, C) or (N, C, H, W)."""
    return DenseMaps(spec, parameters) if spec.is_dense else ConvMaps(spec, parameters, x)


class DenseMaps:
    """Maps of a dense network; x is [N, d], z_l is [N, H_l]."""

    def __init__(self, spec: Spec, parameters: Parameters):
        self.spec = spec
        self.weights = parameters.stages
        self.K = parameters.quadratic

    def skip_inputs(self, x: Tensor) -> list[Tensor]:
        """What the skip of each stage reads: x itself."""
        return [x] * len(self.weights)

    def stage(self, l: int, z: Tensor | None, x_l: Tensor) -> tuple[Tensor, Tensor | None]:
        """(u, rest) with W_l z + A_l x_l = u + rest; fresh tensors [N, H_l], rest may be None."""
        w = self.weights[l]
        if w.core is None:
            return x_l @ w.skip.T, None
        u = z @ w.core.T
        return (u if w.skip is None else u.addmm_(x_l, w.skip.T)), None

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        """W_l^T e, of the shape of z = z_{l-1}."""
        return e @ self.weights[l].core

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) z over the pairs and the batch, [H_l, H_{l-1}]."""
        return _sum([e.T @ z for e, z in pairs])

    skip_gradient = core_gradient

    def skips_adjoint(self, es: list[Tensor | None], x: Tensor) -> Tensor:
        """sum_l D_l^T A_l^T e_l, [N, d]."""
        return _sum([e @ w.skip for e, w in zip(es, self.weights, strict=True) if w.skip is not None])

    def quadratic(self, x: Tensor) -> Tensor:
        """K x, [N, M]."""
        return x @ self.K.T

    def quadratic_adjoint(self, y: Tensor, x: Tensor) -> Tensor:
        """K^T y, [N, d]."""
        return y @ self.K

    def quadratic_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """y (x) x summed over the batch, [M, d]."""
        return y.T @ x


class ConvMaps:
    """Maps of a convolutional network; x is [N, C, H, W], z_l is [N, H_l, h, w], all channels-last."""

    def __init__(self, spec: Spec, parameters: Parameters, x: Tensor):
        self.spec = spec
        self.weights = parameters.stages
        self.height, self.width = x.shape[-2:]
        self.cores = [_channels_last(w.core) for w in parameters.stages]
        self.skips = [_channels_last(w.skip) for w in parameters.stages]
        self.K = _channels_last(parameters.quadratic)
        self.sizes = spec.stage_sizes(self.height, self.width)
        self.on_cpu = x.device.type == "cpu"

    def _patched(self, stage: Stage) -> bool:
        """Whether this stage's skip runs as a matrix product with patches."""
        return self.on_cpu and self.spec.channels * stage.skip_kernel**2 <= patches.MAX_COLUMNS

    def skip_inputs(self, x: Tensor) -> list[Tensor | None]:
        """What the skip of each stage reads: D_l x, as patches where the skip is a matrix product."""
        images, patched, inputs = {}, {}, []
        for stage in self.spec.stages:
            if not stage.skip_kernel:
                inputs.append(None)
                continue
            if stage.resize not in images:
                images[stage.resize] = resize(x, stage.resize)
            if self._patched(stage):
                key = (stage.resize, stage.skip_kernel, stage.skip_stride, stage.skip_padding)
                if key not in patched:
                    patched[key] = patches.columns(images[stage.resize], *key[1:])
                inputs.append(patched[key])
            else:
                inputs.append(_channels_last(images[stage.resize]))
        return inputs

    def stage(self, l: int, z: Tensor | None, x_l: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(u, rest) with W_l z + A_l x_l = u + rest; fresh channels-last tensors, rest may be None."""
        stage, products = self.spec.stages[l], []
        if self.cores[l] is not None:
            products.append(_channels_last(F.conv2d(z, self.cores[l], None, stage.stride, stage.padding)))
        if self.skips[l] is not None:
            if self._patched(stage):
                products.append(patches.apply(x_l, self.skips[l], self.sizes[l]))
            else:
                skip = F.conv2d(x_l, self.skips[l], None, stage.skip_stride, stage.skip_padding)
                products.append(_channels_last(skip))
        return products[0], products[1] if len(products) == 2 else None

    def core_adjoint(self, l: int, e: Tensor, z: Tensor) -> Tensor:
        """W_l^T e, of the shape of z = z_{l-1}."""
        stage = self.spec.stages[l]
        return _correlation_adjoint(e, z, self.cores[l], stage.stride, stage.padding)

    def core_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) z over the pairs, the batch and the pixels, [H_l, H_{l-1}, k, k]."""
        stage = self.spec.stages[l]
        return _sum([_correlation_gradient(e, z, self.cores[l], stage.stride, stage.padding) for e, z in pairs])

    def skip_gradient(self, l: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of e (x) x_l over the pairs, the batch and the pixels, [H_l, C, k, k]."""
        stage, skip = self.spec.stages[l], self.skips[l]
        if self._patched(stage):
            return _sum([patches.gradient(e, x) for e, x in pairs])
        return _sum([_correlation_gradient(e, x, skip, stage.skip_stride, stage.skip_padding) for e, x in pairs])

    def skips_adjoint(self, es: list[Tensor | None], x: Tensor) -> Tensor:
        """sum_l D_l^T A_l^T e_l, [N, C, H, W]; stages that share a factor share one D^T."""
        by_factor: dict[int, Tensor] = {}
        for stage, skip, e in zip(self.spec.stages, self.skips, es, strict=True):
            if skip is None:
                continue
            r = stage.resize
            size = (ceil_div(self.height, r), ceil_div(self.width, r))
            if self._patched(stage):
                term = patches.adjoint(e, skip, size, stage.skip_stride, stage.skip_padding)
            else:
                x_l = x.new_empty(x.shape[0], x.shape[1], *size)
                term = _correlation_adjoint(e, x_l, skip, stage.skip_stride, stage.skip_padding)
            by_factor[r] = by_factor[r].add_(term) if r in by_factor else term
        return _sum([resize_adjoint(term, r, self.height, self.width) for r, term in by_factor.items()])

    def quadratic(self, x: Tensor) -> Tensor:
        """K x, [N, M, h, w]."""
        return F.conv2d(x, self.K, padding=self.spec.quadratic_kernel // 2)

    def quadratic_adjoint(self, y: Tensor, x: Tensor) -> Tensor:
        """K^T y, of x's shape."""
        return _correlation_adjoint(y, x, self.K, 1, self.spec.quadratic_kernel // 2)

    def quadratic_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """y (x) x summed over batch and pixels, [M, C, k, k]."""
        return _correlation_gradient(y, x, self.K, 1, self.spec.quadratic_kernel // 2)


def _correlation_adjoint(e: Tensor, z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Adjoint in z of conv2d(z, weight), at e; of z only the shape is read."""
    return _convolution_backward(e, z, weight, stride, padding, [True, False, False])[0]


def _correlation_gradient(e: Tensor, z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Gradient in weight of <e, conv2d(z, weight)>; of weight only the shape is read."""
    return _convolution_backward(e, z, weight, stride, padding, [False, True, False])[1]


def _convolution_backward(e, z, weight, stride, padding, mask):
    if e.numel() == 0:  # some libraries refuse an empty batch
        return torch.zeros_like(z), torch.zeros_like(weight), None
    return torch.ops.aten.convolution_backward.default(
        e, z, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
    )


def _channels_last(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous(memory_format=torch.channels_last)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
