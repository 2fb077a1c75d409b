"""Experts that compete in contexts on the CPU: positions by csrc/cpu/isa/experts.h, contexts by contexts.py.

Two passes over blocks of rows, with c and exp(u) of all positions kept between them where that is less than KEPT_BYTES:
to read them is cheaper than to compute them, which is nearly half of f. All tensors are float32.
"""

import functools
import importlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ....algebra.parameters import layout, parameter_count, unpack
from ....algebra.spec import Spec
from ....algebra.windows import Windows
from ..contexts import Contexts
from . import memory
from .frame import address, biases_at, mirror_of

KEPT_BYTES = 1 << 29  # of an image
TOGETHER_BYTES = 1 << 27  # of images that go through together, one at least: fresh memory costs page faults


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W), P (P,), noise features (N, F) or None."""
    f = torch.empty_like(x, memory_format=torch.contiguous_format)
    psi = x.new_empty(len(x)) if with_value else None
    kept = None
    for some in _together(spec, x, 1):
        at = _Images(spec, x[some], packed, features, some, kept)
        sums, logs, _ = at.first(None)
        shared, _, heads = at.totals
        value, slopes = at.contexts.value_slopes(logs, shared if with_value else None)
        if psi is not None and value is not None:
            psi[some] = value + heads + 0.5 * spec.alpha * x[some].square().sum(3, dtype=value.dtype).sum((1, 2))
        at.second(None, None, slopes.div_(sums), None, f[some], None)
        kept = at.kept
    return psi, f


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
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if p is None and v is None:
        return out.zero_()
    grads = None if gradient is None else unpack(spec, gradient)
    kept = None
    for some in _together(spec, x, 1 if v is None else 2):
        at = _Images(spec, x[some], packed, features, some, kept)
        p_at = None if p is None else p[some].contiguous()
        v_at = None if v is None else v[some].contiguous()
        sums, logs, dl = at.first(v_at)
        shared, change, _ = at.totals
        slopes, changes = at.contexts.second(logs, dl, p_at, shared, change, grads)
        if dl is None:
            slopes = None
        else:
            changes = changes.addcmul_(slopes, dl, value=-1)
            slopes = slopes.div_(sums)
        at.second(v_at, p_at, slopes, changes.div_(sums), out[some], gradient)
        kept = at.kept
    return out


def _together(spec: Spec, x: Tensor, copies: int) -> Iterator[slice]:
    """Images that go through together, by what they keep."""
    first, experts, _ = spec.stages
    height, width = spec.stage_sizes(*x.shape[2:])[0]
    images = max(1, TOGETHER_BYTES // (4 * copies * height * width * (first.width + experts.width)))
    for start in range(0, len(x), images):
        yield slice(start, start + images)


class _Images:
    """A network at some images x (N, C, H, W); memory of images before serves for what is kept."""

    def __init__(
        self, spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, some: slice, kept: Tensor | None
    ):
        self.x, self.packed = x.contiguous(), packed.contiguous()
        self.features = None if features is None else features[some].contiguous()
        first, experts, contexts = unpack(spec, self.packed).stages
        self.spec, self.kept = spec, kept
        self.contexts = _Contexts(spec, contexts, x.shape[2:], x, self.features)
        self._biases, self._odds = biases_at((experts,), self.features), self.contexts.odds.contiguous()
        table, filters_at = _table(spec)
        # pixels that a shift by one position moves alike are channels (csrc/cpu/frame_kernels.h)
        self._filters = None if spec.spacing == 1 else F.pixel_unshuffle(first.skip, spec.spacing).contiguous()
        self._mirror = mirror_of(spec, *x.shape[2:])
        self._problem = _cpu().Experts(
            self.packed.data_ptr(), table.data_ptr(), filters_at, address(self._filters), self._biases.data_ptr(),
            self._odds.data_ptr(), spec.stages[2].width, features is None, *x.shape, len(first.skip),
            first.skip.shape[-1], spec.spacing, spec.alpha, *map(address, self._mirror),
        )  # fmt: skip

    def first(self, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(L, log L, dl along v or None), (N, C, h, w). Sets `totals`, each (N,)."""
        shape = len(self.x), self.spec.stages[2].width, *self.contexts.weights.shape
        sums, logs = (memory.empty(shape, torch.float32) for _ in range(2))
        dl = None if v is None else memory.empty(shape, torch.float32)
        size = self._problem.kept_size(v is not None)
        if 4 * size > KEPT_BYTES:
            self.kept = None
        elif self.kept is None or self.kept.numel() < len(self.x) * size:
            self.kept = memory.empty((len(self.x) * size,), torch.float32)
        totals = torch.empty(len(self.x), 3, dtype=torch.float64, device="cpu")
        self._problem.first(
            self.x.data_ptr(), address(v), sums.data_ptr(), logs.data_ptr(), address(dl), address(self.kept),
            totals.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        self.totals = totals.unbind(1)  # float64: of the largest u, of the mean of du, of h . z_1
        return sums, logs, dl

    def second(
        self,
        v: Tensor | None,
        p: Tensor | None,
        slopes: Tensor | None,
        changes: Tensor | None,
        out: Tensor,
        gradient: Tensor | None,
    ) -> None:
        """f, or where there are changes H v + p f, into `out`; adds the gradients of all but the contexts' own."""
        part = None if gradient is None else torch.empty_like(gradient)
        biases = None if gradient is None else self.x.new_empty(len(self.x), self._biases.shape[1])
        odds = None if gradient is None else self.x.new_empty(len(self.x), *self._odds.shape[1:])
        slopes, changes = (None if t is None else t.contiguous() for t in (slopes, changes))
        self._problem.second(
            self.x.data_ptr(), address(v), address(p), address(slopes), address(changes), address(self.kept),
            out.data_ptr(), address(part), 0 if part is None else part.numel(), address(biases), address(odds),
            torch.get_num_threads(),
        )  # fmt: skip
        if gradient is None:
            return
        if self._filters is not None:
            skip = unpack(self.spec, part).stages[0].skip
            skip.copy_(F.pixel_shuffle(skip.reshape(self._filters.shape), self.spec.spacing))
        gradient += part
        _, experts, contexts = unpack(self.spec, gradient).stages
        if experts.noise is not None:
            experts.noise.addmm_(biases.T, self.features)
        self.contexts.add_odds(contexts.odds, odds)


class _Averages(Windows):
    def __call__(self, l: Tensor) -> Tensor:
        rows, columns = self._given
        return self._averaged(l, rows, columns, None, None)

    def adjoint(self, e: Tensor) -> Tensor:
        rows, columns = self._given
        return self._averaged(e, None, None, rows, columns)

    def _averaged(self, maps: Tensor, *weights: Tensor | None) -> Tensor:
        maps = maps.contiguous()
        out = memory.empty(tuple(maps.shape), torch.float32)
        _cpu().average_maps(
            maps.data_ptr(), out.data_ptr(), maps.shape[0] * maps.shape[1], *maps.shape[2:], self._taps.data_ptr(),
            self._side, *map(address, weights), torch.get_num_threads(),
        )  # fmt: skip
        return out


class _Contexts(Contexts):
    averages = _Averages

    def compete(self, y: Tensor, dy: Tensor | None, p: Tensor | None, with_zeta: bool):
        zeta, dzeta = (torch.empty_like(y[:, :1]) if used else None for used in (with_zeta, dy is not None))
        changes = torch.empty_like(y) if dy is None and p is not None else dy
        rows, columns = (self.weights[:, 0], self.weights[0]) if self.patches is None else self.patches.axis_weights
        rows, columns = rows * self._stage.head, columns.contiguous()
        s, bias = self.s.flatten().tolist(), self.bias.contiguous()
        for n in range(len(y)):
            mine = [None if t is None else t[n] for t in (y, dy, p, changes, zeta, dzeta)]
            at, along, of_value, to, value, change = map(address, mine)
            own = n if len(s) > 1 else 0
            _cpu().compete(
                at, along, of_value, *y.shape[1:], bias[own].data_ptr(), s[own], rows.data_ptr(), columns.data_ptr(),
                at, to, value, change, torch.get_num_threads(),
            )  # fmt: skip
        return y, changes, zeta, dzeta


@functools.cache
def _table(spec: Spec) -> tuple[Tensor, int]:
    """(csrc's table of the experts as a dense network of z_1, int64 [8], where K begins in P)."""
    offsets = {slot.name: slot.offset for slot in layout(spec)}
    core, bias = offsets["stages.1.core"], offsets["stages.1.bias"]
    table = [spec.stages[1].width, -1, core, bias, -1, -1, offsets.get("stages.0.head", -1), -1]
    return torch.tensor(table, dtype=torch.int64, device="cpu"), offsets["stages.0.skip"]


def _cpu():
    return importlib.import_module("lpn_fast._cpu")
