"""Which kernels "auto" takes on a device: those that a check on that very device found right, for the works where they
are faster.

The first call for which a backend, a network, a precision and a device meet runs the check (ops/device_check.py), some
seconds and once; `lpn-fast tune` does it ahead. Speed decides work by work (prox, value, Hessian product, parameter
gradients), what is right is decided once. The verdict is kept in a folder of the user, one file each:

    $LPN_FAST_CACHE, else $XDG_CACHE_HOME/lpn_fast, else ~/.cache/lpn_fast

and holds for the device, driver, versions and sources it was found with. A file that cannot be read asks again. With
LPN_FAST_TUNE=off nothing is checked, and what is known still counts. Nothing is checked where a call is being captured
into a CUDA graph, traced or transformed: what was not checked before does not run there.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .. import atomic
from ..algebra.spec import Spec
from .device_check import Findings, check
from .tracing import is_eager

if TYPE_CHECKING:
    from .registry import Backend

# A work must gain this at least over torch, and not lose as much against torch.compile: less is the spread of two runs.
LEAST_GAIN = 1.05
FORMAT = 3
_log = logging.getLogger("lpn_fast")
_known: dict[tuple, "Verdict"] = {}  # in this process
_lock = threading.RLock()


@dataclass(frozen=True)
class Verdict:
    """What the check of a backend found, and where."""

    backend: str
    precision: str
    network: str  # digest of the spec
    stages: list[int]  # its widths, for people
    where: dict[str, str]  # device, driver, versions, sources
    findings: Findings

    @property
    def wrong(self) -> str | None:
        """Why the kernels must not run here, whatever the work; None: they are right.

        All works share their loads, products and tiles. Where one of them came out wrong, a compiler or a device does
        not do what the others count on, and that their own check did not meet it is luck.
        """
        return self.findings.wrong

    def refusal(self, work: str) -> str | None:
        """Why "auto" does not take them for `work`, one of those that were timed."""
        if self.wrong:
            return f"checked on this device and not used: {self.wrong}"
        gain, compiled = self.findings.gains.get(work), self.findings.compiled.get(work)
        if gain is None:
            return f"right, but {work} was not timed on this device"
        if gain < LEAST_GAIN:
            return f"right, but not faster than torch on this device ({work} {gain:.2f} times its speed)"
        if compiled is not None and compiled < 1 / LEAST_GAIN:
            plain = "torch.compile of the plain network"
            return f"right, but slower than {plain} on this device ({work} {compiled:.2f} times its speed)"
        return None

    def __str__(self) -> str:
        where = f"{self.where['device']}, {self.backend}, widths {self.stages}, {self.precision}"
        if self.wrong:
            return f"{where}: not used, {self.wrong}"
        parts = [f"right, error {self.findings.error:.0e}"]
        for title, admitted in (("admitted", True), ("not faster and left to others", False)):
            works = [work for work in self.findings.gains if (self.refusal(work) is None) == admitted]
            if works:
                parts.append(f"{title}: {', '.join(map(self._speed, works))}")
        reason = f" ({self.findings.not_compiled})" if self.findings.not_compiled else ""
        return f"{where}: {'; '.join(parts)}{reason}"

    def _speed(self, work: str) -> str:
        compiled = self.findings.compiled.get(work)
        beside = "" if compiled is None else f" and {compiled:.2f} times torch.compile's"
        return f"{work} {self.findings.gains[work]:.2f} times torch's speed{beside}"


def verdict(
    backend: "Backend", plain: "Backend", spec: Spec, x: Tensor, precision: str, ask: bool = True
) -> Verdict | None:
    """What is known of `backend` for calls like this one, checked now if need be; None: nothing, and not now.

    `plain` is the torch backend, the truth in float64 and what it has to beat. Without `ask` nothing is checked.
    """
    key = (backend.name, spec, precision, x.device)
    found = _known.get(key)
    if found is not None or x.device.type == "meta":
        return found
    with _lock:
        found = _known.get(key) or _read(_file(backend.name, spec, precision, x.device))
        if found is None and ask and _may_check(x):
            found = examine(backend, plain, spec, x.device, precision)
        if found is not None:
            _known[key] = found
        return found


def examine(
    backend: "Backend",
    plain: "Backend",
    spec: Spec,
    device: torch.device,
    precision: str,
    packed: Tensor | None = None,
    compiled: bool = False,
) -> Verdict:
    """Check now, whatever is known, and keep the verdict. `packed` (P,): the weights to check with; None: random.

    `compiled`: beside torch.compile, too. First calls leave that out: it compiles for a minute.
    """
    _log.warning(
        "lpn_fast: checking the %s kernels in %s on %s, once", backend.name, precision, where(device)["device"]
    )
    findings = check(backend, plain, spec, device, precision, packed, compiled)
    found = Verdict(
        backend.name, precision, _digest(spec), [s.width for s in spec.stages], where(device), findings
    )  # fmt: skip
    _known[backend.name, spec, precision, device] = found
    if findings.lasting:
        path = _file(backend.name, spec, precision, device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, json.dumps({"format": FORMAT} | asdict(found), indent=1).encode())
        except OSError as error:  # it holds for this process, then
            _log.warning("lpn_fast: %s cannot be written (%s); the check is repeated by the next process", path, error)
    _log.warning("lpn_fast: %s", found)
    return found


def refusal(
    backend: "Backend", plain: "Backend", spec: Spec, x: Tensor, precision: str, work: str, ask: bool = True
) -> str | None:
    """Why "auto" passes `backend` over for calls like this one, or None."""
    found = verdict(backend, plain, spec, x, precision, ask)
    if found is not None:
        return found.refusal(work)
    name = where(x.device)["device"]
    return f"not checked on {name} yet: a first call outside of graphs does, or lpn-fast tune; force it with " + (
        f"LPN_FAST_BACKEND={backend.name}"
    )


def kept() -> list[Verdict]:
    """All verdicts in the user's folder that can be read."""
    found = (_read(path) for path in sorted(folder().glob("*.json")))
    return [verdict for verdict in found if verdict is not None]


