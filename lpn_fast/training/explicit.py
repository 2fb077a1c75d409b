"""Training an explicit prior: by score matching, one pass a step, then by its own minimisers.

Units of the noise; x clean, n standard normal.

    score        |grad R(x + n / rho) - rho n|^2 / rho^2    denoising score matching at the noise level sigma / rho
    minimisers   log |f(x + n) - x|^2 for every sample,     f(y) = argmin 1/2 |x - y|^2 + R(x), solved to SOLVE_TOL

R is minus the logarithm of a density times sigma^2, so that its gradient at noise of sigma / rho is rho^2 times that
noise's conditional mean. Minimisers are differentiated by the implicit function theorem: one linear system each. A
solve that stops early would train another map than the one that is used (potentials that grow without end), so it
does not.
"""

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..metrics import psnr
from ..networks.explicit import ExplicitLPN
from ..ops.explicit import SolveLimits, prior_gradient, proximal_point
from . import state

SOLVE_TOL, ADJOINT_TOL = 1e-4, 3e-3  # relative residuals of the solve, and of the linear system behind its gradient
RATES = {"atoms": 1e-3, "shares": 3e-2, "far": 1e-2, "bends": 3e-2, "tails": 3e-2}  # sizes of steps
LAST = 0.02  # of a rate at the end of a phase


@dataclass(frozen=True)
class ExplicitPhase:
    """`steps` of one loss, "score" or "minimisers", on batches of `batch` crops; `rate` scales all steps."""

    loss: str
    steps: int
    batch: int
    rate: float = 1.0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")

    def scale(self, step: int) -> float:
        """What rates are multiplied by at a step of the phase: a cosine down to LAST."""
        return self.rate * (LAST + (1 - LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2)


def score(model: ExplicitLPN, x: Tensor, noise: Tensor, sigma: Tensor, rho: float = 2.5) -> Tensor:
    """The score's mean squared error, in units of the noise."""
    pot = model.potentials(sigma)
    at = x / sigma.view(-1, 1, 1, 1) + noise / rho
    return (prior_gradient(pot, at, model.spec.kernel) / rho - noise).square().mean()


def minimisers(model: ExplicitLPN, x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mean over samples of the logarithm of the denoised images' mean squared errors, in units of the noise."""
    clean = x / sigma.view(-1, 1, 1, 1)
    limits = SolveLimits(SOLVE_TOL, 200)
    weight = torch.ones_like(sigma)
    f, _ = proximal_point(
        model.potentials(sigma), clean + noise, weight, model.spec.kernel, limits, backward_tol=ADJOINT_TOL
    )
    return (f - clean).square().mean((1, 2, 3)).log().mean()


LOSSES: dict[str, Callable[[ExplicitLPN, Tensor, Tensor, Tensor], Tensor]] = {"score": score, "minimisers": minimisers}


@dataclass
class ExplicitTraining:
    """A run that can be interrupted at any moment; the same call goes on from its folder.

    Attributes
    ----------
    crops : callable
        (count, generator) -> (count, C, side, side), see `lpn_fast.data.ImageCrops`.
    sigma : float or (float, float)
        Noise level of training, or its range, drawn evenly in its logarithm.
    out : Path
        Folder for resume.safetensors and log.csv.
    validation : Tensor, shape (M, C, H, W), optional
        Clean images; the log has the mean PSNR of converged solves.
    """

    model: ExplicitLPN
    crops: Callable[[int, torch.Generator], Tensor]
    phases: list[ExplicitPhase]
    sigma: float | tuple[float, float]
    out: Path
    validation: Tensor | None = None
    validate_every: int = 500
    checkpoint_seconds: float = 120.0
    seed: int = 0
    report: Callable[[dict], None] | None = None
    _step: int = field(default=0, init=False)

    def run(self) -> dict:
        """Train to the end of the last phase; returns the last line of the log."""
        self.out.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(self.seed)
        groups = [{"params": [p], "name": name} for name, p in self.model.named_parameters()]
        optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
        path, plan = self.out / "resume.safetensors", [asdict(phase) for phase in self.phases]
        if path.exists():
            snapshot = state.read(path)
            if snapshot.progress["phases"] != plan:
                raise ValueError(f"phases must be those of the run in {self.out}, got {plan}; use another folder")
            state.restore(snapshot, self.model, optimizer, generator)
            self._step = snapshot.progress["step"]
        saved, entry, mean = time.monotonic(), {}, 0.0
        total = sum(phase.steps for phase in self.phases)
        while self._step < total:
            phase, within = self._phase()
            for group in optimizer.param_groups:
                group["lr"] = RATES[group["name"]] * phase.scale(within)
            loss = self._loss(phase, generator)
            optimizer.zero_grad()
            loss.backward()
            self.model.project_gradients_()
            if all(bool(p.grad.isfinite().all()) for p in self.model.parameters() if p.grad is not None):
                optimizer.step()
                self.model.project_()
            mean = loss.item() if within == 0 else 0.98 * mean + 0.02 * loss.item()
            self._step += 1
            if self._step % self.validate_every == 0 or self._step == total:
                entry = {"step": self._step, "loss": phase.loss, "mean": round(mean, 4)} | self.validate()
                self._log(entry)
            if time.monotonic() - saved > self.checkpoint_seconds or self._step == total:
                progress = {"step": self._step, "phases": plan}
                state.write(path, state.take(self.model, optimizer, generator, progress))
                saved = time.monotonic()
        return entry

    def _phase(self) -> tuple[ExplicitPhase, int]:
        within = self._step
        for phase in self.phases:
            if within < phase.steps:
                return phase, within
            within -= phase.steps
        raise AssertionError("a step behind the last phase")

    def _loss(self, phase: ExplicitPhase, generator: torch.Generator) -> Tensor:
        x = self.crops(phase.batch, generator).to(self.model.far)
        noise = torch.randn(x.shape, generator=generator).to(x)
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        sigma = low * (high / low) ** torch.rand(phase.batch, generator=generator)
        return LOSSES[phase.loss](self.model, x, noise, sigma.to(x))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean PSNR at every level, by solves to 1e-5, and the largest curvature of R."""
        if self.validation is None:
            return {}
        figures, generator = {}, torch.Generator().manual_seed(2024)
        noise = torch.randn(self.validation.shape, generator=generator)
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        levels = (low, (low * high) ** 0.5, high) if low < high else (low,)
        for level in levels:
            values = [
                psnr(self.model(x + level * n, level, tol=1e-5), x)
                for x, n in zip(self.validation.split(4), noise.split(4), strict=True)
            ]
            figures[f"psnr@{level:.4g}"] = round(torch.cat(values).mean().item(), 3)
        return figures | {"curvature": round(1 / self.model.alpha - 1, 2)}

    def _log(self, entry: dict) -> None:
        path = self.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, entry)
            if new:
                writer.writeheader()
            writer.writerow(entry)
        if self.report is not None:
            self.report(entry)
