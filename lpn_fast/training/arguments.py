"""The arguments of a training run: whether they go together, and what tells one run from another."""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trainer import Trainer


def check(run: "Trainer") -> None:
    """Raise a ValueError that names the first argument that is out of range or does not go with another."""
    if not run.phases:
        raise ValueError("phases must hold at least one Phase, got none")
    if run.validate_every < 1:
        raise ValueError(f"validate_every must be at least 1, got {run.validate_every}")
    if not run.expansion_weight >= 0:
        raise ValueError(f"expansion_weight must be zero or positive, got {run.expansion_weight}")
    if run.margin < 0 or (run.margin and run.model.spec.is_dense):
        raise ValueError(f"margin must be zero or positive, and zero for vectors, got {run.margin}")
    if run.clip_norm is not None and not run.clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {run.clip_norm}")
    if not run.model.is_noise_conditional and any(phase.gamma_unit == "sigma" for phase in run.phases):
        raise ValueError("gamma_unit='sigma' is for noise-conditional networks, this one has a single noise level")
    if run.group.size > 1 and (run.problems is not None or run.expansion_weight):
        raise ValueError("problems and expansion_weight need a single process")
    if run.problems is not None:
        if len(run.model.spec.axes) != 2:
            kind = "vectors" if run.model.spec.is_dense else "volumes"
            raise ValueError(f"problems are for image models, got one of {kind}")
        if run.expansion_weight or run.precision != "fp32":
            raise ValueError(
                f"problems go with expansion_weight=0 and precision='fp32', got {run.expansion_weight}, "
                f"{run.precision!r}"
            )
    before = run.model.precision
    run.model.precision = run.precision  # the setter raises if it is not available
    run.model.precision = before


def settings(run: "Trainer") -> dict:
    """What makes two runs the same run, by its name; JSON-ready."""
    found = {
        "model": hashlib.sha256(run.model.spec.encoded.encode()).hexdigest()[:16],
        "schedule": [dataclasses.asdict(phase) for phase in run.phases],
        "sigma": run.batches.sigma_range,
        "batch_size": run.batches.batch_size,
        "seed": run.seed,
        "gain_limit": run.gain_limit,
        "expansion_weight": run.expansion_weight,
        "margin": run.margin,
        "clip_norm": run.clip_norm,
        "ema_decay": None if run.average is None else run.average.decay,
        "precision": run.precision,
        "task": None if run.problems is None else repr(run.problems),
        "data": getattr(run.batches.sampler, "fingerprint", ""),
    }
    return json.loads(json.dumps(found))  # as it is read again
