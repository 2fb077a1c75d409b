"""The resume file: everything that decides the rest of a run, as safetensors with a JSON header.

Tensors: model.*, adam.exp_avg.*, adam.exp_avg_sq.*, adam.step.*, generator, states.* (solver trajectories).
Written to a temporary file, synced and renamed, so that a kill at any moment leaves the last complete state.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
    states: dict[str, Tensor],
    progress: dict,
) -> None:
    """Write the state; `progress` is JSON-ready (step, configuration fingerprint)."""
    tensors: dict[str, Tensor] = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{key}.{name}"] = value
    tensors |= {f"states.{name}": t for name, t in states.items()}
    tensors["generator"] = generator.get_state()
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "lpn-fast-training", "progress": json.dumps(progress)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_progress(path: Path) -> dict:
    """The progress entry of a resume file; ValueError if it is none."""
    return _open(path)[0]


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Adam, generator: torch.Generator
) -> tuple[dict, dict[str, Tensor]]:
    """Restore the state in place; returns the progress entry and the solver states."""
    progress, tensors = _open(path)
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for name, parameter in model.named_parameters():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            stored = tensors.get(f"adam.{key}.{name}")
            if stored is not None:
                state[key] = stored if key == "step" else stored.to(parameter.device)
        if state:
            optimizer.state[parameter] = state
    generator.set_state(tensors["generator"])
    return progress, {n.removeprefix("states."): t for n, t in tensors.items() if n.startswith("states.")}


def _open(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable resume file: {error}; remove it to start anew") from error
    if header.get("format") != "lpn-fast-training":
        raise ValueError(f"{path} is not a resume file of lpn-fast train; remove it to start anew")
    return json.loads(header["progress"]), tensors
