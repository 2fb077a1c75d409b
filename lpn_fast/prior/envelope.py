"""The Moreau envelope of the learned prior, which needs no inversion.

    env(u) = min_x 1/2 |x - u|^2 + R(x) = 1/2 |u|^2 - psi(u),     grad env(u) = u - f(u)

It is smooth whatever R is, and the function that gradient descent on u - f(u) minimises.
"""

from typing import NamedTuple

from torch import Tensor

from ..networks import LPN
from ..networks.inputs import checked_network


class Envelope(NamedTuple):
    """value (N,) float64 and gradient, of u's shape."""

    value: Tensor
    gradient: Tensor


def moreau_envelope(model: LPN, u: Tensor, *, sigma: float | Tensor | None = None) -> Envelope:
    """Value and gradient of the Moreau envelope of R, from one evaluation of the network.

    Parameters
    ----------
    model : LPN
    u : Tensor, shape (N, dim), (N, C, H, W) or (N, C, D, H, W)
        Any points.
    sigma : float or Tensor, shape () or (N,), optional
        For noise-conditional networks.

    Returns
    -------
    value : Tensor, shape (N,), float64
        1/2 |u|^2 - psi(u). The difference is taken in float64; psi carries the rounding of the model's dtype.
    gradient : Tensor, shape of u
        u - f(u), 1-Lipschitz. Both are differentiable in u and the parameters.

    Raises
    ------
    ValueError, TypeError
        As `LPN.forward`.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> value, gradient = lf.moreau_envelope(lf.MLPLPN(dim=3), torch.zeros(5, 3))
    >>> value.shape, gradient.shape
    (torch.Size([5]), torch.Size([5, 3]))
    """
    checked_network(model)
    psi, f = model.potential_and_prox(u, sigma)
    return Envelope(0.5 * u.double().flatten(1).square().sum(1) - psi.double(), u - f)
