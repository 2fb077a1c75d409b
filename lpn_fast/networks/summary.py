"""What a network is in a few lines, for prompts and notebooks."""

import torch
from torch import nn

from .. import display
from ..ops import device_check, registry

COLOURS = {1: "gray", 3: "colour"}


class Summarised(nn.Module):
    """A network that prints as what a user asks first, instead of as a tree of submodules.

    Attributes
    ----------
    source : str or None
        The shipped model or the file it was loaded from.
    """

    source: str | None = None

    def __repr__(self) -> str:
        title, *lines = summary(self)
        return "\n".join([title[1], *(f"  {name}: {text}" for name, text in lines)])

    def _repr_html_(self) -> str:
        title, *lines = summary(self)
        return display.table(title[1], lines)


def summary(model) -> list[tuple[str, str]]:
    """(name, text) of each line; the first is the title."""
    spec, card = model.spec, model.card
    family = type(model).__name__
    title = family if model.source is None else f"{family} {model.source!r}"
    own = next(model.parameters())
    lines = [("model", title), ("input", _input(spec, card.get("value_range"))), ("noise", _noise(spec, card))]
    lines.append(("architecture", model.extra_repr()))
    lines.append(("parameters", f"{sum(p.numel() for p in model.parameters()):,}"))
    if "data" in card:
        lines.append(("trained on", str(card["data"])))
    if "limits" in card:
        lines.append(("limits", str(card["limits"])))
    lines.append(("runs on", f"{own.device}, {str(own.dtype).removeprefix('torch.')}{_backend(model, own)}"))
    return lines


def _input(spec, value_range) -> str:
    if getattr(spec, "is_dense", False):
        shape = f"vectors (N, {spec.channels})"
    else:
        volumes = getattr(spec, "ndim", 2) == 3
        what = "volumes (N, {}, D, H, W)" if volumes else "images (N, {}, H, W)"
        shape = f"{COLOURS.get(spec.channels, '')} {what.format(spec.channels)}".strip()
    return shape if not value_range else f"{shape}, values in [{value_range[0]:g}, {value_range[1]:g}]"


def _noise(spec, card: dict) -> str:
    own = card.get("sigma")
    if spec.noise_levels:
        low, high = own if isinstance(own, list | tuple) else (spec.noise_levels[0], spec.noise_levels[-1])
        return f"sigma from {low:g} to {high:g}, given with every call"
    return f"one level, {own:g}" if isinstance(own, int | float) else "one level, sigma is not given"


def _backend(model, own: torch.Tensor) -> str:
    """Which backend runs it; nothing is checked on a device for the sake of a printed line."""
    if not hasattr(model.spec, "stages"):
        return ""
    x = torch.empty(device_check.small_shapes(model.spec)[0], dtype=own.dtype, device=own.device)
    name = registry.chosen()
    if name == "auto":
        refused = registry.not_admitted(model.spec, x, model.precision)
        able = registry.reasons(model.spec, x, model.precision).items()
        name = next((name for name, reason in able if reason is None and name not in refused), "none")
    return f", backend {name}, precision {model.precision}"
