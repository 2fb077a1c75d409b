"""What a call of a network must be given, checked once at the public edge. Every error names what is wrong."""

import torch
from torch import Tensor

from ..algebra.noise import noise_features
from ..algebra.spec import Spec
from .gain import Network, largest_strength


def checked_input(
    spec: Spec,
    own: Tensor,  # a parameter: its dtype and device are those of x
    log_levels: Tensor,  # (K,) of the spec's noise levels
    x: Tensor,  # (N, dim), (N, C, H, W) or (N, C, D, H, W)
    sigma: float | Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x contiguous and in the model's dtype, the noise features, and the unit x is to be divided by, (N, 1, ...).

    The unit is None for networks without `noise_units`. Errors name what is wrong.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    dims = 2 if spec.is_dense else 2 + spec.ndim
    if x.dim() != dims or x.shape[1] != spec.channels:
        shape = ", ".join(("N", str(spec.channels), *spec.axes))
        raise ValueError(f"x must have shape ({shape}), got {tuple(x.shape)}{_hint(spec, x, dims)}")
    if spec.image_size is not None and tuple(x.shape[2:]) != spec.image_size:
        raise ValueError(f"this network takes images of {spec.image_size} pixels, got {tuple(x.shape[2:])}")
    if x.device != own.device:
        raise ValueError(f"x is on {x.device}, the model on {own.device}; move one with .to()")
    if x.dtype != own.dtype:
        if not torch.is_autocast_enabled(x.device.type) or not x.dtype.is_floating_point:
            raise TypeError(f"x must have the model's dtype {own.dtype}, got {x.dtype}; convert with x.to(...)")
        x = x.to(own.dtype)
    levels = _levels(spec, sigma, x)
    if levels is None:
        return x.contiguous(), None, None
    features = noise_features(levels, spec.noise_levels, log_levels)
    unit = levels.view(-1, *(1,) * (x.dim() - 1)) if spec.noise_units else None
    return x.contiguous(), features, unit


def _hint(spec: Spec, x: Tensor, dims: int) -> str:
    """What would give a tensor of another layout the right one, as code; empty where that cannot be told."""
    channels, last = spec.channels, x.shape[-1] if x.dim() else 0
    if x.dim() == dims and last == channels:
        return f"; channels come second: x.permute(0, {dims - 1}, {', '.join(map(str, range(1, dims - 1)))})"
    if x.dim() == dims - 1 and last == channels and not spec.is_dense and x.shape[0] != channels:
        axes = ", ".join(map(str, (dims - 2, *range(dims - 2))))
        return f"; channels come before rows, and a batch axis first: x.permute({axes})[None]"
    if x.dim() == dims - 1:
        return "; add a batch axis with x[None]"
    if x.dim() == dims - 2 and channels == 1:
        return "; add batch and channel axes with x[None, None]"
    return ""


def checked_strength(model: Network, strength: float | Tensor, z: Tensor) -> Tensor:
    """t of every sample, (N,), in z's dtype."""
    if not isinstance(strength, Tensor):
        if 0 < strength <= 1:
            return z.new_full((len(z),), float(strength))
        strength = torch.as_tensor(strength, dtype=z.dtype, device=z.device)
    if strength.dim() > 1 or (strength.dim() == 1 and len(strength) != len(z)):
        raise ValueError(f"strength must be a number or have shape ({len(z)},), got {tuple(strength.shape)}")
    wrong = ~((strength > 0) & (strength <= 1))
    if bool(wrong.any()):
        limit = largest_strength(model)
        wrong = ~((strength > 0) & ((strength <= 1) | (strength < limit)))
    if bool(wrong.any()):
        seen = strength[wrong].detach().flatten()[0].item()
        allowed = "in (0, 1]" if limit == 1 else f"positive and below {limit:g}"
        raise ValueError(
            f"strength must be {allowed}, got {seen:g}; beyond that the prox need not be unique, because "
            f"Lip(f) < t / (t - 1) is not known to hold (see lipschitz_bound)"
        )
    return strength.to(z).expand(len(z))


def _levels(spec: Spec, sigma: float | Tensor | None, x: Tensor) -> Tensor | None:
    """The noise level of every sample, (N,), or None for a network of one level."""
    if not spec.noise_levels:
        if sigma is not None:
            raise ValueError("sigma must be None: this network was built for a single noise level")
        return None
    if sigma is None:
        raise ValueError("sigma must be given: this network is noise-conditional, e.g. model(x, sigma=0.1)")
    if isinstance(sigma, str | list | tuple):
        raise TypeError(f"sigma must be a number or a tensor, got {sigma!r}")
    if isinstance(sigma, Tensor):
        if sigma.dim() > 1 or (sigma.dim() == 1 and sigma.shape[0] not in (1, x.shape[0])):
            raise ValueError(f"sigma must have shape () or ({x.shape[0]},), got {tuple(sigma.shape)}")
        # a check of values on another device would wait for it; there a bad sigma turns the result NaN
        if not torch.compiler.is_compiling() and sigma.device.type == "cpu" and not bool((sigma > 0).all()):
            raise ValueError(f"sigma must be positive, got {sigma.tolist()}")
        sigma = sigma.to(x)
    elif not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    else:
        sigma = torch.full((), float(sigma), dtype=x.dtype, device=x.device)  # a fill, where a copy would wait
    return sigma.expand(x.shape[0])
