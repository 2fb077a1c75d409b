"""The cosine basis of patches: what starts of several families are made of."""

import functools
import math

import torch
from torch import Tensor


def cosine_atoms(channels: int, k: int, axes: int = 2) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of patches, [n, n] with n = C k^axes, and the frequencies of its atoms, [n, axes + 1].

    Cosines along each axis of space times cosines over channels (their mean and differences). A row holds a patch as
    (C, k, ..., k); its frequencies are those along the axes and over channels. The C constant patches come first.
    """
    rows, colour = _cosines(k), _cosines(channels)
    atoms = functools.reduce(torch.kron, [*[rows] * axes, colour])  # [n, (pixel, channel)]
    atoms = atoms.view(-1, k**axes, channels).mT.reshape(len(atoms), -1)
    frequencies = torch.cartesian_prod(*[torch.arange(k)] * axes, torch.arange(channels)).float()
    return atoms, frequencies


def _cosines(length: int) -> Tensor:
    """[length, length], float64, orthonormal rows of rising frequency."""
    n = torch.arange(length, dtype=torch.float64)
    rows = torch.cos(math.pi * n[:, None] * (n + 0.5) / length) * math.sqrt(2 / length)
    rows[0] /= math.sqrt(2)
    return rows
