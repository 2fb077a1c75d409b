"""What a call of a network must be given, checked once at the public edge. Every error names what is wrong."""

import math
import warnings

import torch
from torch import Tensor

from ..algebra.noise import noise_features
from ..algebra.spec import Spec
from ..contract import check_float, check_number, check_shape
from .gain import Network, largest_strength

OUTSIDE = 2.0  # factor beyond the trained noise levels
LIKE_BYTES = 4.0  # times the white level of the model: mean size of pixels that are in other units


def checked_input(
    spec: Spec,
    log_levels: Tensor,  # (K,) of the spec's noise levels; its dtype and device are the model's
    x: Tensor,  # (N, dim), (N, C, H, W) or (N, C, D, H, W)
    sigma: float | Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x contiguous and in the model's dtype, the noise features, and the unit x is to be divided by, (N, 1, ...).

    The unit is None for networks without `noise_units`. Errors name what is wrong.
    """
    x = checked_images(x, (spec.channels, *spec.axes), log_levels)
    if spec.image_size is not None and tuple(x.shape[2:]) != spec.image_size:
        raise ValueError(f"this network takes images of {spec.image_size} pixels, got {tuple(x.shape[2:])}")
    levels = checked_levels(sigma, x, conditional=bool(spec.noise_levels))
    if levels is None:
        return x.contiguous(), None, None
    features = noise_features(levels, spec.noise_levels, log_levels)
    unit = levels.view(-1, *(1,) * (x.dim() - 1)) if spec.noise_units else None
    return x.contiguous(), features, unit


def checked_images(x: Tensor, shape: tuple, own: Tensor) -> Tensor:
    """x, of shape (N, *shape), on the device and in the dtype of a model's parameter `own`."""
    if isinstance(x, Tensor) and x.device != own.device:
        raise ValueError(f"x is on {x.device}, the model on {own.device}; move one with .to()")
    if not isinstance(x, Tensor) or x.dtype != own.dtype and not _is_cast(x):
        check_float("x", x, own.dtype)
    check_shape("x", x, ("N", *shape))
    return x if x.dtype == own.dtype else x.to(own.dtype)


def _is_cast(x: Tensor) -> bool:
    """Whether autocast converts it."""
    return x.is_floating_point() and torch.is_autocast_enabled(x.device.type)


def checked_strength(model: Network, strength: float | Tensor, z: Tensor) -> Tensor:
    """t of every sample, (N,), in z's dtype."""
    check_number("strength", strength)
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


def checked_levels(sigma: float | Tensor | None, x: Tensor, conditional: bool) -> Tensor | None:
    """The noise level of every sample, (N,) in x's dtype, or None for a network of one level."""
    if not conditional:
        if sigma is not None:
            raise ValueError("sigma must be None: this network was built for a single noise level")
        return None
    if sigma is None:
        raise ValueError("sigma must be given: this network is noise-conditional, e.g. model(x, sigma=0.1)")
    check_number("sigma", sigma)
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


def checked_network(model) -> None:
    """Raise a TypeError unless `model` is a network, for functions that ask more of it than to be called."""
    if not hasattr(model, "potential_and_prox"):
        if isinstance(model, str):
            raise TypeError(f"model must be a network, got {model!r}: lf.pretrained({model!r}) loads a shipped one")
        raise TypeError(f"model must be an LPN, got {type(model).__name__}; lf.pretrained loads a shipped one")


def warn_of_units(card: dict, x: Tensor, sigma: float | Tensor | None, stacklevel: int = 4) -> None:
    """RuntimeWarning where a call is in other units than the model: pixels of 0..255, NaN, a level it has not seen.

    For models that know their value range, called on a CPU, where looking costs a thousandth of the call and waits
    for nothing.
    """
    if "value_range" not in card or torch.compiler.is_compiling() or type(x) is not Tensor:
        return
    if x.device.type != "cpu" or not x.numel() or _is_wrapped(x):
        return
    size = float(torch.linalg.vector_norm(x.detach().to(torch.promote_types(x.dtype, torch.float32)), 1)) / x.numel()
    found = [unit_alarm("x", "x", size, card["value_range"][-1]), level_alarm(card.get("sigma"), sigma)]
    for sentence in filter(None, found):
        warnings.warn(sentence, RuntimeWarning, stacklevel=stacklevel + 1)


def unit_alarm(what: str, name: str, size: float, white: float) -> str | None:
    """What to say of images whose mean size is that of bytes, or no number; `name` is the argument to change."""
    if not math.isfinite(size):
        return f"{what} holds NaN or infinity, and so will the result for those samples: look at {name}.isfinite()"
    if size <= LIKE_BYTES * white:
        return None
    return (
        f"{what} has pixels of mean size {size:.3g}, but the model takes images in [0, {white:g}]: divide {name} by "
        "the white level (255 for 8 bits), or use lf.rescaled(model, 1 / 255)"
    )


def level_alarm(trained, sigma: float | Tensor | None) -> str | None:
    """What to say of a noise level far outside the levels (low, high) of the training, or the single one."""
    if sigma is None or trained is None:
        return None
    levels = [float(v) for v in (trained if isinstance(trained, list | tuple) else (trained,))]
    given = torch.as_tensor(sigma)
    if given.device.type != "cpu" or not given.numel() or _is_wrapped(given):
        return None
    low, high = float(given.min()), float(given.max())
    if min(levels) / OUTSIDE <= low and high <= OUTSIDE * max(levels):
        return None
    worst = high if high > OUTSIDE * max(levels) else low
    hint = f"; for 8-bit images divide by 255: {worst:g}/255 = {worst / 255:.3g}" if worst >= 1 else ""
    return f"sigma = {worst:.3g} lies outside the model's training, {min(levels):.3g} to {max(levels):.3g}{hint}"


def _is_wrapped(x: Tensor) -> bool:
    """Whether x is one of torch.func's tensors, which have no values of their own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
