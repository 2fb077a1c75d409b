"""Intensity units: the same network for images in another range.

    f_c(x) = f(c x) / c,     psi_c(x) = psi(c x) / c^2,     R_c(x) = R(c x) / c^2

is again a learned proximal network, of the same spec: skips times c, heads and c0 over c^2, the linear term
over c; cores, biases, alpha and K stay. So nothing runs slower, and kernels, checkpoints, inversion and solvers
see an ordinary network. A network trained on [0, 1] works on [0, 255] with c = 1/255. An offset has no such
form: skips pad with zeros, which an offset would have to move along. A network in noise units keeps all its
parameters: c x / sigma is the same number in both units.
"""

import copy
import math
from dataclasses import replace

import torch

from ..networks import LPN
from ..networks.inputs import checked_network

_POWERS = {"skip": 1, "head": -2, "head_squared": -2, "constant": -2, "linear": -1}


@torch.no_grad()
def rescaled(model: LPN, scale: float) -> LPN:
    """A new network with f_c(x) = f(c x) / c, c = `scale`: exactly the prox of R(c x) / c^2.

    Parameters
    ----------
    model : LPN
        Left as it is.
    scale : float
        c, positive: the old intensity that corresponds to intensity 1 in the new units.

    Returns
    -------
    LPN
        On the same device, in the same dtype. Noise levels, of calls and in the card, are in the new units.

    Raises
    ------
    ValueError
        scale that is not positive and finite.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.MLPLPN(dim=3)
    >>> bytes_ = lf.rescaled(model, 1 / 255)
    >>> x = torch.rand(4, 3)
    >>> torch.allclose(bytes_(255 * x), 255 * model(x), rtol=1e-3, atol=1e-3)
    True
    """
    checked_network(model)
    if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    spec = replace(model.spec, noise_levels=tuple(level / scale for level in model.spec.noise_levels))
    own = next(model.parameters())
    scaled = LPN(spec).to(device=own.device, dtype=own.dtype)
    scaled.load_state_dict(model.state_dict())
    for name, parameter in () if spec.noise_units else scaled.named_parameters():
        parameter.mul_(scale ** _POWERS.get(name.rpartition(".")[2], 0))
    scaled.card = copy.deepcopy(model.card)
    for key in ("sigma", "value_range"):
        if key in scaled.card:
            scaled.card[key] = _over(scaled.card[key], scale)
    return scaled.train(model.training)


def _over(value, scale: float):
    return [v / scale for v in value] if isinstance(value, list | tuple) else value / scale
