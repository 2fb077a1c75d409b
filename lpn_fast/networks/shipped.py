"""Models that ship with the package, each a safetensors file with its card beside it.

A name says what a model is for: natural-*, ct, mnist and synthetic-gray are the best priors of their kind, denoise-*
the best denoisers, fast-* have f in one pass where the first solve for it, and frame-* are the smallest ones.
"""

import warnings
from importlib import resources

import torch

from ..contract import check_name
from .checkpoint import load
from .lpn import LPN

RENAMED = {  # names of former versions, which said how a model is built
    "natural-gray-explicit": "natural-gray",
    "natural-color-explicit": "natural-color",
    "natural-gray-deblur-explicit": "natural-gray-deblur",
    "ct-explicit": "ct",
    "natural-gray-mixture": "fast-gray",
    "natural-color-mixture": "fast-color",
}


def list_pretrained() -> list[str]:
    """Names that `pretrained` accepts.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> "fast-gray" in lf.list_pretrained()
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
        One of `list_pretrained()`. Names of former versions load with a DeprecationWarning.
    device : str or torch.device

    Raises
    ------
    ValueError
        No model of that name ships with this version.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> model = lf.pretrained("fast-gray")
    """
    if name in RENAMED:
        warnings.warn(f"model {name!r} is called {RENAMED[name]!r} now", DeprecationWarning, stacklevel=2)
        name = RENAMED[name]
    check_name("name", name, list_pretrained())
    with resources.as_file(resources.files("lpn_fast") / "pretrained" / f"{name}.safetensors") as path:
        model = load(path, device)
    model.source = name
    return model


def is_shipped(name: str) -> bool:
    """Whether `pretrained` has a model of that name, a former one included.

    Examples
    --------
    >>> is_shipped("natural-gray-mixture"), is_shipped("natural-grey")
    (True, False)
    """
    return name in RENAMED or name in list_pretrained()


def shipped_or_loaded(name_or_path: str, device: str | torch.device = "cpu") -> LPN:
    """The shipped model of that name, or else the one in that file; errors are those of `load`.

    Examples
    --------
    >>> shipped_or_loaded("fast-gray").is_noise_conditional
    True
    """
    return pretrained(name_or_path, device) if is_shipped(name_or_path) else load(name_or_path, device)
