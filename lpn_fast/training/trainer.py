"""The training loop.

    x ~ data,   y = x + sigma n,   minimise  loss(f(y), x)  with Adam,   then project W, w, g onto >= 0

sigma is fixed, or drawn per sample, uniform in log sigma, for noise-conditional networks; losses are then
weighted by 1 / sigma^2, that is, errors are measured in units of the noise, so that no level drowns the
others. A run is a function of its arguments and its seed: stopped and resumed, it ends in the same weights.
"""

import csv
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..networks import LPN, limit_gain_, save
from .expansion import expansion_penalty
from .schedule import Phase, locate
from .state import load_state, read_progress, save_state
from .trajectories import SolverStates

Sampler = Callable[[int, torch.Generator], Tensor]  # (batch size, generator) -> clean samples (N, ...)


class Trainer:
    """Trains `model` in place.

    Parameters
    ----------
    model : LPN
    sampler : callable
        ``sampler(batch_size, generator)`` gives clean samples, (batch_size, dim) or (batch_size, C, H, W), on
        the CPU; all its randomness comes from `generator`.
    phases : list of Phase
    sigma : float or (float, float)
        Noise standard deviation, or the range it is drawn from for a noise-conditional model.
    batch_size : int
    seed : int
        Of the data, the noise and the drawn sigmas. (The model's start is the caller's.)
    gain_limit : float, optional
        Keep the asymptotic gain of f at most this after every step; below 1 the learned R is coercive and
        solvers cannot run away (networks/gain.py). None lets it be.
    noise : callable
        ``noise(shape, generator=..., dtype=...)`` -> standard normal samples; torch.randn unless told otherwise.
    expansion_weight : float
        Weight of the expansion penalty (training/expansion.py) on a quarter of every batch, its last samples
        (solver states, where there are any); image models only. 0 switches it off.
    states : SolverStates, optional
        Deblurring problems that join every batch (training/trajectories.py), for image models.
    out : path, optional
        Folder for `resume.safetensors`, `log.csv` and at the end `model.safetensors`. If it holds a resume
        file of the same configuration the run continues there. None keeps everything in memory.
    validate : callable, optional
        ``validate(model)`` -> dict of figures, called every `validate_every` steps and at the end.
    checkpoint_seconds : float
        Time between resume files.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        Bad arguments; a resume file of another configuration.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> from lpn_fast.training import Phase, Trainer
    >>> model = lf.MLPLPN(dim=1, hidden=8, layers=1)
    >>> sampler = lambda n, generator: torch.randn(n, 1, generator=generator)
    >>> run = Trainer(model, sampler, [Phase("l2", 3, 1e-3)], sigma=0.5, batch_size=16, progress=False).run()
    >>> run["step"]
    3
    """

    def __init__(
        self,
        model: LPN,
        sampler: Sampler,
        phases: list[Phase],
        *,
        sigma: float | tuple[float, float],
        batch_size: int,
        seed: int = 0,
        gain_limit: float | None = None,
        states: SolverStates | None = None,
        expansion_weight: float = 0.0,
        noise: Callable[..., Tensor] = torch.randn,
        out: str | Path | None = None,
        validate: Callable[[LPN], dict] | None = None,
        validate_every: int = 1000,
        checkpoint_seconds: float = 60.0,
        progress: bool = True,
    ):
        if not phases:
            raise ValueError("phases must hold at least one Phase, got none")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.sampler, self.phases = model, sampler, list(phases)
        self.sigma_range = _sigma_range(sigma, model.is_noise_conditional)
        if not expansion_weight >= 0:
            raise ValueError(f"expansion_weight must be zero or positive, got {expansion_weight}")
        self.batch_size, self.seed, self.gain_limit, self.states = batch_size, seed, gain_limit, states
        self.expansion_weight, self.noise = expansion_weight, noise
        self.out = None if out is None else Path(out)
        self.validate, self.validate_every = validate, validate_every
        self.checkpoint_seconds, self.progress = checkpoint_seconds, progress
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.phases[0].learning_rate)
        self.step = 0
        self.total_steps = sum(phase.steps for phase in self.phases)

    def run(self) -> dict:
        """Train to the end of the last phase.

        Returns
        -------
        dict
            step, seconds (of this session), loss (of the last step) and what `validate` gave at the end.

        Raises
        ------
        FloatingPointError
            The loss became NaN or infinite; the resume file still holds the last good state.
        """
        self._resume()
        started = saved = time.monotonic()
        first, loss = self.step, math.nan
        bar = tqdm(total=self.total_steps, initial=first, disable=not self.progress, unit="step", desc="train")
        self.model.train()
        while self.step < self.total_steps:
            loss = self._one_step()
            self.step += 1
            bar.update()
            if self.step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.4g}", refresh=False)
            if self.step % 200 == 0 and not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {self.step}; lower the learning rate and run again, "
                    "which continues from the last resume file"
                )
            if self.step % self.validate_every == 0 and self.step < self.total_steps:
                self._log(loss, started)
            if self.out is not None and time.monotonic() - saved > self.checkpoint_seconds:
                self._checkpoint()
                saved = time.monotonic()
        bar.close()
        self.model.eval()
        figures = self._log(loss, started)
        result = {"step": self.step, "seconds": round(time.monotonic() - started, 1), **figures}
        if self.out is not None:
            self._checkpoint()
            save(self.model, self.out / "model.safetensors")
        return result

    def _one_step(self) -> Tensor:
        index, within = locate(self.phases, self.step)
        phase = self.phases[index]
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(within)
        x, y, sigma = self._batch()
        pred = self.model(y, sigma if self.model.is_noise_conditional else None)
        weight = sigma**-2 if self.model.is_noise_conditional else None
        loss = phase.criterion()(pred, x, weight)
        if self.expansion_weight:
            last = slice(-max(1, len(y) // 4), None)
            level = sigma[last] if self.model.is_noise_conditional else None
            penalty = expansion_penalty(self.model, y[last], pred[last], level, self.generator)
            loss = loss + self.expansion_weight * penalty
        if self.states is not None:
            self.states.advance(pred[-self.states.count :])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.model.project_()
        if self.gain_limit is not None:
            limit_gain_(self.model, self.gain_limit)
        return loss.detach()

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """(clean x, noisy y, sigma (N,)), on the model's device."""
        own = next(self.model.parameters())
        x = self.sampler(self.batch_size, self.generator).to(own.dtype)
        low, high = self.sigma_range
        sigma = torch.rand(x.shape[0], generator=self.generator, dtype=x.dtype)
        sigma = low * (high / low) ** sigma
        noise = self.noise(x.shape, generator=self.generator, dtype=x.dtype)
        y = x + sigma.view(-1, *(1,) * (x.dim() - 1)) * noise
        if self.states is not None:
            more = self.states.inputs(self.sampler, self.sigma_range, self.generator, x.dtype)
            x, y, sigma = (torch.cat(pair) for pair in zip((x, y, sigma), more, strict=True))
        return x.to(own.device), y.to(own.device), sigma.to(own.device)

    def _log(self, loss, started: float) -> dict:
        """Validate, append a row to log.csv, return the figures."""
        figures = {"loss": float(loss)}
        if self.validate is not None:
            self.model.eval()
            figures |= self.validate(self.model)
            self.model.train(self.step < self.total_steps)
        if self.out is not None:
            row = {"step": self.step, "seconds": round(time.monotonic() - started, 1)} | figures
            path = self.out / "log.csv"
            fresh = not path.exists()
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
        return figures

    def _fingerprint(self) -> str:
        """Digest of what makes two runs the same run."""
        parts = [
            self.model.spec.encoded,
            json.dumps([dataclasses.asdict(phase) for phase in self.phases]),
            json.dumps([self.sigma_range, self.batch_size, self.seed, self.gain_limit, self.expansion_weight]),
            "" if self.states is None else json.dumps([self.states.count, self.states.blur, self.states.longest]),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _checkpoint(self) -> None:
        progress = {"step": self.step, "fingerprint": self._fingerprint()}
        states = {} if self.states is None else self.states.tensors
        save_state(self.out / "resume.safetensors", self.model, self.optimizer, self.generator, states, progress)

    def _resume(self) -> None:
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "resume.safetensors"
        if not path.exists():
            return
        if read_progress(path)["fingerprint"] != self._fingerprint():
            raise ValueError(
                f"{path} belongs to a run with another model, schedule, sigma, batch size or seed; "
                "choose another folder or remove it"
            )
        progress, states = load_state(path, self.model, self.optimizer, self.generator)
        self.step = progress["step"]
        if self.states is not None:
            self.states.tensors = states


def _sigma_range(sigma, conditional: bool) -> tuple[float, float]:
    low, high = sigma if isinstance(sigma, tuple | list) else (sigma, sigma)
    if not (math.isfinite(high) and 0 < low <= high):
        raise ValueError(f"sigma must be positive, or an increasing pair, got {sigma}")
    if low != high and not conditional:
        raise ValueError(f"sigma must be one number for a network of one noise level, got the range {sigma}")
    return float(low), float(high)
