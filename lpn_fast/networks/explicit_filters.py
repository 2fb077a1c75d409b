"""Free filters of explicit priors, in fours: a seed and its mirror images, under a certificate by their spectra.

    sum_p w_p sum_j (h_j . patch_p(E x))^2 <= k^2 |x|^2   for all x,   if   S(omega) = 1/k^2 sum_j h_j^ h_j^*  <= I

for all frequencies omega; S is C x C. On a plane the left-hand side, with every w_p one, is the mean of <x^, S x^>. The
continuation of algebra/patches.py repeats an image in its mirror images. Since the filters are their own mirror
images, patches that cross a border come twice in a period of it, the others four times, as their weights are to one
another: the sum over an image is a quarter of that over a period.

An orthonormal basis of patches has S = I as well, but few of its members can be what photographs ask for: filters of
many directions and sizes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.cosines import cosine_atoms

FINE = 32  # frequencies of a grid over k, along an axis
ROUNDS = 6  # towards S <= I in a step of an optimizer, whose steps are small
HIGHEST, NEXT, LOWEST = 0.82, 1.5, 1.8  # frequencies of the start: over pi, from one to the next, lowest times k / pi
NEAR = 0.99  # median of S^(1/2) before peaks are cut
SMALL = 0.6  # size of differences of neighbours among them


def mirrored(seeds: Tensor) -> Tensor:
    """Filters (4 m, C, k, k) of seeds (m, C, k, k)."""
    return torch.stack([seeds, seeds.flip(-1), seeds.flip(-2), seeds.flip((-2, -1))], 1).flatten(0, 1)


@torch.no_grad()
def peak(filters: Tensor) -> float:
    """A bound on the largest eigenvalue of S over all frequencies.

    Entries of S are trigonometric polynomials of degree k - 1 in each direction. Their maximum exceeds that over a grid
    of N frequencies by 1 / cos(pi (k - 1) / N) at most (Ehlich and Zeller, 1964).
    """
    k = filters.shape[-1]
    spectrum = torch.fft.fft2(filters.double(), s=(2 * k, 2 * k))
    products = torch.fft.ifft2(torch.einsum("jchw,jdhw->cdhw", spectrum, spectrum.conj())).real / k**2
    lags = products.roll((k - 1, k - 1), (-2, -1))[..., : 2 * k - 1, : 2 * k - 1]  # from 1 - k to k - 1
    side = FINE * k
    values = torch.fft.rfft2(lags, s=(side, side))
    shift = torch.exp(2j * math.pi * (k - 1) / side * torch.arange(side, dtype=torch.float64, device=lags.device))
    values = (values * shift[:, None] * shift[: values.shape[-1]]).permute(2, 3, 0, 1)
    return float(_eigenvalues(values).max()) / math.cos(math.pi * (k - 1) / side) ** 2


@torch.no_grad()
def limit_(seeds: Tensor, rounds: int = ROUNDS) -> None:
    """Seeds near to these whose filters have zero means and S <= I, and I at most frequencies; in place.

    What is lost at a frequency is concavity that the certificate allows and nobody uses, and divided by its peak S
    would lose half of it in some hundred steps. So the median is held, and peaks are cut. Nothing is raised by itself:
    trained priors leave S far below one at the lowest frequencies, and have better uses for their filters.
    """
    h = seeds.double()
    h = _limited(h * (NEAR / math.sqrt(max(_median(h), 1e-12))), rounds)
    seeds.copy_(h / math.sqrt(max(1.0, peak(mirrored(h)) * (1 + 1e-6))))


def _limited(h: Tensor, rounds: int) -> Tensor:
    """Seeds after rounds in which frequencies where S exceeds one are divided by its root, and cut to k x k again."""
    k = h.shape[-1]
    side = 6 * k
    for _ in range(rounds):
        h = h - h.mean((-2, -1), keepdim=True)
        s = _products(h, side)
        if len(s[0, 0]) == 1:
            gain = s.real.clamp(min=1).rsqrt().to(s.dtype)
        else:
            values, vectors = torch.linalg.eigh(s)
            gains = values.clamp(min=1).rsqrt().to(vectors.dtype)
            gain = vectors @ (gains[..., None] * vectors.mH)
        h = torch.fft.irfft2(torch.einsum("hwcd,jdhw->jchw", gain, torch.fft.rfft2(h, s=(side, side))), s=(side, side))
        h = h[..., :k, :k]
    return h - h.mean((-2, -1), keepdim=True)


def _products(h: Tensor, side: int) -> Tensor:
    """S of the filters of seeds on a grid, [side, side / 2 + 1, C, C]."""
    spectrum = torch.fft.rfft2(mirrored(h), s=(side, side))
    return torch.einsum("jchw,jdhw->hwcd", spectrum, spectrum.conj()) / h.shape[-1] ** 2


def _eigenvalues(s: Tensor) -> Tensor:
    return s.real if s.shape[-1] == 1 else torch.linalg.eigvalsh(s)


def _median(h: Tensor) -> float:
    """Median eigenvalue of S."""
    return float(_eigenvalues(_products(h, 6 * h.shape[-1])).median())


def start_of_seeds(channels: int, k: int, count: int) -> Tensor:
    """Waves of several lengths and directions in windows, and differences of neighbours; S is near to I."""
    colours = cosine_atoms(channels, 1)[0].view(channels, channels).double()  # rows: their mean, and differences
    seeds = torch.zeros(count, channels, k, k, dtype=torch.float64)
    for colour in range(channels):
        own = range(colour, count, channels)
        for index, wave in zip(own, _waves(k, len(own)), strict=True):
            seeds[index] = colours[colour].view(-1, 1, 1) * wave
    h = k * seeds
    limit_(h, rounds=40)
    return h


def _waves(k: int, count: int) -> list[Tensor]:
    """(k, k) each, of norm one or less; directions from 0 to 90 degrees, as their mirror images have the others."""
    middle = k // 2
    small = [torch.zeros(k, k, dtype=torch.float64) for _ in range(2)]
    for difference, (row, column) in zip(small, ((middle, middle - 1), (middle - 1, middle)), strict=True):
        difference[middle, middle], difference[row, column] = SMALL / math.sqrt(2), -SMALL / math.sqrt(2)
    frequency, frequencies = HIGHEST * math.pi, list[float]()
    while frequency >= LOWEST * math.pi / k or not frequencies:
        frequencies.append(frequency)
        frequency /= NEXT
    waves, left = small[: max(0, count - 1)], count - len(small[: max(0, count - 1)])
    for number, frequency in enumerate(frequencies):
        share = frequency / sum(frequencies[number:])
        directions = round(left * share)
        left -= directions
        widths = min(3 / frequency, k / 3.2), min(4 / frequency, k / 3)
        waves += [_wave(k, frequency, math.pi / 2 * (i + 0.5) / directions, *widths) for i in range(directions)]
    return waves


def _wave(k: int, frequency: float, angle: float, across: float, along: float) -> Tensor:
    t = torch.arange(k, dtype=torch.float64) - (k - 1) / 2
    u = t * math.cos(angle) + t[:, None] * math.sin(angle)
    v = t[:, None] * math.cos(angle) - t * math.sin(angle)
    window = torch.exp(-((u / across) ** 2 + (v / along) ** 2) / 2)
    wave = window * torch.cos(frequency * u - math.pi / 4)  # neither even nor odd: with its mirror images it spans both
    wave = wave - window * (wave.sum() / window.sum())
    return F.normalize(wave.flatten(), dim=0).view(k, k)
