"""Which backend runs.

Every backend answers `supports(spec, x, precision)` with None or a reason. With "auto" the first that supports the
call runs it; a backend chosen by name (`use_backend`, or the environment variable LPN_FAST_BACKEND) runs
it or raises with its reason: there is no silent fallback.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from ..algebra.spec import Spec

NAMES = ("auto", "torch", "cpu", "triton", "cuda")


class Backend(Protocol):
    """The primitives of one backend. Shapes as in ops/schema.py; tensors are plain and of one dtype and device,
    but for a tape, which is in the storage type of `precision` (ops/precision.py). The tape of a dense network may be
    another backend's, and is then ignored."""

    name: str

    def supports(self, spec: Spec, x: Tensor, precision: str) -> str | None: ...

    def evaluate(
        self,
        spec: Spec,
        x: Tensor,
        packed: Tensor,
        features: Tensor | None,
        value: bool,
        tape: bool,
        precision: str,
    ) -> tuple[Tensor | None, Tensor, list[Tensor]]: ...

    def hvp(
        self,
        spec: Spec,
        x: Tensor,
        packed: Tensor,
        features: Tensor | None,
        v: Tensor,
        tape: list[Tensor],
        precision: str,
    ) -> Tensor: ...

    def vjp(
        self,
        spec: Spec,
        x: Tensor,
        packed: Tensor,
        features: Tensor | None,
        p: Tensor | None,
        v: Tensor | None,
        tape: list[Tensor],
        precision: str,
    ) -> tuple[Tensor, Tensor]: ...

    def dense_tape(self, spec: Spec, x: Tensor) -> list[Tensor]:
        """Memory for the tape of a dense network; shapes, types and devices say what evaluate gives."""
        ...


_backends: dict[str, Backend] = {}  # in order of preference
_speed_checks: dict[str, "SpeedCheck"] = {}  # name -> None where it was measured faster, else why "auto" passes it over
_absent: dict[str, str] = {}  # name -> why it cannot run at all
_forced: str | None = None  # set by use_backend; None = ask the environment


SpeedCheck = Callable[[Spec, Tensor, str], str | None]


def register(backend: Backend, speed_check: SpeedCheck | None = None) -> None:
    """Add a backend; earlier ones are preferred.

    `speed_check(spec, x, precision)` is asked about calls that the backend supports: None where it was measured
    faster, else why "auto" prefers another backend that supports them.
    """
    _backends[backend.name] = backend
    if speed_check is not None:
        _speed_checks[backend.name] = speed_check


def register_absent(name: str, reason: str) -> None:
    """Record why a backend cannot run in this installation."""
    _absent[name] = reason


def chosen() -> str:
    """The name in force: "auto" or a backend's."""
    return _forced or _checked(os.environ.get("LPN_FAST_BACKEND", "auto"), "LPN_FAST_BACKEND")


def reasons(spec: Spec, x: Tensor, precision: str = "fp32") -> dict[str, str | None]:
    """Per backend, in order of preference: None if it supports the call, else why not."""
    return {name: backend.supports(spec, x, precision) for name, backend in _backends.items()} | _absent


def not_measured_faster(spec: Spec, x: Tensor, precision: str = "fp32") -> dict[str, str]:
    """Per backend that supports the call: why "auto" prefers another one, if it was not measured faster."""
    found = {}
    for name, speed_check in _speed_checks.items():
        if _backends[name].supports(spec, x, precision) is None:
            reason = speed_check(spec, x, precision)
            if reason:
                found[name] = reason
    return found


def select(spec: Spec, x: Tensor, precision: str = "fp32") -> Backend:
    """The backend that runs this call."""
    name = chosen()
    if name != "auto":
        if name in _absent:
            raise RuntimeError(f"backend {name!r} was asked for but is not here: {_absent[name]}")
        reason = _backends[name].supports(spec, x, precision)
        if reason:
            raise RuntimeError(f"backend {name!r} was asked for but cannot run this: {reason}")
        return _backends[name]
    passed_over = None
    for name, backend in _backends.items():
        if backend.supports(spec, x, precision) is None:
            speed_check = _speed_checks.get(name)
            if speed_check is None or not speed_check(spec, x, precision):
                return backend
            passed_over = passed_over or backend
    if passed_over is not None:
        return passed_over
    raise RuntimeError(f"no backend runs this in precision {precision!r}: {reasons(spec, x, precision)}")


def stores_activations(spec: Spec, x: Tensor, precision: str = "fp32") -> bool:
    """Whether an evaluation writes activations to memory: a large batch is then better cut to what a cache holds."""
    in_one_pass = getattr(select(spec, x, precision), "in_one_pass", None)
    return in_one_pass is None or not in_one_pass(spec, precision)


class use_backend(AbstractContextManager):
    """Choose the backend by name, from now on or for a `with` block.

    Parameters
    ----------
    name : str
        "torch", "cpu", "triton", "cuda", or "auto" for the first that supports each call.

    Raises
    ------
    ValueError
        An unknown name.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> with lf.use_backend("torch"):
    ...     pass
    """

    def __init__(self, name: str):
        global _forced
        self._before = _forced
        _forced = _checked(name, "backend")

    def __exit__(self, *_):
        global _forced
        _forced = self._before


def _checked(name: str, what: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{what} must be one of {', '.join(NAMES)}, got {name!r}")
    return name
