"""Models that ship with the package, each a safetensors file with its card beside it."""

import difflib
from importlib import resources

import torch

from .checkpoint import load
from .lpn import LPN


def list_pretrained() -> list[str]:
    """Names that `pretrained` accepts.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> "natural-gray" in lf.list_pretrained()
    True
    """
    return sorted(
        entry.name.removesuffix(".safetensors")
        for entry in resources.files("lpn_fast").joinpath("pretrained").iterdir()
        if entry.name.endswith(".safetensors")
    )


def pretrained(name: str, device: str | torch.device = "cpu") -> LPN:
    """A shipped model, for images in [0, 1], in evaluation mode. Its `card` tells what it was trained on.

    Parameters
    ----------
    name : str
        One of `list_pretrained()`.
    device : str or torch.device

    Raises
    ------
    ValueError
        No model of that name ships with this version.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> model = lf.pretrained("natural-gray")
    """
    names = list_pretrained()
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name must be one of {names}, got {name!r}{hint}")
    with resources.as_file(resources.files("lpn_fast") / "pretrained" / f"{name}.safetensors") as path:
        model = load(path, device)
    model.source = name
    return model


def shipped_or_loaded(name_or_path: str, device: str | torch.device = "cpu") -> LPN:
    """The shipped model of that name, or else the one in that file; errors are those of `load`.

    Examples
    --------
    >>> shipped_or_loaded("natural-gray").is_noise_conditional
    True
    """
    return pretrained(name_or_path, device) if name_or_path in list_pretrained() else load(name_or_path, device)
