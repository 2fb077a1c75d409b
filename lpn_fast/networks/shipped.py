"""Models that ship with the package, each a safetensors file with its card beside it."""

from importlib import resources

import torch

from ..contract import check_name
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
    check_name("name", name, names)
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
