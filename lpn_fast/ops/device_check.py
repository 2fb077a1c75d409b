"""Whether a backend's kernels are right on a device, and how fast: some seconds of work on it.

    small and odd sizes   psi, f, H v and all gradients against the torch backend in float64
    a full size           the same bits twice; results against the torch backend in the same tensors' type, and against
                          other ways to launch the same kernels (pointers in the place of the copy engine)
    time                  of every work, in turns with the torch backend and, where that is asked for, with
                          torch.compile of the plain network

The works are the prox, the value with it, a Hessian product, and what training does, a forward and a backward pass;
of an explicit prior the gradient of R, the value, Hessian products and gradients in the potentials
(ops/explicit/level.py).

Errors are relative, in the Euclidean norm; TOLERANCE holds those of first (psi, f) and second order. What the torch
backend itself cannot do in a precision, its own error doubled, is not asked of a kernel either.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..algebra.parameters import layout, parameter_count
from ..algebra.spec import Spec
from . import plain_torch

if TYPE_CHECKING:
    from .registry import Backend

TOLERANCE = {"fp32": (1e-5, 1e-5), "tf32": (1e-3, 4e-3), "fp16": (1e-3, 4e-3), "bf16": (6e-3, 2.5e-2)}
FIRST_ORDER = ("psi", "f", "R", "grad R")
PROX, GRADIENT_OF_R, VALUE = "prox", "gradient of R", "value"
HESSIAN, TRAINING = "Hessian product", "parameter gradients"
WORKS, EXPLICIT_WORKS = (PROX, VALUE, HESSIAN, TRAINING), (GRADIENT_OF_R, VALUE, HESSIAN, TRAINING)
ROUNDS = 7
Call = Callable[[], object]


class Trial(Protocol):
    """One input, and what a backend computes at it."""

    x: Tensor
    precision: str

    def double(self) -> "Trial":
        """The same in float64."""
        ...

    def everything(self, backend: Any) -> dict[str, Tensor]:
        """All results, by name."""
        ...

    def works(self) -> dict[str, Callable[[Any], tuple[Tensor, ...]]]:
        """What is timed. Of the first work's first result, the torch backend's is the truth at full size."""
        ...

    def compiled(self) -> dict[str, Call]:
        """torch.compile of plain code for works of that name; not compiled yet."""
        ...


@dataclass(frozen=True)
class Findings:
    """What a check found."""

    wrong: str | None  # the first thing that was not right
    error: float  # largest relative error over what its tolerance allows
    gains: dict[str, float] = field(default_factory=dict)  # work -> torch's time over ours
    compiled: dict[str, float] = field(default_factory=dict)  # the same of torch.compile's time
    not_compiled: str = ""  # why there is none of those
    lasting: bool = True  # whether another process would find the same


def check(
    backend: "Backend",
    plain: "Backend",
    spec: Spec,
    device: torch.device,
    precision: str,
    packed: Tensor | None = None,
    compiled: bool = False,
) -> Findings:
    """Run `backend` on `device` in `precision` beside `plain`, the torch backend; P (P,) or None for random weights.

    `compiled`: time it beside torch.compile as well, which compiles for a minute.
    """
    generator = torch.Generator().manual_seed(0)  # nobody else's random numbers
    make = getattr(spec, "trial", None) or functools.partial(NetworkTrial, spec)
    make = functools.partial(make, packed=packed, precision=precision, device=device, generator=generator)
    try:
        with torch.no_grad():
            wrong, error = _wrong_at_small_sizes(backend, plain, [make(shape) for shape in small_shapes(spec)])
            if wrong:
                return Findings(wrong, error)
            call = make(large_shape(spec))
            wrong = _wrong_at_full_size(backend, plain, call)
            if wrong:
                return Findings(wrong, error)
            rivals, reason = _rivals(call) if compiled else ({}, "torch.compile was not asked for")
            return Findings(None, error, *_gains(backend, plain, call, rivals), reason)
    except torch.OutOfMemoryError as full:
        return Findings(f"the device's memory was full ({_line(full)})", float("nan"), lasting=False)
    except Exception as failure:  # whether a compiler's, a launch's or the device's
        return Findings(f"{type(failure).__name__}: {_line(failure)}", float("nan"))


def small_shapes(spec: Spec) -> list[tuple[int, ...]]:
    """Off the tiles, and smaller than one."""
    if spec.is_dense:
        return [(1, spec.channels), (7, spec.channels), (129, spec.channels)]
    if spec.image_size:
        return [(1, spec.channels, *spec.image_size), (3, spec.channels, *spec.image_size)]
    odd = (37, 50, 11)[: spec.ndim]
    return [(1, spec.channels, *(17, 5, 6)[: spec.ndim]), (3 if spec.ndim == 2 else 1, spec.channels, *odd)]


def large_shape(spec: Spec) -> tuple[int, ...]:
    """What is timed."""
    if spec.is_dense:
        return 65536, spec.channels
    if spec.image_size:
        return 64, spec.channels, *spec.image_size
    return (4, spec.channels, 256, 256) if spec.ndim == 2 else (1, spec.channels, 64, 64, 64)


class NetworkTrial:
    """One input of a network, and the primitives of a backend at it."""

    def __init__(
        self, spec: Spec, shape, packed: Tensor | None, precision: str, device: torch.device, generator: torch.Generator
    ):
        self.spec, self.precision = spec, precision
        self.packed = _representative(spec).to(device) if packed is None else packed.detach()
        scale = 4.0 if spec.noise_units else 1.0
        self.x = scale * self._random(shape, generator)
        self.v, self.p = self._random(shape, generator), self._random(shape[:1], generator)
        self.features = None
        if spec.noise_levels:
            mixed = self._random((shape[0], len(spec.noise_levels)), generator).abs()
            self.features = mixed / mixed.sum(1, keepdim=True)

    def _random(self, shape, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(self.packed)

    def double(self) -> "NetworkTrial":
        """The same in float64, where precision is full."""
        wide = object.__new__(NetworkTrial)
        for name, value in vars(self).items():
            setattr(wide, name, value.double() if isinstance(value, Tensor) else value)
        wide.precision = "fp32"
        return wide

    def prox(self, backend: "Backend", value: bool = False) -> tuple[Tensor, ...]:
        """(f,), or (f, psi)."""
        psi, f, _ = backend.evaluate(self.spec, self.x, self.packed, self.features, value, False, self.precision)
        return (f,) if psi is None else (f, psi)

    def gradients(self, backend: "Backend", p: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(gx, gP), by a forward and a backward pass."""
        call = (self.spec, self.x, self.packed, self.features)
        tape = backend.evaluate(*call, False, True, self.precision)[2]
        return backend.vjp(*call, p, self.v, tape, self.precision)

    def hessian_product(self, backend: "Backend") -> tuple[Tensor]:
        """(H v,)."""
        return (backend.hvp(self.spec, self.x, self.packed, self.features, self.v, [], self.precision),)

    def everything(self, backend: "Backend") -> dict[str, Tensor]:
        f, psi = self.prox(backend, value=True)
        (hv,) = self.hessian_product(backend)
        gx, gP = self.gradients(backend, self.p)
        return {"psi": psi, "f": f, "H v": hv, "the gradient in x": gx, "the gradient of the weights": gP}

    def works(self) -> dict[str, Callable[["Backend"], tuple[Tensor, ...]]]:
        value = functools.partial(self.prox, value=True)
        return {PROX: self.prox, VALUE: value, HESSIAN: self.hessian_product, TRAINING: self.gradients}

    def compiled(self) -> dict[str, Call]:
        """With products in TF32 wherever ours are of fewer digits than float32: what c^2 needs of a 16-bit network."""
        from .backends.torch import products

        parameters = {slot.name: self.packed[slot.offset : slot.end].view(slot.shape) for slot in layout(self.spec)}
        network = plain_torch.Compiled(SimpleNamespace(spec=self.spec, get_parameter=parameters.__getitem__))

        def call(work: Callable, *arguments: Tensor) -> object:
            with products(self.x, "fp32" if self.precision == "fp32" else "tf32"):
                return work(*arguments)

        return {
            PROX: functools.partial(call, network.prox, self.x),
            VALUE: functools.partial(call, network.value, self.x),
            HESSIAN: functools.partial(call, network.hvp, self.x, self.v),
            TRAINING: functools.partial(call, network.loss_gradients, self.x, self.v),
        }


