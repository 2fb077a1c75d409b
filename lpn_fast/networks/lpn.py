"""The module every learned proximal network is.

    f(x) = grad psi(x) = prox_R(x),        R(f(u)) = <u, f(u)> - 1/2 |f(u)|^2 - psi(u)

psi is convex for whatever the parameters hold, because non-negative weights are projected where they are
packed for evaluation (ops/packing.py). Nothing is stored for autograd unless a gradient is wanted.
"""

import torch
from torch import Tensor, nn

from ..algebra.noise import noise_features
from ..algebra.parameters import layout
from ..algebra.spec import Spec
from ..ops import functions, registry
from ..ops.packing import constrained, pack
from .initialise import initialise_


class LPN(nn.Module):
    """A learned proximal network, described by a `Spec`.

    Most users build one of its families (`MLPLPN`, `ConvLPN`, `paper_network`) or load one.

    Parameters
    ----------
    spec : Spec
        The architecture. Parameters start as `initialise_` draws them.

    Attributes
    ----------
    spec : Spec
    card : dict
        What is known of the model beyond its weights (noise level, value range, training); saved with it.

    Notes
    -----
    Shapes below: x is (N, dim) for dense networks and (N, C, H, W) for convolutional ones, of the
    parameters' dtype and device. Under autocast a half-precision x is computed in the parameters' dtype.
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.card: dict = {}
        self.stages = nn.ModuleList(nn.Module() for _ in spec.stages)
        self._slots = layout(spec)
        for slot in self._slots:
            owner, name = self._owner(slot.name)
            owner.register_parameter(name, nn.Parameter(torch.zeros(slot.shape)))
        self.register_buffer("_constrained", constrained(spec), persistent=False)
        initialise_(self)

    @property
    def alpha(self) -> float:
        """Strong-convexity modulus of psi, in the convention alpha/2 |x|^2."""
        return self.spec.alpha

    @property
    def is_noise_conditional(self) -> bool:
        """Whether the network wants a noise level `sigma` with every call."""
        return bool(self.spec.noise_levels)

    def forward(self, x: Tensor, sigma=None) -> Tensor:
        """f(x) = grad psi(x), the exact prox of the learned R.

        Parameters
        ----------
        x : Tensor, shape (N, dim) or (N, C, H, W)
        sigma : float or Tensor, shape () or (N,), optional
            Noise level in x's units, positive; for noise-conditional networks only.

        Returns
        -------
        Tensor, shape of x
            Differentiable in x and the parameters; no graph is kept where none is wanted.

        Raises
        ------
        ValueError, TypeError
            Wrong shape, dtype, device or sigma; the message says what was seen and what is wanted.

        Examples
        --------
        >>> import torch, lpn_fast as lf
        >>> lf.MLPLPN(dim=3)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
        """
        return self._evaluate(x, sigma, with_value=False)[1]

    def potential(self, x: Tensor, sigma=None) -> Tensor:
        """psi(x), shape (N,). Arguments as for `forward`."""
        return self._evaluate(x, sigma, with_value=True)[0]

    def potential_and_prox(self, x: Tensor, sigma=None) -> tuple[Tensor, Tensor]:
        """(psi(x), f(x)), shapes (N,) and x's, from one evaluation. Arguments as for `forward`."""
        return self._evaluate(x, sigma, with_value=True)

    def hvp(self, x: Tensor, v: Tensor, sigma=None) -> Tensor:
        """grad^2 psi(x) v, of x's shape: the Jacobian of f, symmetric and positive semi-definite, times v.

        Parameters
        ----------
        x, v : Tensor, shape (N, dim) or (N, C, H, W)
        sigma : as for `forward`
        """
        if v.shape != x.shape or v.dtype != x.dtype or v.device != x.device:
            raise ValueError(
                f"v must match x, {tuple(x.shape)} {x.dtype} on {x.device}, got {tuple(v.shape)} {v.dtype} on {v.device}"
            )
        x, features = self._checked(x, sigma)
        return functions.hvp(self.spec, x, self.packed(), features, v.to(x.dtype).contiguous())

    def prox(self, z: Tensor, strength: float | Tensor = 1.0, sigma=None) -> Tensor:
        """Proximal map of `strength` times the learned R at z, of z's shape.

        Raises
        ------
        ValueError
            strength other than 1: it needs the solution of  t u + (1 - t) f(u) = z, which this version
            does not compute.
        """
        _check_strength(strength)
        return self(z, sigma)

    @torch.no_grad()
    def prox_and_prior(self, z: Tensor, strength: float | Tensor = 1.0, sigma=None) -> tuple[Tensor, Tensor]:
        """(x, R(x)): the prox of strength R at z, and the prior there, which comes free.

            x = f(z),     R(x) = <z, x> - 1/2 |x|^2 - psi(z)

        Parameters
        ----------
        z : Tensor, shape (N, dim) or (N, C, H, W)
        strength : 1.0
        sigma : as for `forward`

        Returns
        -------
        x : Tensor, shape of z
        prior : Tensor, shape (N,), float64
            The three terms cancel, so they are combined in float64; psi itself carries the rounding of
            the network's dtype.
        """
        _check_strength(strength)
        psi, x = self._evaluate(z, sigma, with_value=True)
        z64, x64 = z.flatten(1).double(), x.flatten(1).double()
        return x, (z64 * x64).sum(1) - 0.5 * (x64 * x64).sum(1) - psi.double()

    @torch.no_grad()
    def project_(self) -> "LPN":
        """Clamp the non-negative parameters in place, as optimizers want after a step. Returns self.

        Evaluation projects anyway; this keeps the stored weights where they act.
        """
        for slot in self._slots:
            if slot.nonnegative:
                getattr(*self._owner(slot.name)).clamp_(min=0)
        return self

    def packed(self) -> Tensor:
        """All parameters in one vector P, shape (P,), projected; differentiable in the parameters."""
        return pack([getattr(*self._owner(slot.name)) for slot in self._slots], self._constrained)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The submodule that holds the parameter `stages.0.core` or `linear`, and its name there."""
        *prefix, last = name.split(".")
        return (self.stages[int(prefix[1])] if prefix else self), last

    def _evaluate(self, x: Tensor, sigma, with_value: bool) -> tuple[Tensor, Tensor]:
        x, features = self._checked(x, sigma)
        return functions.evaluate(self.spec, x, self.packed(), features, with_value)

    def _checked(self, x: Tensor, sigma) -> tuple[Tensor, Tensor | None]:
        """x as the operators take it, and the noise features; errors name what is wrong."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        spec = self.spec
        wanted = f"(N, {spec.channels})" if spec.is_dense else f"(N, {spec.channels}, H, W)"
        if x.dim() != (2 if spec.is_dense else 4) or x.shape[1] != spec.channels:
            hint = "; add a batch axis with x[None]" if x.dim() == (1 if spec.is_dense else 3) else ""
            raise ValueError(f"x must have shape {wanted}, got {tuple(x.shape)}{hint}")
        if spec.image_size is not None and tuple(x.shape[-2:]) != spec.image_size:
            raise ValueError(f"this network takes images of {spec.image_size} pixels, got {tuple(x.shape[-2:])}")
        own = next(self.parameters())
        if x.device != own.device:
            raise ValueError(f"x is on {x.device}, the model on {own.device}; move one with .to()")
        if x.dtype != own.dtype:
            if not torch.is_autocast_enabled(x.device.type) or not x.dtype.is_floating_point:
                raise TypeError(f"x must have the model's dtype {own.dtype}, got {x.dtype}; convert with x.to(...)")
            x = x.to(own.dtype)
        return x.contiguous(), self._features(sigma, x)

    def _features(self, sigma, x: Tensor) -> Tensor | None:
        """phi(sigma), [N, F], or None for a network of one noise level."""
        if not self.is_noise_conditional:
            if sigma is not None:
                raise ValueError("sigma must be None: this network was built for a single noise level")
            return None
        if sigma is None:
            raise ValueError("sigma must be given: this network is noise-conditional, e.g. model(x, sigma=0.1)")
        if isinstance(sigma, Tensor):
            if sigma.dim() > 1 or (sigma.dim() == 1 and sigma.shape[0] not in (1, x.shape[0])):
                raise ValueError(f"sigma must have shape () or ({x.shape[0]},), got {tuple(sigma.shape)}")
            sigma = sigma.to(x)
        elif not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        else:
            sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return noise_features(sigma.expand(x.shape[0]), self.spec.noise_levels)

    def extra_repr(self) -> str:
        spec = self.spec
        widths = [stage.width for stage in spec.stages]
        return f"{spec.kind}, channels={spec.channels}, widths={widths}, beta={spec.beta:g}, alpha={spec.alpha:g}"


def explain(model: LPN, x: Tensor) -> str:
    """Which backend runs `model` on `x`, and why the others do not, one line each.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> print(lf.explain(lf.MLPLPN(dim=3), torch.zeros(5, 3)))  # doctest: +SKIP
    """
    runs = registry.select(model.spec, x).name
    lines = [f"{runs}: runs this call (chosen by {registry.chosen()!r})"]
    for name, reason in registry.reasons(model.spec, x).items():
        if name != runs:
            lines.append(f"{name}: {reason or 'could run it, others come first'}")
    return "\n".join(lines)


def _check_strength(strength) -> None:
    if not (isinstance(strength, int | float) and strength == 1):
        raise ValueError(f"strength must be 1.0 in this version, got {strength}")
