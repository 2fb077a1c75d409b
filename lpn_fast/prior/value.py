"""Values of the learned prior R at any point, with the residual that certifies them.

    R(x) = <y, x> - 1/2 |x|^2 - psi(y)  at  f(y) = x,     grad R(x) = y - x           (R + 1/2 |.|^2 = psi*)

For any y at all the right-hand side is a lower bound of R(x) (Fenchel and Young), and with r = f(y) - x
    0 <= R(x) - value <= |r|^2 / (2 alpha)  for alpha > 0:
the error of the value is of second order in the residual. The three terms cancel, 1e4 each on a colour
image of 128 pixels a side, so psi and f are evaluated once more in float64 at the preimage.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..networks import LPN, ExplicitLPN
from ..ops import functions
from .inversion import Inversion, InvertOptions, _chunks, invert


@dataclass(frozen=True, repr=False)
class PriorValue:
    """Values of R, and what is known of each.

    Attributes
    ----------
    value : Tensor, shape (N,), float64
        R(x): a lower bound whatever the residual, and off by at most `value_bound`. The additive constant is
        that of psi.
    preimage : Tensor, shape (N, ...)
        y with f(y) = x.
    residual : Tensor, shape (N,), float64
        |f(y) - x| / |x|, evaluated in float64.
    converged : Tensor, shape (N,), bool
        Whether the inversion met its tolerance. Do not trust the values of samples that did not.
    gradient : Tensor, shape (N, ...)
        grad R(x) = y - x.
    value_bound : Tensor, shape (N,), float64, or None
        Bound |f(y) - x|^2 / (2 alpha) on R(x) - value; None if alpha = 0.
    inversion : Inversion
        The inversion behind it: iterations, error bound, verdict.
    amortised_error : Tensor, shape (N,), float64, or None
        With a warm start, its value minus this one: what the amortised prior alone would have been off by.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> lf.prior(lf.MLPLPN(dim=3, alpha=0.1), torch.zeros(5, 3))  # doctest: +ELLIPSIS
    R of 5 samples: ...
      5 converged, residual ...
    """

    value: Tensor
    preimage: Tensor
    residual: Tensor
    converged: Tensor
    gradient: Tensor
    value_bound: Tensor | None
    inversion: Inversion
    amortised_error: Tensor | None = None

    def __repr__(self) -> str:
        if not len(self.value):
            return "R of 0 samples"
        low, high = (float(v) for v in self.value.detach().aminmax())
        bound = "none, alpha is 0" if self.value_bound is None else f"{float(self.value_bound.max()):.1e}"
        return (
            f"R of {len(self.value)} samples: {low:.6g}" + (f" to {high:.6g}" if high > low else "") + "\n"
            f"  {self.inversion}, residual up to {float(self.residual.max()):.1e} of |x|, error bound {bound}"
        )


def prior(
    model: LPN | ExplicitLPN, x: Tensor, *, sigma: float | Tensor | None = None, **options: Unpack[InvertOptions]
) -> PriorValue:
    """R(x) for every sample, by inversion of f, or in one pass where the network is R itself.

    Parameters
    ----------
    model : LPN or ExplicitLPN
    x : Tensor, shape (N, dim), (N, C, H, W) or (N, C, D, H, W)
    sigma : float or Tensor, shape () or (N,), optional
        For noise-conditional networks.
    **options
        Those of `invert`: method, tol, max_iter, x0, warm_start, dtype, radius, homotopy, batch_size.

    Returns
    -------
    PriorValue
        `value` is differentiable in x, with gradient y - x, and in the parameters; `gradient` and `preimage`
        are differentiable as `invert` says. Second derivatives of `value` are refused: differentiate `gradient`.

    Raises
    ------
    ValueError, TypeError
        As `invert`.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.MLPLPN(dim=3, alpha=0.1)
    >>> x, free = model.prox_and_prior(torch.randn(5, 3))
    >>> torch.allclose(lf.prior(model, x).value, free, atol=1e-4)
    True
    """
    if isinstance(model, ExplicitLPN):
        from .explicit import value as in_one_pass  # which returns what this module defines

        return in_one_pass(model, x, sigma, options.get("dtype"))
    inversion = invert(model, x, sigma=sigma, **options)
    x, features, unit = model._checked(x, sigma)
    value, absolute = _lower_bound(model, x, inversion.preimage, features, unit, options.get("batch_size"))
    size = x.detach().double().flatten(1).norm(dim=1)
    amortised_error = None
    if (warm_start := options.get("warm_start")) is not None:
        amortised_error = warm_start(x.detach()).value - value.detach()
    return PriorValue(
        value=value,
        preimage=inversion.preimage,
        residual=absolute / torch.where(size == 0, 1.0, size),
        converged=inversion.converged,
        gradient=inversion.preimage - x,
        value_bound=absolute.square() / (2 * model.alpha) if model.alpha > 0 else None,
        inversion=inversion,
        amortised_error=amortised_error,
    )


def _lower_bound(
    model: LPN,
    x: Tensor,  # (N, ...)
    y: Tensor,  # (N, ...)
    features: Tensor | None = None,  # (N, F)
    unit: Tensor | None = None,  # (N, 1, ...)
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(<y, x> - 1/2 |x|^2 - psi(y), |f(y) - x|), both (N,) float64 and evaluated in float64, at any y."""
    packed = model.packed().double()
    features = None if features is None else features.double()
    values, residuals = [], []
    for rows in _chunks(model, x.double(), batch_size):
        at = y[rows].detach().double()
        of_rows = None if features is None else features[rows]
        if unit is None:
            psi, f = functions.evaluate(model.spec, at, packed, of_rows, with_value=True)
        else:
            own = unit[rows].double()
            psi, f = functions.evaluate(model.spec, at / own, packed, of_rows, with_value=True)
            psi, f = own.flatten().square() * psi, own * f
        values.append(_Pairing.apply(x[rows], at) - psi)
        residuals.append((f.detach() - x[rows].detach()).flatten(1).norm(dim=1))
    return torch.cat(values), torch.cat(residuals)


class _Pairing(torch.autograd.Function):
    """<y, x> - 1/2 |x|^2 in float64, (N,), with y the preimage of x.

    The dependence of y on x does not matter to first order, because R's formula is stationary in y; it does
    to second order, where a graph without it would be wrong, so there is none.
    """

    @staticmethod
    def forward(x, y):
        x64 = x.double()
        return (x64 * (y - 0.5 * x64)).flatten(1).sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        g = g.reshape(-1, *(1,) * (x.dim() - 1))
        return (g * (y - x)).to(x.dtype), None
