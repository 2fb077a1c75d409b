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
from ..algebra.spec import Spec


def maps_for(spec: Spec, parameters: Parameters, x: Tensor):
    """The maps of `spec` for inputs of x's shape, (N, C) or (N, C, H, W)."""
    return DenseMaps(spec, parameters) if spec.is_dense else ConvMaps(spec, parameters, x)


class DenseMaps:
    """Maps of a dense network; x is [N, d], z_l is [N, H_l]."""

    def __init__(self, spec: Spec, parameters: Parameters):
        self.spec = spec
        self.weights = parameters.stages
        self.K = parameters.quadratic

    def resized(self, x: Tensor) -> list[Tensor]:
        """D_l x for every stage: x itself."""
        return [x] * len(self.weights)

    def stage(self, l: int, z: Tensor | None, x_l: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(u, rest) with u_l = u + rest: the W and A products, b included where it is one row."""
        w = self.weights[l]
        shared = bias if bias is not None and bias.shape[0] == 1 else None  # [1, H]
        per_sample = bias if shared is None else None  # [N, H]
        u = None
        if w.skip is not None:
            u = x_l @ w.skip.T if shared is None else torch.addmm(shared, x_l, w.skip.T)
            shared = None
        if w.core is not None:
            u = z @ w.core.T if u is None else u.addmm_(z, w.core.T)
        if shared is not None:
            u = u.add_(shared)
        return (u if per_sample is None else u.add_(per_sample)), None

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

    def resized(self, x: Tensor) -> list[Tensor]:
        """D_l x for every stage; equal factors share one tensor."""
        cache = {}
        for stage in self.spec.stages:
            if stage.resize not in cache:
                cache[stage.resize] = _channels_last(resize(x, stage.resize))
        return [cache[stage.resize] for stage in self.spec.stages]

    def stage(self, l: int, z: Tensor | None, x_l: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(u, rest) with u_l = u + rest + per-sample bias: the W and A products, a shared bias included."""
        stage = self.spec.stages[l]
        shared = bias[0] if bias is not None and bias.shape[0] == 1 else None  # [H]
        products = []
        if self.skips[l] is not None:
            products.append(F.conv2d(x_l, self.skips[l], shared, stage.skip_stride, stage.skip_padding))
            shared = None
        if self.cores[l] is not None:
            products.append(F.conv2d(z, self.cores[l], shared, stage.stride, stage.padding))
        products = [_channels_last(u) for u in reversed(products)]
        if bias is not None and bias.shape[0] != 1:
            products[0].add_(bias[:, :, None, None])
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
        stage = self.spec.stages[l]
        return _sum(
            [_correlation_gradient(e, x, self.skips[l], stage.skip_stride, stage.skip_padding) for e, x in pairs]
        )

    def skips_adjoint(self, es: list[Tensor | None], x: Tensor) -> Tensor:
        """sum_l D_l^T A_l^T e_l, [N, C, H, W]; stages that share a factor share one D^T."""
        by_factor: dict[int, Tensor] = {}
        for stage, skip, e in zip(self.spec.stages, self.skips, es, strict=True):
            if skip is None:
                continue
            r = stage.resize
            x_l = x if r == 1 else x.new_empty(x.shape[0], x.shape[1], -(-self.height // r), -(-self.width // r))
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
