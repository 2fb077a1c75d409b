"""Priors whose truth is known without a network, operators and measurements for the tests of the solvers."""

import torch
import torch.nn.functional as F

from lpn_fast.per_sample import broadcast, dot
from lpn_fast.physics import Blur, Denoising
from lpn_fast.solvers import admm, drs, fista, hqs, pgd
from lpn_fast.solvers.problem import half_square

SIDE = 6
SOLVERS = {"pgd": pgd, "fista": fista, "admm": admm, "drs": drs, "hqs": hqs}
PHYSICS = {
    "circular": Blur.gaussian(1.0),
    "full": Blur(torch.tensor([[0.1, 0.4, 0.0], [0.2, 0.5, -0.2], [0.0, 0.1, 0.0]]), "full"),
    "identity": Denoising(),
}


class QuadraticPrior:
    """R(x) = q/2 ||x - mean||^2, so every objective is quadratic and its minimiser a linear system."""

    def __init__(self, q=0.5, mean=0.3):
        self.q, self.mean = q, mean
        self.alpha = 1 / (1 + q)
        self.samples_seen, self.sigmas_seen = 0, []

    def prox_and_prior(self, z, strength=1.0, sigma=None):
        self.samples_seen += len(z)
        self.sigmas_seen.append(sigma)
        t = broadcast(strength, z)
        x = (z + t * self.q * self.mean) / (1 + t * self.q)
        return x, self.q * half_square(x - self.mean)


class SigmoidPrior:
    """f(u) = Q^T (a v + b sigmoid(beta (v - c))), v = Q u: one softplus stage seen through a rotation Q.

    The slope of the sigmoid lies between a and a + b beta / 4, so R is convex if and only if that is
    at most 1. It is the gradient of psi(u) = sum a/2 v^2 + b/beta softplus(beta (v - c)).
    """

    def __init__(self, a=0.3, b=0.7, beta=10.0, c=0.2):
        self.a, self.b, self.beta, self.c = a, b, beta, c
        self.alpha = a
        generator = torch.Generator().manual_seed(5)
        self.rotation = torch.linalg.qr(torch.randn(SIDE**2, SIDE**2, generator=generator, dtype=torch.float64)).Q

    def f(self, v):
        return self.a * v + self.b * torch.sigmoid(self.beta * (v - self.c))

    def psi(self, v):
        softplus = F.softplus(self.beta * (v - self.c), threshold=700)
        return (0.5 * self.a * v * v + self.b / self.beta * softplus).sum(dim=1)

    def prox_and_prior(self, z, strength=1.0, sigma=None):
        rotated = z.flatten(1) @ self.rotation.T  # (N, 36)
        v = self.solve(rotated, broadcast(strength, rotated))
        x = self.f(v)
        prior = dot(v, x) - half_square(x) - self.psi(v)
        return (x @ self.rotation).reshape(z.shape), prior

    def solve(self, z, t):
        """Root of t v + (1 - t) f(v) = z, increasing in v, by bisection."""
        width = z.abs().max() / self.a + self.b / self.a + 1
        low, high = -width.expand_as(z), width.expand_as(z)
        for _ in range(80):
            middle = (low + high) / 2
            below = t * middle + (1 - t) * self.f(middle) < z
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


NONCONVEX = SigmoidPrior()  # slopes 0.3 to 2.05
CONVEX = SigmoidPrior(a=0.3, b=0.25)  # slopes 0.3 to 0.925


def make_measurements(physics, samples=4, noise=0.1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)
    x = torch.rand(samples, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    y = physics.A(x)
    return (y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)).to(dtype)


def follow(solver, *args, **options):
    """A run together with its images after every iteration, (iterations, N, ...)."""
    path = []
    result = solver(*args, callback=lambda k, x, objective: path.append(x), **options)
    return result, torch.stack(path)


def linear_solution(physics, y, weight, mean):
    """Minimiser of 1/2 ||A x - y||^2 + weight/2 ||x - mean||^2, from the matrix of A."""
    pixels, matrix = SIDE**2, matrix_of(physics)
    right = y.flatten(1) @ matrix + weight * mean
    system = matrix.T @ matrix + weight * torch.eye(pixels, dtype=torch.float64)
    return torch.linalg.solve(system, right.T).T.reshape(-1, 1, SIDE, SIDE)


class Fragile(QuadraticPrior):
    """Turns samples of mean above 0.8 into NaN from its third call on."""

    calls = 0

    def prox_and_prior(self, z, strength=1.0, sigma=None):
        self.calls += 1
        x, prior = super().prox_and_prior(z, strength, sigma)
        broken = (x.flatten(1).mean(dim=1) > 0.8) & (self.calls > 2)
        return x + torch.where(broken, torch.nan, 0.0).reshape(-1, 1, 1, 1), prior


def matrix_of(physics):
    """A as a matrix, float64, (measurements, 36)."""
    return physics.A(torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)).flatten(1).T