def _wrong_at_small_sizes(backend, plain, calls: list[Trial]) -> tuple[str | None, float]:
    worst = 0.0
    for call in calls:
        shape, precision = tuple(call.x.shape), call.precision
        truth, found = call.double().everything(plain), call.everything(backend)
        beside = None
        for what, value in found.items():
            error, allowed = _relative(value, truth[what]), TOLERANCE[precision][what not in FIRST_ORDER]
            worst = max(worst, error)
            if error <= allowed:
                continue
            beside = beside or call.everything(plain)
            if not error <= 2 * _relative(beside[what], truth[what]):  # NaN is no number either
                return f"{what} at {shape} is off by {error:.1e}, {allowed:.0e} is allowed", error
    return None, worst


def _wrong_at_full_size(backend, plain, call: Trial) -> str | None:
    shape = tuple(call.x.shape)
    first, again = ([result for work in call.works().values() for result in work(backend)] for _ in range(2))
    if not all(map(torch.equal, first, again)):
        return f"two calls at {shape} gave different bits"
    for how, launched in getattr(backend, "alternatives", dict)().items():
        with launched:
            others = [result for work in call.works().values() for result in work(backend)]
        apart = max(_relative(other, result.double()) for other, result in zip(others, first, strict=True))
        allowed = TOLERANCE[call.precision][0] / 10  # other tiles may add in another order
        if not apart <= allowed:
            return f"{how}, results at {shape} differ by {apart:.1e}, {allowed:.0e} is allowed"
    what, work = next(iter(call.works().items()))
    error, allowed = _relative(first[0], work(plain)[0].double()), 2 * TOLERANCE[call.precision][0]
    if error <= allowed:
        return None
    return f"the {what} at {shape} is off by {error:.1e} from torch's, {allowed:.0e} is allowed"


