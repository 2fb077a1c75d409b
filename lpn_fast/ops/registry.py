"""Which backend runs.

Every backend answers `supports(spec, x, precision)` with None or a reason. With "auto" the first that supports the
call, and was admitted for its work where it has to be, runs it; a backend chosen by name (`use_backend`, or the
environment variable LPN_FAST_BACKEND) runs it or raises with its reason: there is no silent fallback.
"""

import os
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ..algebra.spec import Spec
from ..contract import check_name
from ..kernels.triton.interpreter import interpreted
from . import admission, device_check
from .device_check import PROX, WORKS

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
_to_be_admitted: set[str] = set()  # names of those that "auto" takes only where a check on the device was in favour
_absent: dict[str, str] = {}  # name -> why it cannot run at all
_forced: str | None = None  # set by use_backend; None = ask the environment


def register(backend: Backend, to_be_admitted: bool = False) -> None:
    """Add a backend; earlier ones are preferred.

    One `to_be_admitted` runs by itself only on devices where a check found it right and faster (ops/admission.py).
    """
    _backends[backend.name] = backend
    if to_be_admitted:
        _to_be_admitted.add(backend.name)


def register_absent(name: str, reason: str) -> None:
    """Record why a backend cannot run in this installation."""
    _absent[name] = reason


def chosen() -> str:
    """The name in force: "auto" or a backend's."""
    return _forced or _checked(os.environ.get("LPN_FAST_BACKEND", "auto"), "LPN_FAST_BACKEND")


def reasons(spec: Spec, x: Tensor, precision: str = "fp32") -> dict[str, str | None]:
    """Per backend, in order of preference: None if it supports the call, else why not."""
    return {name: backend.supports(spec, x, precision) for name, backend in _backends.items()} | _absent


def not_admitted(spec: Spec, x: Tensor, precision: str = "fp32", work: str = PROX) -> dict[str, str]:
    """Per backend that supports the call: why "auto" prefers another one for `work`. Nothing is checked for it."""
    found = {}
    for name in _to_be_admitted & _backends.keys():
        if _backends[name].supports(spec, x, precision) is None:
            reason = refusal(_backends[name], _backends["torch"], spec, x, precision, work, ask=False)
            if reason:
                found[name] = reason
    return found


def choices(
    spec: Spec, x: Tensor, precision: str = "fp32"
) -> tuple[dict[str, Backend], dict[str, dict[str, str | None]]]:
    """Work -> the backend that runs it; name -> work -> why that one is not taken, or None."""
    runs = {work: select(spec, x, precision, work) for work in WORKS}
    slower = {work: not_admitted(spec, x, precision, work) for work in WORKS}
    able = reasons(spec, x, precision)
    return runs, {name: {work: reason or slower[work].get(name) for work in WORKS} for name, reason in able.items()}


def examine(
    spec: Spec, device: torch.device, precision: str, packed: Tensor | None = None, compiled: bool = True
) -> dict[str, "admission.Verdict | str"]:
    """Check every backend that has to be admitted, whatever is known: its verdict, or why it cannot run."""
    x = torch.empty(device_check.small_shapes(spec)[0], device=device)
    found: dict[str, admission.Verdict | str] = {name: _absent[name] for name in ("cuda", "triton") if name in _absent}
    for name, backend in _backends.items():
        if name in _to_be_admitted:
            reason = backend.supports(spec, x, precision)
            plain = _backends["torch"]
            found[name] = reason or admission.examine(backend, plain, spec, device, precision, packed, compiled)
    return found


def select(spec: Spec, x: Tensor, precision: str = "fp32", work: str = PROX) -> Backend:
    """The backend that runs this call; `work` is one of device_check.WORKS."""
    name = chosen()
    if name != "auto":
        if name in _absent:
            raise RuntimeError(f"backend {name!r} was asked for but is not here: {_absent[name]}")
        reason = _backends[name].supports(spec, x, precision)
        if reason:
            raise RuntimeError(f"backend {name!r} was asked for but cannot run this: {reason}")
        raise_if_unproven(_backends[name], _backends["torch"], spec, x, precision)
        return _backends[name]
    refused = {}
    for name, backend in _backends.items():
        if backend.supports(spec, x, precision) is None:
            admit = name in _to_be_admitted
            reason = refusal(backend, _backends["torch"], spec, x, precision, work) if admit else None
            if reason is None:
                return backend
            refused[name] = reason
    if refused:
        raise RuntimeError(f"no backend that was admitted runs this in precision {precision!r}: {refused}")
    raise RuntimeError(f"no backend runs this in precision {precision!r}: {reasons(spec, x, precision)}")


def refusal(backend, plain, spec, x: Tensor, precision: str, work: str, ask: bool = True) -> str | None:
    """Why "auto" passes a backend over that has to be admitted: ops/admission.py, and never under the interpreter."""
    if interpreted():
        return f"runs under Triton's interpreter here; force it with LPN_FAST_BACKEND={backend.name}"
    return admission.refusal(backend, plain, spec, x, precision, work, ask)


def raise_if_unproven(backend, plain, spec, x: Tensor, precision: str) -> None:
    """Not even who asks by name gets wrong results from a device on which a backend was never seen to work."""
    must = getattr(backend, "must_be_checked", None)
    if must is None or not must(x):
        return
    found = admission.verdict(backend, plain, spec, x, precision)
    wrong = "it was not checked on this device, see lpn-fast tune" if found is None else found.wrong
    if wrong:
        raise RuntimeError(f"backend {backend.name!r} was asked for but cannot run this: {wrong}")


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
    check_name(what, name, NAMES)
    return name
