"""The state of a run: everything that decides what comes next. In memory for going back, as a file for going on.

Tensors: model.*, adam.{step, exp_avg, exp_avg_sq}.*, average.* (averaged weights), generator;
and `progress`, which is JSON-ready. The file is safetensors with progress in its header, written to
a temporary file, synced and renamed: a kill or a full disk at any moment leaves the last complete state.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import atomic

FORMAT = "lpn-fast-training"
RESUME = "resume.safetensors"  # in the folder of a run


@dataclass(frozen=True)
class Snapshot:
    """Copies of all tensors of a run, and its progress."""

    tensors: dict[str, Tensor]
    progress: dict

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Copies of the tensors whose names start with `prefix` and a dot, without these."""
        start = prefix + "."
        return {n.removeprefix(start): t.clone() for n, t in self.tensors.items() if n.startswith(start)}


def take(
    model: nn.Module,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
    progress: dict,
    *,
    average: dict[str, Tensor] | None = None,
) -> Snapshot:
    """Copy the state of a run."""
    tensors: dict[str, Tensor] = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{key}.{name}"] = value
    tensors |= {f"average.{name}": t for name, t in (average or {}).items()}
    tensors["generator"] = generator.get_state()
    return Snapshot({name: t.detach().clone() for name, t in tensors.items()}, dict(progress))


def restore(
    snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Adam, generator: torch.Generator
) -> dict[str, Tensor]:
    """Put model, optimizer and generator back in place; returns the averaged weights."""
    model.load_state_dict(snapshot.part("model"))
    for name, parameter in model.named_parameters():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            stored = snapshot.tensors.get(f"adam.{key}.{name}")
            if stored is not None:  # in the memory format of the parameter, which a file does not keep
                stored = stored.clone() if key == "step" else torch.empty_like(parameter).copy_(stored)
                state[key] = stored
        if state:
            optimizer.state[parameter] = state
        else:  # the state before the first step
            optimizer.state.pop(parameter, None)
    generator.set_state(snapshot.tensors["generator"].cpu())
    average = snapshot.part("average")  # a file sorts by name
    return {n: torch.empty_like(p).copy_(average[n]) for n, p in model.named_parameters()} if average else {}


def is_resume_file(path: Path) -> bool:
    """Whether a file says that it is one; False for whatever else there may be, or nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


@torch.no_grad()
def take_weights_(model: nn.Module, path: Path) -> None:
    """Put the weights of an interrupted run, averaged ones where it has them, into a model of its kind."""
    snapshot = read(path)
    try:
        model.load_state_dict(snapshot.part("model") | snapshot.part("average"))
    except RuntimeError as error:
        raise ValueError(
            f"model.start must be a run of the same network, {path} is of another; repeat the options of the model "
            f"that it was started with: {error}"
        ) from error


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot; OSError if that fails, and what lay at `path` still lies there."""
    tensors = {name: t.cpu().contiguous() for name, t in snapshot.tensors.items()}
    try:
        header = {"format": FORMAT, "progress": json.dumps(snapshot.progress)}
        header["sha256"] = _digest(tensors, header["progress"])
        with atomic.replacing(path) as temporary:
            save_file(tensors, temporary, metadata=header)
    except SafetensorError as error:  # what a full disk becomes on its way through safetensors
        raise OSError(f"{path} cannot be written: {error}") from error


def read(path: Path) -> Snapshot:
    """A snapshot from its file; ValueError if the file is torn or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable resume file: {error}; remove it to start anew") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a resume file of lpn-fast train; remove it to start anew")
    if "sha256" not in header:
        raise ValueError(f"{path} is of an earlier version, which wrote no checksum; remove it to start anew")
    if header["sha256"] != _digest(tensors, header.get("progress", "")):
        raise ValueError(f"{path} is damaged: its content is not what was written; remove it to start anew")
    return Snapshot(tensors, json.loads(header["progress"]))


def _digest(tensors: dict[str, Tensor], progress: str) -> str:
    """Checksum of everything in the file."""
    digest = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
