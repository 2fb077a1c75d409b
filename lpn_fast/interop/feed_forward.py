"""f and psi as plain feed-forward graphs, for torch.export, ONNX and whoever reads these.

The operators of ops/schema.py are opaque to exporters. What they compute is a forward and a transposed sweep of
linear maps and element-wise functions, so it can be written as a graph without any derivative in it:

    u_l = W_l z_{l-1} + A_l D_l x + b_l,   z_l = softplus_beta(u_l),   s_l = 1 - exp(-beta z_l)
    e_l = s_l (W_{l+1}^T e_{l+1} + w_l + 2 g_l z_l),   f = sum_l D_l^T A_l^T e_l + c + K^T K x + alpha x

ops/sweeps.py has the same equations with what makes them fast: work in place, saved memory, library kernels that
exporters do not know. Weights are projected once, when the module is made.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import atomic
from ..algebra.parameters import unpack
from ..algebra.patches import Patches
from ..algebra.spec import Stage
from ..algebra.windows import Windows
from ..networks import LPN

SUFFIXES = (".pt2", ".onnx")
MAX_ERROR = 1e-5  # between an exported file and the model, relative to the largest value
SIDE = 24  # pixels of the example image; any size would do where sizes are dynamic


class FeedForward(nn.Module):
    """f, or f and psi, of a network as a module of plain operations; weights are constants of it.

    Parameters
    ----------
    model : LPN
    with_potential : bool
        Return (f(x), psi(x)) instead of f(x).

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model, x = lf.ConvLPN(1, hidden=4).eval(), torch.rand(2, 1, 9, 8)
    >>> bool(torch.allclose(FeedForward(model)(x), model(x), atol=1e-5))
    True
    """

    def __init__(self, model: LPN, with_potential: bool = False):
        super().__init__()
        if model.spec.kind == "explicit":
            raise TypeError("FeedForward requires a network with f in one pass, got ExplicitLPN, whose prox is a solve")
        self.spec, self.with_potential = model.spec, with_potential
        with torch.no_grad():
            weights = unpack(self.spec, model.packed())
        for l, stage in enumerate(weights.stages):
            for name in ("core", "skip", "bias", "noise", "head", "head_squared", "odds", "sharpness"):
                self._own(f"{name}_{l}", getattr(stage, name))
        for name in ("linear", "constant", "quadratic"):
            self._own(name, getattr(weights, name))

    def forward(self, x: Tensor, sigma: Tensor | None = None):
        """f(x), of x's shape, or (f(x), psi(x)); x as the network takes it, sigma (N,) for conditional networks."""
        spec, unit = self.spec, None
        features = None if not spec.noise_levels else _hats(sigma, spec.noise_levels)
        if spec.noise_units:
            unit = sigma.reshape(-1, *(1,) * (x.dim() - 1))  # [N, 1, ...]
            x = x / unit
        patches = Patches(x.shape[2:], spec.stages[0].skip_kernel, x, spec.spacing) if spec.is_mirrored else None
        inputs = self._resized(x) if patches is None else {1: patches.extended(x)}
        z, slopes = [None] * len(spec.stages), {}
        for l, stage in enumerate(spec.stages):
            u = 0
            core, skip = self._of("core", l), self._of("skip", l)
            if core is not None:
                u = u + self._apply(z[l - 1], core, stage.stride, stage.padding)
            if skip is not None:
                u = u + self._apply(inputs[stage.resize], skip, stage.skip_stride, self._skip_padding(stage))
            if self._of("bias", l) is not None:
                u = u + _channels(self._of("bias", l)[None], x)
            if self._of("noise", l) is not None:
                u = u + _channels(features @ self._of("noise", l).T, x)
            if stage.window:
                head = _channels(self._of("head", l)[None], x)
                z[l], slopes[l - 1] = self._in_contexts(z[l - 1], features, head, patches)
            elif l + 1 < len(spec.stages) and spec.stages[l + 1].window:
                z[l] = u
            elif stage.competing:
                z[l], slopes[l] = (spec.beta * u).logsumexp(1, keepdim=True) / spec.beta, (spec.beta * u).softmax(1)
            elif l == 0 and spec.square_first:
                z[l], slopes[l] = u * u, 2 * u
            else:
                z[l] = _softplus(u, spec.beta)
        f = self._transposed(x, inputs, z, slopes, patches)
        psi = self._potential(x, z, patches) if self.with_potential else None
        if unit is not None:
            f, psi = unit * f, None if psi is None else sigma * sigma * psi
        return (f, psi) if self.with_potential else f

    def _in_contexts(self, u: Tensor, features: Tensor | None, head: Tensor, patches: Patches | None):
        """(z of the contexts, slopes of their part of psi in u over w_p), [N, 1 or M, h, w]."""
        l = len(self.spec.stages) - 1
        if patches is None:
            rows, columns = (torch.ones_like(u[0, 0].select(axis, 0)) for axis in (1, 0))
        else:
            rows, columns = patches.axis_weights
        average, weights = Windows(self.spec.stages[l].window, rows, columns), rows[:, None] * columns
        at_sigma = torch.ones_like(u[:, :1, 0, 0]) if features is None else features
        odds = torch.tensordot(at_sigma, self._of("odds", l), 1)
        s = (at_sigma @ self._of("sharpness", l)).exp().reshape(-1, 1, 1, 1)
        bias = self._of("bias", l)[None]
        if self._of("noise", l) is not None:
            bias = bias + features @ self._of("noise", l).T
        largest = u.amax(1, keepdim=True)
        powers = (u - largest).exp()
        sums = (odds @ powers.flatten(2)).unflatten(2, u.shape[2:])
        v = s * average(sums.log() + largest) + _channels(bias, u)
        z = v.logsumexp(1, keepdim=True) / s
        slopes = average.adjoint(v.softmax(1) * head * weights) / weights / sums
        return z, powers * (odds.mT @ slopes.flatten(2)).unflatten(2, u.shape[2:])

    def _own(self, name: str, t: Tensor | None) -> None:
        """A buffer, or a plain None: torch.export miscounts buffers that are None."""
        if t is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, t.detach().clone())

    def _of(self, name: str, l: int) -> Tensor | None:
        return getattr(self, f"{name}_{l}")

    def _resized(self, x: Tensor) -> dict[int, Tensor]:
        """D_r x for every factor in use."""
        return {factor: _resized(x, factor) for factor in dict.fromkeys(s.resize for s in self.spec.stages)}

    def _skip_padding(self, stage: Stage) -> int:
        return 0 if self.spec.is_mirrored else stage.skip_padding

    def _apply(self, z: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        return z @ weight.T if self.spec.is_dense else _correlation(weight)(z, weight, None, stride, padding)

    def _adjoint(self, e: Tensor, weight: Tensor, like: Tensor, stride: int, padding: int) -> Tensor:
        """Transposed `_apply`, of the shape of `like`."""
        if self.spec.is_dense:
            return e @ weight
        if stride == 1:
            return _transposed_correlation(weight)(e, weight, None, stride, padding)
        return self._strided_adjoint(e, weight, like.shape[2:], stride, padding)

    @staticmethod
    def _strided_adjoint(e: Tensor, weight: Tensor, size, stride: int, padding: int) -> Tensor:
        """Transposed correlation without its padding, cut or extended with zeros to the size: any parity."""
        full = _transposed_correlation(weight)(e, weight, None, stride)  # (h - 1) stride + k
        full = F.pad(full, (0, stride) * len(size))
        return full[(..., *(slice(padding, padding + n) for n in size))]

    def _transposed(
        self,
        x: Tensor,
        inputs: dict[int, Tensor],
        z: list[Tensor],
        slopes: dict[int, Tensor],
        patches: Patches | None,
    ) -> Tensor:
        """f; `slopes` has those dz/du that z does not tell, by stage."""
        spec = self.spec
        f = spec.alpha * x
        sums: dict[int, Tensor] = {}
        a = None
        for l in reversed(range(len(spec.stages))):
            stage = spec.stages[l]
            if self._of("head", l) is not None:
                w = _channels(self._of("head", l)[None], x)
                a = w if a is None else a + w
            if self._of("head_squared", l) is not None:
                curved = 2 * _channels(self._of("head_squared", l)[None], x) * z[l]
                a = curved if a is None else a + curved
            if stage.window:
                a = 1.0  # the slopes of the experts hold everything above
                continue
            if a is None:
                continue  # a stage that psi does not reach
            e = a * (slopes[l] if l in slopes else 1 - torch.exp(-spec.beta * z[l]))
            if self._of("skip", l) is not None:
                source, e = inputs[stage.resize], e if patches is None else e * patches.weights
                image = self._adjoint(e, self._of("skip", l), source, stage.skip_stride, self._skip_padding(stage))
                image = image if patches is None else patches.folded(image)
                sums[stage.resize] = sums[stage.resize] + image if stage.resize in sums else image
            a = self._adjoint(e, self._of("core", l), z[l - 1], stage.stride, stage.padding) if l else None
        for factor, image in sums.items():
            f = f + (image if factor == 1 else _resize_adjoint(image, factor, x))
        if self.linear is not None:
            f = f + _channels(self.linear[None], x)
        if self.quadratic is not None:
            padding = self.spec.quadratic_kernel // 2
            f = f + self._adjoint(self._apply(x, self.quadratic, 1, padding), self.quadratic, x, 1, padding)
        return f

    def _potential(self, x: Tensor, z: list[Tensor], patches: Patches | None) -> Tensor:
        axes = tuple(range(1, x.dim()))
        psi = 0.5 * self.spec.alpha * (x * x).sum(axes)
        for l in range(len(z)):
            if self._of("head", l) is not None:
                counted = z[l] if patches is None else z[l] * patches.weights
                psi = psi + (counted * _channels(self._of("head", l)[None], x)).sum(axes)
            if self._of("head_squared", l) is not None:
                psi = psi + (z[l] * z[l] * _channels(self._of("head_squared", l)[None], x)).sum(axes)
        if self.linear is not None:
            psi = psi + (x * _channels(self.linear[None], x)).sum(axes)
        if self.quadratic is not None:
            k = self._apply(x, self.quadratic, 1, self.spec.quadratic_kernel // 2)
            psi = psi + 0.5 * (k * k).sum(axes)
        return psi if self.constant is None else psi + self.constant


def export(
    model: LPN, path: str | Path, *, size: tuple[int, ...] | None = None, batch: int | None = None, potential=False
) -> Path:
    """Write f, or f and psi, as a file for other programs: .pt2 of torch.export, or .onnx.

    Parameters
    ----------
    model : LPN
    path : path
        Its suffix decides the format.
    size : (height, width), or (depth, height, width) of volumes, optional
        Size of the images; None is any, where the architecture allows that.
    batch : int, optional
        Number of samples; None is any number.
    potential : bool
        Give psi(x), shape (N,), as a second output.

    Returns
    -------
    Path
        The file takes x and, for noise-conditional networks, sigma (N,).

    Raises
    ------
    ValueError
        Another suffix; no onnx and onnxscript for .onnx (extra [onnx]); a size for a dense network, or of other axes.
    RuntimeError
        The exported graph does not reproduce the model to 1e-5.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.interop.export(lf.pretrained("fast-gray"), "prox.onnx")  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end in {' or '.join(SUFFIXES)}, got {path.name!r}")
    program, module, example = _exported(model, size, batch, potential)
    with torch.no_grad():
        _check(module(*example), program.module()(*example))
    buffer = io.BytesIO()
    if path.suffix == ".pt2":
        torch.export.save(program, buffer)
    else:
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f'exporting to ONNX needs onnx and onnxscript: pip install "lpn-fast[onnx]" ({error})'
            ) from error
        names = ["x", "sigma"][: len(example)]
        outputs = ["f", "psi"] if potential else ["f"]
        converted = torch.onnx.export(program, input_names=names, output_names=outputs, dynamo=True, verbose=False)
        buffer.write(converted.model_proto.SerializeToString())
    return atomic.write(path, buffer.getvalue())


def _exported(model: LPN, size, batch, potential):
    spec, own = model.spec, next(model.parameters())
    if size is not None and len(size) != len(spec.axes):
        required = f"have the sides {', '.join(spec.axes)}" if spec.axes else "be None for a dense network"
        raise ValueError(f"size must {required}, got {size}")
    size = spec.image_size or size
    module = FeedForward(model, potential).eval()
    count = batch or 2  # torch.export takes a dimension of 1 for a constant
    shape = (count, spec.channels, *(size or (SIDE, SIDE + 8, SIDE + 4)[: len(spec.axes)]))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(own)
    example = (x, torch.full((count,), spec.noise_levels[0]).to(own)) if spec.noise_levels else (x,)
    free = torch.export.Dim.DYNAMIC
    axes = {0: free} if batch is None else {}
    images = {} if size is not None else dict.fromkeys(range(2, x.dim()), free)
    dynamic = ({**axes, **images}, axes)[: len(example)]
    with torch.no_grad():
        return torch.export.export(module, example, dynamic_shapes=dynamic, strict=False), module, example


def _check(expected, got) -> None:
    pairs = zip(expected, got, strict=True) if isinstance(expected, tuple) else [(expected, got)]
    for a, b in pairs:
        error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
        if not error <= MAX_ERROR:
            raise RuntimeError(f"the exported graph must agree with the model to {MAX_ERROR:g}, got {error:.1e}")


def _hats(sigma: Tensor, levels: tuple[float, ...]) -> Tensor:
    """phi(sigma), [N, F], of algebra/noise.py without the search for an interval, which ONNX does not know.

    Between knots t_k of log sigma a hat is  min((t - t_{k-1}) / (t_k - t_{k-1}), (t_{k+1} - t) / (t_{k+1} - t_k)).
    """
    if len(levels) == 1:
        return torch.ones_like(sigma)[:, None]
    knots = [math.log(level) for level in levels]
    t = sigma.log().clamp(knots[0], knots[-1])
    hats = []
    for k, knot in enumerate(knots):
        up = (t - knots[k - 1]) / (knot - knots[k - 1]) if k else torch.ones_like(t)
        down = (knots[k + 1] - t) / (knots[k + 1] - knot) if k + 1 < len(knots) else torch.ones_like(t)
        hats.append(torch.minimum(up, down).clamp(0, 1))
    return torch.stack(hats, 1)


def _channels(t: Tensor, like: Tensor) -> Tensor:
    """[N, H] against [N, H, h, w] or [N, H, d, h, w] where there are pixels."""
    return t.reshape(t.shape + (1,) * (like.dim() - 2))


def _softplus(u: Tensor, beta: float) -> Tensor:
    """max(u, 0) + log(1 + exp(-beta |u|)) / beta: no threshold, and nothing that overflows."""
    return u.clamp_min(0) + torch.log1p(torch.exp(-beta * u.abs())) / beta


def _correlation(weight: Tensor) -> Callable:
    return F.conv2d if weight.dim() == 4 else F.conv3d


def _transposed_correlation(weight: Tensor) -> Callable:
    return F.conv_transpose2d if weight.dim() == 4 else F.conv_transpose3d


def _taps(factor: int, like: Tensor) -> Tensor:
    """The kernel of D_r per channel, [C, 1, r, ..]: equal weights on the middle samples of a block, two per axis."""
    tap = like.new_zeros(factor)
    tap[factor // 2 - 1] = tap[factor // 2] = 0.5
    taps = tap
    for _ in like.shape[3:]:
        taps = taps[..., None] * tap
    return taps.expand(like.shape[1], 1, *taps.shape)


def _resized(x: Tensor, factor: int) -> Tensor:
    """D_r x without a question about the size: r - 1 repeated samples give ceil(n / r) blocks, whatever n is."""
    if factor == 1:
        return x
    padded, taps = F.pad(x, (0, factor - 1) * (x.dim() - 2), mode="replicate"), _taps(factor, x)
    return _correlation(taps)(padded, taps, stride=factor, groups=x.shape[1])


def _resize_adjoint(y: Tensor, factor: int, x: Tensor) -> Tensor:
    """D_r^T y of x's shape, as correlations and slices: algebra/resize.py writes in place instead.

    A sample of y goes to the two middle positions of its block of r along each axis, with weight 1/2; what falls
    beyond the image belongs to its last sample, which padding had repeated.
    """
    taps = _taps(factor, y)
    full = _transposed_correlation(taps)(y, taps, stride=factor, groups=y.shape[1])  # [N, C, r h, r w]
    full = F.pad(full, (0, factor) * (x.dim() - 2))  # never nothing beyond it: a case of its own to torch.export
    for axis in range(2, x.dim()):
        full = _folded(full, x.shape[axis], axis)
    return full


def _folded(y: Tensor, length: int, axis: int) -> Tensor:
    """What lies beyond `length` along an axis, added to sample length - 1; zeros among it."""
    head = y.narrow(axis, 0, length - 1)
    last = y.narrow(axis, length - 1, y.shape[axis] - length + 1).sum(axis, keepdim=True)
    return torch.cat([head, last], axis)


__all__ = ["FeedForward", "export"]
