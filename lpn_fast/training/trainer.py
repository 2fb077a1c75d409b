"""The training loop.

    x ~ data,   y = x + sigma n,   minimise  loss(f(y), x)  with Adam,   then project W, w, g onto >= 0

sigma is fixed, or drawn per sample, uniform in log sigma, for noise-conditional networks; errors are then measured
in units of the noise (schedule.py). A run is a function of its arguments and its seed: stopped and resumed,
rolled back after a NaN or not, it ends in the same weights. For that, whatever is written is a state that was
looked at, at a multiple of GUARD steps.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..networks import LPN, limit_gain_, save
from ..optim import ProjectedAdam
from . import accuracy, state
from .arguments import check, settings
from .average import WeightAverage
from .batches import NoisyBatches, Sampler
from .distributed import current_group
from .expansion import expansion_penalty
from .log import EARLY_SECONDS, WINDOW, Pace, RunLog
from .problems import Deblurring, Problems
from .schedule import Phase, locate

GUARD = WINDOW  # steps between looks for NaN; a look waits for the device
MOST_ROLLBACKS = 5


class Trainer:
    """Trains `model` in place.

    Parameters
    ----------
    model : LPN
    sampler : callable
        `sampler(batch_size, generator)` gives clean samples, (batch_size, dim), (batch_size, C, H, W) or
        (batch_size, C, D, H, W); all its randomness comes from `generator`, which lives on the CPU. If it takes a
        third argument `rows`, a slice, it may make those of the samples only (for training in several processes).
    phases : list of Phase
    sigma : float or (float, float)
        Noise standard deviation, or the range it is drawn from for a noise-conditional model.
    batch_size : int
        Samples per step, of all processes together.
    seed : int
        Seed of the data, the noise and the drawn sigmas. (The model's start is the caller's.)
    gain_limit : float, optional
        Keep the asymptotic gain of f at most this after every step; below 1 the learned R is coercive and
        solvers cannot run away (networks/gain.py). None sets no bound.
    clip_norm : float, optional
        Gradients with a larger 2-norm are scaled down to it. None leaves them.
    ema_decay : float, optional
        Average the weights with this decay (average.py). Validation and the result use the average.
    margin : int
        Pixels at the sides of a crop that the loss leaves out: there the zeros around a crop decide, which are far
        more of a small crop than of an image. Image models only.
    precision : str
        "fp32", or "bf16", "fp16", "tf32" for the steps, wherever the accuracy check admits them (accuracy.py).
    noise : callable
        `noise(shape, generator=..., dtype=...)` -> standard normal samples; torch.randn unless told otherwise.
    gamma_factor : callable, optional
        `gamma_factor(y)` -> (N,), positive: what gamma is multiplied by for each noisy sample.
    expansion_weight : float
        Weight of the expansion penalty (training/expansion.py) on a quarter of every batch, its last samples
        of an image model. 0 switches it off.
    problems : Deblurring or Problems, optional
        Compare the minimisers of such problems with the truth instead of f(x + noise); for image models.
    out : path, optional
        Folder for `resume.safetensors`, `log.csv`, `train.log` and at the end `model.safetensors`. If it holds a
        resume file of the same configuration the run continues there. None keeps everything in memory.
    validate : callable, optional
        `validate(model)` -> dict of figures, called every `validate_every` steps and at the end.
    checkpoint_seconds : float
        Time between resume files.
    progress : bool
        Show a progress bar, and events.
    tensorboard : bool
        Figures for TensorBoard in `out`, too; requires the package.

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
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        margin: int = 0,
        precision: str = "fp32",
        noise: Callable[..., Tensor] = torch.randn,
        gamma_factor: Callable[[Tensor], Tensor] | None = None,
        expansion_weight: float = 0.0,
        problems: Deblurring | Problems | None = None,
        out: str | Path | None = None,
        validate: Callable[[LPN], dict] | None = None,
        validate_every: int = 1000,
        checkpoint_seconds: float = 60.0,
        progress: bool = True,
        tensorboard: bool = False,
    ):
        self.model, self.phases, self.group = model, list(phases), current_group()
        self.seed, self.gain_limit, self.problems = seed, gain_limit, problems
        self.clip_norm, self.margin, self.precision = clip_norm, margin, precision
        self.expansion_weight, self.gamma_factor = expansion_weight, gamma_factor
        self.out = None if out is None else Path(out)
        self.validate, self.validate_every = validate, validate_every
        self.checkpoint_seconds = checkpoint_seconds
        self.progress = progress and self.group.leads
        check(self)
        self.batches = NoisyBatches(
            sampler, sigma, batch_size, conditional=model.is_noise_conditional, group=self.group, noise=noise
        )
        self.generator = torch.Generator().manual_seed(seed)
        self._scales = scales = model.step_scales()
        # steps that are scaled afterwards must not be clamped before; `_project` clamps then
        parts = (model.parameters(), [False] * len(list(model.parameters()))) if scales else (model,)
        self.optimizer = ProjectedAdam(*parts, lr=self.phases[0].learning_rate)
        self.average = None if ema_decay is None else WeightAverage(model, ema_decay)
        self.step, self.total_steps = 0, sum(phase.steps for phase in self.phases)
        self.rate_factor, self.rollbacks, self._loss = 1.0, 0, math.nan
        self._tried = -1  # step of the last state that was to be written
        self.passed: dict[int, bool] = {}  # index of a phase -> whether its precision passed the check
        self.log = RunLog(self.out if self.group.leads else None, self.progress, tensorboard and self.group.leads)
        # the optimizer's step clamps; families with further constraints bring a project_ of their own
        self._own_projection = bool(scales) or type(model).project_ is not LPN.project_

    def run(self) -> dict:
        """Train to the end of the last phase.

        Returns
        -------
        dict
            step, seconds (of this session), loss (mean of the last steps) and what `validate` gave at the end.

        Raises
        ------
        FloatingPointError
            The loss or a weight became NaN or infinite again and again, however much the learning rate was
            lowered; the resume file still holds the last good state.
        """
        self._resume()
        self.pace, saved, early = Pace(self.total_steps, self.step), time.monotonic(), False
        self._good = self._snapshot()
        self._bar = tqdm(
            total=self.total_steps, initial=self.step, disable=not self.progress, unit="step", desc="train"
        )
        self.model.train()
        own_precision, self.model.precision = self.model.precision, "fp32"
        try:
            while self.step < self.total_steps:
                if locate(self.phases, self.step)[1] == 0:
                    self.pace.new_phase()
                self.pace.note(self.advance())
                self._bar.update()
                if (self.step % GUARD == 0 or self.step == self.total_steps) and not self._guard():
                    continue
                if not early and time.monotonic() - self.pace.started > EARLY_SECONDS:
                    early = True
                    self.log.say(self.pace.answer(self.step))
                if self.step % self.validate_every == 0 and self.step < self.total_steps:
                    self._validate()
                if time.monotonic() - saved > self.checkpoint_seconds:
                    self._checkpoint()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            self._checkpoint()
            raise
        finally:
            self._bar.close()
            self.model.eval()
            self.model.precision = own_precision
        figures = self._validate()
        self._checkpoint()
        if self.average is not None:
            self.average.install()
            self._project(everything=True)
        if self.out is not None and self.group.leads:
            save(self.model, self.out / "model.safetensors")
        return {"step": self.step, "seconds": round(time.monotonic() - self.pace.started, 1), **figures}

    # ---- one step

    def advance(self) -> Tensor:
        """Take one step; the loss before it, scalar, of the whole batch.

        For loops of one's own, which may set `rate_factor`, a factor on all learning rates; it is `run` that looks for
        NaN, validates and writes files.
        """
        loss = self._one_step()
        self.step += 1
        return loss

    def _one_step(self) -> Tensor:
        index, within = locate(self.phases, self.step)
        phase = self.phases[index]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_factor * phase.rate(within)
        low_precision = self.precision != "fp32" and self._passes_gate(index)
        x, y, sigma = self.batches.draw(self.generator, next(self.model.parameters()))
        if low_precision:
            self.model.precision = self.precision
        try:
            with self.group.averaged_gradients(self.model):
                if self.problems is None:
                    pred = self.model(y, sigma)
                else:
                    pred, x = self.problems(self.model, x, y - x, sigma, self.generator)
            loss = self._criterion(phase, y, sigma)(self._inside(pred), self._inside(x))
            if self.expansion_weight:
                last = slice(-max(1, len(y) // 4), None)
                level = None if sigma is None else sigma[last]
                penalty = expansion_penalty(self.model, y[last], pred[last], level, self.generator)
                loss = loss + self.expansion_weight * penalty
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        finally:
            if low_precision:
                self.model.precision = "fp32"
        self.model.project_gradients_()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self._step_optimizer()
        self._project()
        if self.average is not None:
            self.average.update(self.step)
        return self.group.mean(loss.detach())

    def _inside(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) or (N, C, D, H, W) without its margin."""
        m = self.margin
        return x[(..., *(slice(m, -m),) * self.model.spec.ndim)] if m else x

    @torch.no_grad()
    def _step_optimizer(self) -> None:
        """One step of Adam, scaled for each parameter by the family's `step_scales`, and in its coordinates."""
        if not self._scales:
            self.optimizer.step()
            return
        before = [(name, p, p.clone()) for name, p in self.model.named_parameters()]
        try:  # from zero: the step itself, without the rounding of a parameter far larger
            for _, p, _ in before:
                p.zero_()
            self.optimizer.step()
            steps = {name: self._scales.get(name, 1.0) * p for name, p, _ in before}
        finally:
            for _, p, old in before:
                p.copy_(old)
        self.model.step_(steps)

    def _criterion(self, phase: Phase, y: Tensor, sigma: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        adapts = self.gamma_factor is not None and phase.loss == "matching"
        return phase.criterion(sigma, self.gamma_factor(y) if adapts else None)

    def _project(self, everything: bool = False) -> None:
        """Restore the constraints that the optimizer's step does not: a family's own, and the gain."""
        if everything or self._own_projection:
            self.model.project_()
        if self.gain_limit is not None:
            limit_gain_(self.model, self.gain_limit)

    def _passes_gate(self, index: int) -> bool:
        """Whether the named precision may be used in this phase; measured once, before its first step."""
        if index not in self.passed:
            generator = torch.Generator().manual_seed(hash((self.seed, index)) % 2**63)
            x, y, sigma = self.batches.draw(generator, next(self.model.parameters()))
            loss = self._criterion(self.phases[index], y, sigma)
            report = accuracy.measure(
                self.model, self.precision, y, sigma, lambda pred: loss(self._inside(pred), self._inside(x))
            )
            self.passed[index] = self.group.agree(report.holds, y.device)
            self.log.say(f"phase {index + 1}: {report}")
        return self.passed[index]

    # ---- looking back and going back

    def _guard(self) -> bool:
        """Keep the state if it is sound; else go back to the last sound one with half the rate, and return False."""
        loss = self.pace.window_ends()
        sums = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        if math.isfinite(loss) and bool(torch.isfinite(torch.stack(sums)).all()):
            self._loss = loss
            self._good = self._snapshot()
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            return True
        bad, self.rollbacks = self.step, self.rollbacks + 1
        factor, rollbacks = self.rate_factor / 2, self.rollbacks
        self._restore(self._good)
        self.rate_factor, self.rollbacks = factor, rollbacks
        if self.rollbacks > MOST_ROLLBACKS:
            raise FloatingPointError(
                f"the loss or a weight was NaN or infinite by step {bad}, after {MOST_ROLLBACKS} attempts from step "
                f"{self.step} with ever lower learning rates; look at the data, lower the learning rate or set "
                "clip_norm"
            )
        self._good, self._tried = self._snapshot(), -1  # with the new rate: a kill now must not forget it
        self.pace.new_phase()
        self.log.forget_after(self.step)
        self._bar.n = self.step
        self.log.say(
            f"the loss or a weight was NaN or infinite by step {bad}: back to step {self.step}, "
            f"learning rates times {self.rate_factor:g} from here on"
        )
        return False

    def _snapshot(self) -> state.Snapshot:
        progress = {
            "step": self.step,
            "settings": settings(self),
            "loss": self._loss if math.isfinite(self._loss) else None,
            "rate_factor": self.rate_factor,
            "rollbacks": self.rollbacks,
            "passed": {str(index): flag for index, flag in self.passed.items()},
        }
        average = None if self.average is None else self.average.tensors
        return state.take(self.model, self.optimizer, self.generator, progress, average=average)

    def _restore(self, snapshot: state.Snapshot) -> None:
        average = state.restore(snapshot, self.model, self.optimizer, self.generator)
        progress = snapshot.progress
        self.step, self.rate_factor = progress["step"], progress["rate_factor"]
        self.rollbacks = progress["rollbacks"]
        self._loss = math.nan if progress["loss"] is None else progress["loss"]
        self.passed = {int(index): flag for index, flag in progress["passed"].items()}
        if self.average is not None:
            self.average.tensors = average

    # ---- files

    def _checkpoint(self) -> None:
        """Write the last state that was looked at; a failure is logged and the older file kept."""
        step = self._good.progress["step"]
        if self.out is None or not self.group.leads or step == self._tried:
            return
        self._tried = step
        path = self.out / state.RESUME
        try:
            state.write(path, self._good)
        except OSError as error:
            kept = f"the one of step {state.read(path).progress['step']} is kept" if path.exists() else "there is none"
            self.log.say(f"could not write the resume file of step {step}, {kept}: {error}")

    def _resume(self) -> None:
        if self.out is None:
            return
        if self.group.leads:
            self.out.mkdir(parents=True, exist_ok=True)
        path, own = self.out / state.RESUME, next(self.model.parameters())
        self.group.agree(True, own.device)  # wait for the folder
        if path.exists():
            snapshot = state.read(path)
            there, here = snapshot.progress.get("settings", {}), settings(self)
            other = [name for name in here if there.get(name) != here[name]]
            if other:
                raise ValueError(f"{path} belongs to a run with another {', another '.join(other)}; "
                                 "choose another folder or remove it")  # fmt: skip
            self._restore(snapshot)
            # a finished run validates again, and writes that row again
            self.log.forget_after(self.step - (self.step == self.total_steps))
        self.group.check_same(self.step, "the step to go on from", own.device)

    def _validate(self) -> dict:
        """Validate, append a row to the log, return the figures."""
        index, within = locate(self.phases, self.step - 1)
        figures = {"loss": self.pace.mean_loss() if self.pace.recent else self._loss}
        rate = self.rate_factor * self.phases[index].rate(within)
        if self.validate is not None and self.group.leads:
            mode = self.model.training
            self.model.eval()
            weights = nullcontext() if self.average is None else self.average.installed(lambda: self._project(True))
            with weights:
                figures |= self.validate(self.model)
            self.model.train(mode)
        seconds = round(time.monotonic() - self.pace.started, 1)
        self.log.row(self.step, {"seconds": seconds, "learning_rate": rate, **figures})
        return figures
