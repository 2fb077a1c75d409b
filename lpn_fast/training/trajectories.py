"""Training along the trajectories of a solver.

A denoiser sees clean images plus noise; inside PGD it sees its own earlier outputs. A prior trained on the
former alone may fall without bound along directions that an operator does not see: the objective descends
and the images run away. Here a pool of deblurring problems takes one PGD iteration per training step,

    u = x - eta A^T (A x - b),     pred = f(u),     loss(pred, truth),     x <- pred,

so the states that the solver visits are trained to map to the truth, at no extra evaluation. A is a circular
Gaussian blur of random width per problem and b = A truth + noise of std sigma / sqrt(eta), for which sigma
is the MAP choice of the network's noise level. f is an exact prox all along: only the data it learns from differ.
"""

import torch
from torch import Tensor

STEP = 0.95  # eta; the blurs have norm one


class SolverStates:
    """A pool of `count` deblurring problems under way.

    Parameters
    ----------
    count : int
        Problems, that is, samples they add to every batch.
    blur : (float, float)
        Range of the standard deviation of the Gaussian blurs in pixels.
    longest : int
        A problem is replaced after 1 to `longest` iterations, drawn uniformly, or when it has run away.

    Notes
    -----
    All randomness comes from the trainer's generator, and `tensors` holds the whole state, so that a resumed
    run goes on exactly.
    """

    RUNAWAY = 4.0  # largest |x| that is still worth learning from, images in [0, 1]

    def __init__(self, count: int, blur: tuple[float, float] = (0.5, 2.5), longest: int = 40):
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if not 0 < blur[0] <= blur[1]:
            raise ValueError(f"blur must be an increasing pair of positive widths, got {blur}")
        if longest < 1:
            raise ValueError(f"longest must be at least 1, got {longest}")
        self.count, self.blur, self.longest = count, tuple(blur), longest
        self.tensors: dict[str, Tensor] = {}

    def inputs(self, sampler, sigma_range, generator: torch.Generator, dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(truth, u, sigma (count,)): what the network is to return, what it gets, and its noise level."""
        if not self.tensors:
            done = torch.ones(self.count, dtype=torch.bool)
        else:
            t = self.tensors
            done = (t["left"] <= 0) | ~(t["x"].flatten(1).abs().amax(1) < self.RUNAWAY)  # NaN is done, too
        if done.any():
            self._renew(done, sampler, sigma_range, generator, dtype)
        t = self.tensors
        residual = _filter(t["x"], t["width"]) - t["b"]
        return t["truth"], t["x"] - STEP * _filter(residual, t["width"]), t["sigma"]

    def advance(self, prediction: Tensor) -> None:
        """Take the network's answers, (count, C, H, W), as the new iterates."""
        self.tensors["x"] = prediction.detach().cpu()
        self.tensors["left"] = self.tensors["left"] - 1

    def _renew(self, done: Tensor, sampler, sigma_range, generator, dtype) -> None:
        n = int(done.sum())
        truth = sampler(n, generator).to(dtype)
        low, high = sigma_range
        sigma = low * (high / low) ** torch.rand(n, generator=generator, dtype=dtype)
        width = self.blur[0] + (self.blur[1] - self.blur[0]) * torch.rand(n, generator=generator, dtype=dtype)
        noise = torch.randn(truth.shape, generator=generator, dtype=dtype) * _column(sigma) / STEP**0.5
        b = _filter(truth, width) + noise
        fresh = {
            "truth": truth,
            "b": b,
            "x": _filter(b, width),
            "sigma": sigma,
            "width": width,
            "left": torch.randint(1, self.longest + 1, (n,), generator=generator),
        }
        if not self.tensors:
            self.tensors = fresh
        else:
            for name, value in fresh.items():
                self.tensors[name] = self.tensors[name].clone()
                self.tensors[name][done] = value


def _filter(x: Tensor, width: Tensor) -> Tensor:
    """Circular Gaussian blur of std width (N,) pixels, self-adjoint and of norm one; x (N, C, H, W)."""
    rows = torch.fft.fftfreq(x.shape[-2], dtype=x.dtype)[:, None]
    columns = torch.fft.rfftfreq(x.shape[-1], dtype=x.dtype)[None]
    # the transform of a Gaussian of std w is exp(-2 pi^2 w^2 |omega|^2)
    transfer = torch.exp(-2 * torch.pi**2 * _column(width) ** 2 * (rows**2 + columns**2))
    return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])


def _column(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)
