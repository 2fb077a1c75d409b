"""Limited-memory BFGS with one memory per sample, and for images a metric of one weight per pixel.

    d = -B r,  B from the last pairs  s = u' - u,  y = r(u') - r(u)  by the two-loop recursion   Nocedal, 1980
    B_0 = c D,   c = <s, y> / <y, D y> of the newest pair
    D = (sum s^2 / sum s y)^(1/2),  per entry; the sums over the pairs, older ones fading, and 3 x 3 pixels, weighted
                                    (of a volume 3 x 3 x 3)

phi is convex, so <s, y> >= 0 always; pairs without measurable curvature are not used. First order only: an
iteration is one evaluation of the network, for networks whose Hessian products are dear.

D is there because a denoiser's slopes differ from pixel to pixel, near one along edges and near alpha in flat parts.
Any positive D is allowed; this one costs nothing. A single pixel's s y is that pixel's curvature only if H is
diagonal. Evaluations for an inversion to 1e-5, seen on a dozen images each, of an MNIST network trained for 1,200
steps and of photographs under the shipped model: 39 and 12 without D, 26 and 12 with even sums over 3 x 3 pixels, 21
and 40 with single pixels; the shipped MNIST network took 38 with even sums and 32 with these weights. The square root
stands between D = 1 and trust in it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...per_sample import broadcast, dot
from .equation import Equation, Point
from .line_search import line_search

MEMORY = 10  # pairs; more help little and cost two images each
FADE = 0.8  # weight of a pair's share of D against that of the next
FLATTEST, STEEPEST = 1e-2, 4.0  # slopes that D believes
WEIGHTS = (0.2, 0.6, 0.2)  # on neighbours in the sums, along every axis


class LBFGS:
    """Remembers the last MEMORY pairs and the metric of every sample."""

    needs_tape = False
    max_iter = 500
    patience = 60

    def __init__(self):
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y [n, ...], 1 / <s, y> [n] or 0: unused
        self.sums: tuple[Tensor, Tensor] | None = None  # sum s y, sum s^2 [n, C, *image]; None for vectors

    def step(self, equation: Equation, point: Point, rho: Tensor) -> tuple[Point, Tensor]:
        """(next point, which samples moved)."""
        new, moved = line_search(equation, point, self._direction(point.residual))
        s, y = new.u - point.u, new.residual - point.residual
        sy, ss = dot(s, y), dot(s, s)
        usable = sy > torch.finfo(s.dtype).eps * ss
        self.pairs = [*self.pairs[-MEMORY + 1 :], (s, y, torch.where(usable, 1 / sy, 0.0))]
        if s.dim() > 2:
            share = broadcast(torch.where(usable, 1 / ss, 0.0), s)  # steps differ in length by orders of magnitude
            parts = share * s * y, share * s * s
            if self.sums is not None:
                parts = FADE * self.sums[0] + parts[0], FADE * self.sums[1] + parts[1]
            self.sums = parts
        return new, moved

    def select(self, rows: Tensor) -> None:
        """Keep the memories of some samples."""
        self.pairs = [(s[rows], y[rows], inverse[rows]) for s, y, inverse in self.pairs]
        self.sums = None if self.sums is None else (self.sums[0][rows], self.sums[1][rows])

    def _direction(self, residual: Tensor) -> Tensor:  # [n, ...] -> [n, ...]
        q, weights, metric = -residual, [], self._metric()
        for s, y, inverse in reversed(self.pairs):
            a = inverse * dot(s, q)  # [n]
            q = q - broadcast(a, y) * y
            weights.append(a)
        scale = torch.ones_like(dot(q, q))  # 1, else by the newest curvature
        for _, y, inverse in self.pairs:
            scale = torch.where(inverse > 0, 1 / (inverse * dot(y, metric * y)), scale)
        q = broadcast(scale, q) * (metric * q)
        for (s, y, inverse), a in zip(self.pairs, reversed(weights), strict=True):
            q = q + broadcast(a - inverse * dot(y, q), s) * s
        return q

    def _metric(self) -> Tensor | float:  # [n, C, *image], or 1
        """D, up to a factor."""
        if self.sums is None:
            return 1.0
        curvature, squares = map(_blurred, self.sums)
        # a pixel that has not moved tells nothing: 0 / 0 counts as slope one
        slope = torch.where(squares > 0, curvature / squares, 1.0).clamp(FLATTEST, STEEPEST)
        return slope.rsqrt()


def _blurred(images: Tensor) -> Tensor:  # [n, C, *image] -> the same, zero outside
    weights = kernel = images.new_tensor(WEIGHTS)
    for _ in images.shape[3:]:
        kernel = kernel[..., None] * weights  # [3, 3] or [3, 3, 3]
    correlation = F.conv2d if images.dim() == 4 else F.conv3d
    return correlation(images.flatten(0, 1)[:, None], kernel[None, None], padding=1).view(images.shape)