def folder() -> Path:
    """Where verdicts are kept."""
    own = os.environ.get("LPN_FAST_CACHE")
    if own:
        return Path(own) / "verdicts"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpn_fast" / "verdicts"


@functools.cache
def where(device: torch.device) -> dict[str, str]:
    """The surroundings that a verdict holds for."""
    facts = {"device": str(device), "driver": "", "torch": torch.__version__, "triton": _version("triton")}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts["device"] = f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
        facts["driver"] = str(torch._C._cuda_getDriverVersion())
    return facts | {"sources": _sources()}


def checks_are_on() -> bool:
    """Whether LPN_FAST_TUNE lets first calls check."""
    setting = os.environ.get("LPN_FAST_TUNE", "on")
    if setting not in ("on", "off"):
        raise ValueError(f"LPN_FAST_TUNE must be on or off, got {setting!r}")
    return setting == "on"


def _may_check(x: Tensor) -> bool:
    """Whether this is a moment to launch other work, and wait for it: x has data, and nobody records what happens."""
    if not (checks_are_on() and is_eager()) or isinstance(x, FakeTensor):
        return False
    return not (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def _file(name: str, spec: Spec, precision: str, device: torch.device) -> Path:
    key = json.dumps([FORMAT, name, precision, _digest(spec), where(device)], sort_keys=True)
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Verdict | None:
    try:
        data = json.loads(path.read_bytes())
        if data.pop("format") != FORMAT:
            return None
        return Verdict(**(data | {"findings": Findings(**data["findings"])}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # absent, cut off, or of another kind
        return None


def _digest(spec: Spec) -> str:
    return hashlib.sha256(spec.encoded.encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def _sources() -> str:
    """Digest of what decides what a kernel computes and how it is launched."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    files = [*(root / "kernels").rglob("*.py"), *(root / "kernels").rglob("*.csv"), *(root / "ops").rglob("*.py")]
    for path in sorted([*files, *root.glob("_cuda*.so")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
