"""Checkpoints: safetensors with a JSON header. Reading one executes no code.

Header entries (safetensors metadata): format = "lpn-fast", version, family (the class, see networks/registry.py),
spec (the architecture), card (anything known of the model: noise level, value range, data, training),
alpha_convention = "alpha/2 |x|^2".
"""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import atomic
from ..algebra.parameters import Slot, layout
from ..algebra.spec import Spec, from_dict, to_dict
from ..contract import check_device, did_you_mean
from .explicit import ExplicitLPN
from .explicit_spec import ExplicitSpec
from .lpn import LPN
from .registry import network_class, stored_name

VERSION = 1
OLDEST = "RidgeLPN"  # files without the entry are of this family, or of none
MOST_SKEW = 1e-4  # what the certificate of an explicit prior has to spare is a hundred times as much
_ALPHA = "alpha/2 |x|^2"


def save(model: LPN | ExplicitLPN, path: str | Path) -> Path:
    """Write `model` to `path` (usually *.safetensors), through a temporary file and a rename.

    Returns
    -------
    Path
        Where it lies.

    Raises
    ------
    TypeError
        `model` is not an LPN.
    ValueError
        A parameter is NaN or infinite; it is named.
    OSError
        The folder cannot be written to, or is full; what was at `path` is still there.

    Examples
    --------
    >>> import pathlib, tempfile, lpn_fast as lf
    >>> folder = tempfile.TemporaryDirectory()
    >>> lf.save(lf.MLPLPN(dim=3), pathlib.Path(folder.name, "mine.safetensors")).name
    'mine.safetensors'
    """
    if not isinstance(model, LPN | ExplicitLPN):
        raise TypeError(f"model must be an lpn_fast.LPN, got {type(model).__name__}")
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity; nothing was written")
    header = {
        "format": "lpn-fast",
        "version": str(VERSION),
        "family": stored_name(type(model)),
        "alpha_convention": _ALPHA,
        "spec": json.dumps(model.spec.to_dict() if isinstance(model, ExplicitLPN) else to_dict(model.spec)),
        "card": json.dumps(model.card),
    }
    path = Path(path)
    try:
        with atomic.replacing(path) as temporary:
            save_file(tensors, temporary, metadata=header)
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    return path


def load(path: str | Path, device: str | torch.device = "cpu") -> LPN:
    """Read a model written by `save`, in evaluation mode and of the class it had if that is a registered family.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Truncated, foreign or newer file, parameters that do not fit, NaN, infinite or negative weights.

    Examples
    --------
    >>> import pathlib, tempfile, lpn_fast as lf
    >>> folder = tempfile.TemporaryDirectory()
    >>> type(lf.load(lf.save(lf.MLPLPN(dim=3), pathlib.Path(folder.name, "mine.safetensors")))).__name__
    'MLPLPN'
    """
    check_device(device)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}{_near(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file (truncated or foreign): {error}") from error
    if header.get("format") != "lpn-fast":
        raise ValueError(f"{path} must be written by lpn_fast.save, its header says format={header.get('format')!r}")
    try:
        version, card = int(header["version"]), json.loads(header.get("card", "{}"))
        if not isinstance(card, dict):
            raise ValueError(f"its card must be a JSON object, got {type(card).__name__}")
        spec = _spec_of(json.loads(header["spec"])) if version <= VERSION else None
        slots = () if spec is None else spec.slots() if isinstance(spec, ExplicitSpec) else layout(spec)
    except Exception as error:  # a header is outside input: whatever it provokes concerns this file only
        raise ValueError(f"{path} must have a readable header, this one is damaged: {error!r}") from error
    if spec is None:
        raise ValueError(f"{path} has checkpoint version {version}, this lpn_fast reads up to {VERSION}")
    _check_tensors(path, tensors, slots)
    model = ExplicitLPN.of_spec(spec) if isinstance(spec, ExplicitSpec) else _of_family(header.get("family"), spec)
    model = model.to(next(iter(tensors.values())).dtype)
    model.load_state_dict(tensors)
    if isinstance(model, ExplicitLPN) and (skew := model.skewness()) > MOST_SKEW:
        raise ValueError(
            f"{path}: atoms must be orthonormal, or spectra of filters at most 1, to {MOST_SKEW:g}, "
            f"got an error of {skew:.1e}"
        )
    model.card, model.source = card, str(path)
    return cast(LPN, model.to(device).eval())  # explicit priors answer the same calls


def _near(path: Path) -> str:
    """What may have been meant by a path that leads nowhere."""
    shipped = resources.files("lpn_fast") / "pretrained" / f"{path}.safetensors"
    if path.parent == Path(".") and shipped.is_file():
        return f"; lf.pretrained({str(path)!r}) loads the shipped model of that name"
    beside = [entry.name for entry in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
    return did_you_mean(path.name, beside)


def _spec_of(data: dict) -> Spec | ExplicitSpec:
    explicit = isinstance(data, dict) and data.get("kind") == ExplicitSpec.kind
    return ExplicitSpec.from_dict(data) if explicit else from_dict(data)


def _of_family(name: str | None, spec: Spec) -> LPN:
    """A fresh model of that class, or an LPN, which has the same f, where the class is unknown or has no such spec."""
    family = network_class(name or OLDEST) or LPN
    if not family.has_form_of(spec):
        family = LPN
    model = family.__new__(family)
    LPN.__init__(model, spec)  # a family's own arguments are in the spec already
    return model


def _check_tensors(path: Path, tensors: dict[str, torch.Tensor], slots: Sequence[Slot]) -> None:
    expected = {slot.name: slot for slot in slots}
    if set(tensors) != set(expected):
        raise ValueError(
            f"{path} does not fit its own spec: missing {sorted(set(expected) - set(tensors))}, "
            f"unexpected {sorted(set(tensors) - set(expected))}"
        )
    for name, tensor in tensors.items():
        slot = expected[name]
        if tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{path}: {name} must have shape {slot.shape}, got {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} must be finite, got NaN or infinity")
        if slot.nonnegative and (tensor < 0).any():
            raise ValueError(f"{path}: {name} must be non-negative, got a minimum of {tensor.min().item():g}")