def _rivals(call: Trial) -> tuple[dict[str, Call], str]:
    """torch.compile of plain code, compiled, and why there is none of it."""
    reason = plain_torch.why_no_compiler()
    if reason:
        return {}, reason
    try:
        rivals = call.compiled()
        for rival in rivals.values():
            rival()
        return rivals, ""
    except Exception as failure:  # a compiler's, or a network that the plain module is not made for
        return {}, f"torch.compile: {type(failure).__name__}: {_line(failure)}"


def _gains(backend, plain, call: Trial, rivals: dict[str, Call]) -> tuple[dict[str, float], dict[str, float]]:
    """work -> torch's time over ours, and torch.compile's over ours; medians of calls in turns."""
    gains, compiled = {}, {}
    for work, function in call.works().items():
        calls = [functools.partial(function, backend), functools.partial(function, plain)]
        calls += [rivals[work]] if work in rivals else []
        times: list[list[float]] = [[] for _ in calls]
        for number in range(ROUNDS + 1):
            for found, one in zip(times, calls, strict=True):
                elapsed = milliseconds(one, call.x.device)
                if number:  # the first round warms up
                    found.append(elapsed)
        ours, *others = map(statistics.median, times)
        for kept, other in zip((gains, compiled), others, strict=False):
            kept[work] = other / max(ours, 1e-9)
    return gains, compiled


def milliseconds(call: Call, device: torch.device) -> float:
    """The time of one call, by events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


@functools.lru_cache(maxsize=1)
def _representative(spec: Spec) -> Tensor:
    """P, (P,), in which every stage matters: sums of non-negative weights near one, skips that keep x's size."""
    generator = torch.Generator().manual_seed(1)
    packed = torch.empty(parameter_count(spec), device="cpu")
    for slot in layout(spec):
        fan_in = max(1, slot.size // slot.shape[0]) if len(slot.shape) > 1 else slot.size
        values = torch.randn(slot.size, generator=generator, device="cpu")
        if slot.nonnegative:
            values = torch.rand(slot.size, generator=generator, device="cpu") * (2 / fan_in)
        elif len(slot.shape) > 1 and not slot.name.endswith("noise"):
            values = values / fan_in**0.5
        else:
            values = values * 0.1
        packed[slot.offset : slot.end] = values
    return packed


def _relative(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm().clamp_min(1e-300)).item()


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:160]
