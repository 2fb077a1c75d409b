"""From the parameters of an explicit prior, which are free of constraints, to its potentials at noise levels.

shares are logits of U / mu against a slack of 0, far is log e, bends log-odds of (rho^2 - 1) / (bend - 1), and tails
log(tau - 1), of ops/explicit/potentials.py; all of them vary linearly between the knots of the noise level.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algebra.noise import noise_features
from ..ops.explicit import Potentials
from .explicit_blocks import of_all_groups, shared_out

if TYPE_CHECKING:
    from .explicit import ExplicitLPN


def potentials_at(model: "ExplicitLPN", sigma: Tensor) -> Potentials:
    """Atoms and potentials at noise levels sigma, (N,); differentiable in the parameters."""
    mixed = noise_features(sigma, model.spec.noise_levels)  # [N, knots]
    coarse = _of_level(model, "coarse_", mixed, None) if model.spec.coarse_kernel else None
    return _of_level(model, "", mixed, coarse)


def _of_level(model: "ExplicitLPN", prefix: str, mixed: Tensor, coarse: Potentials | None) -> Potentials:
    spec = model.spec
    atoms, shares, far, bends, tails = model.of_level(prefix)
    logits = torch.tensordot(mixed, shares, 1)  # [N, M, n - C]
    if spec.blocks:
        energies = of_all_groups(spec.concavity * shared_out(logits), spec.blocks, spec.own)
        far, bends, tails = (t.repeat_interleave(4, 1) for t in (far, bends, tails))
    else:
        logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
        energies = spec.concavity * logits.softmax(1)[:, :-1]
    means = atoms.shape[0] - energies.shape[2]  # of channels: without a potential
    energies = torch.cat([energies.new_zeros(*energies.shape[:2], means), energies], dim=2)
    e = (mixed @ far).exp()
    bend = 1 + (spec.bend - 1) * (mixed @ bends).sigmoid()  # rho^2
    slope = e * (1 + (mixed @ tails).exp()) * (1 - bend**-2).rsqrt()
    return Potentials(atoms.flatten(1), energies, slope, (slope / bend).square(), e, coarse)
