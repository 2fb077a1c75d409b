"""What tensors and names must be, checked at the public edge; every message says what was seen and what to write.

The mistakes are the same for networks, operators, solvers and the prior: numpy arrays, bytes, pictures with channels
last, no batch axis, another type, a device that is not there, a name misspelt.
"""

import difflib
import functools
import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
COLOURS = (1, 3, 4)  # sizes of a last axis that holds the channels of a picture
FEWEST_ROWS = 5  # a second axis from here on is rows rather than channels, where the last one looks like channels


def check_float(name: str, value, dtype: torch.dtype | None = None) -> None:
    """Raise unless `value` is a tensor of `dtype`, or where that is None of float32 or float64.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, Tensor):
        hint = ""
        if isinstance(value, np.ndarray):
            scaled = " / 255" if value.dtype == np.uint8 else ""
            hint = f" of {value.dtype}; use torch.from_numpy({name}).float(){scaled}"
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}{hint}")
    wanted = DTYPES if dtype is None else (dtype,)
    if value.dtype not in wanted:
        text = "float32 or float64" if dtype is None else f"of the model's dtype {dtype}"
        own = "" if dtype is None else ", or the model with model.to(...)"
        remedy = f"convert with {name}.to({wanted[0]}){own}"
        if value.dtype == torch.uint8:
            remedy = f"for pixels of 8 bits use {name}.float() / 255"
        raise TypeError(f"{name} must be {text}, got {value.dtype}; {remedy}")


def check_batch(name: str, value, expected: tuple) -> None:
    """Raise unless `value` is a float32 or float64 tensor of the expected shape.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Tensor
    expected : tuple of int or str
        Size of every axis; a string stands for any size and is its name in the message.

    Raises
    ------
    TypeError
        Not a tensor, or one of another type.
    ValueError
        Another shape.
    """
    check_float(name, value)
    check_shape(name, value, expected)


def check_shape(name: str, value: Tensor, expected: tuple) -> None:
    """Raise a ValueError, with what would help, unless `value` has that shape; see `check_batch`."""
    if not _fits(value, expected):
        shape = shape_text(expected)
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}{_remedy(name, value, expected)}")


def check_channels_second(name: str, images: Tensor) -> None:
    """Raise a ValueError where a batch of pictures has the channels last."""
    if images.dim() == 4 and images.shape[-1] in COLOURS and min(images.shape[1:3]) >= FEWEST_ROWS:
        raise ValueError(
            f"{name} must have shape (N, C, H, W), got {tuple(images.shape)}, which looks like (N, H, W, C); "
            f"use {name}.permute(0, 3, 1, 2)"
        )


def check_number(name: str, value) -> None:
    """Raise a TypeError unless `value` is a number or a tensor: what comparisons make of a string is no message."""
    if isinstance(value, str | bytes | list | tuple | dict) or value is None:
        raise TypeError(f"{name} must be a number or a tensor, got {value!r}")


def check_name(what: str, name, known: Iterable[str]) -> None:
    """Raise a ValueError unless `name` is one of those, with the nearest one."""
    names = list(known)
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")


def did_you_mean(name, known: Iterable[str]) -> str:
    """What to add to a message about an unknown name; empty where nothing is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_device(device: str | torch.device) -> None:
    """Raise a ValueError where tensors cannot be put on that device.

    torch's own words for a build without CUDA are an assertion about its compilation.
    """
    reason = _missing(str(device))
    if reason:
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}; use device='cpu'")


@functools.cache
def _missing(device: str) -> str:
    try:
        kind = torch.device(device)
        if kind.type == "cuda" and not torch.backends.cuda.is_built():
            return f"this torch, {torch.__version__}, was built without CUDA"
        if kind.type == "cuda" and not torch.cuda.is_available():
            return "torch finds no GPU (nvidia-smi shows what the driver sees)"
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return ""


def needed(module: str, extra: str, what: str) -> Any:
    """The module of an optional package; a ValueError says what needs it, and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f'{what} needs {module}: pip install "lpn-fast[{extra}]"') from error


def shape_text(expected: tuple) -> str:
    """(N, C, 512, 512), as shapes are written in messages."""
    return "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"


def _fits(value: Tensor, expected: tuple) -> bool:
    return value.dim() == len(expected) and all(
        isinstance(size, str) or size == got for size, got in zip(expected, value.shape, strict=True)
    )


def _remedy(name: str, value: Tensor, expected: tuple) -> str:
    """What would give a tensor of another shape the right one, as code; empty where that cannot be told."""
    dims, shape = len(expected), value.shape
    if dims < 4:  # vectors
        return f"; add a batch axis with {name}[None]" if _fits(value[None], expected) else ""
    last, channels = shape[-1] if value.dim() else 0, expected[1]
    many = range(1, 5) if isinstance(channels, str) else (channels,)
    at_end = last in many or last in COLOURS and value.dim() >= dims - 1 and shape[-2] >= FEWEST_ROWS
    if value.dim() == dims and at_end and shape[1] not in many and shape[1] >= FEWEST_ROWS:
        axes = ", ".join(map(str, range(1, dims - 1)))
        return f"; channels come second: {name}.permute(0, {dims - 1}, {axes})"
    if value.dim() == dims and shape[1] != channels and not isinstance(channels, str):
        return _channels(name, shape[1], channels)
    if value.dim() == dims - 1 and at_end and shape[0] not in many:
        axes = ", ".join(map(str, (dims - 2, *range(dims - 2))))
        return f"; channels come before rows, and a batch axis first: {name}.permute({axes})[None]"
    if value.dim() == dims - 1 and shape[0] in many:
        return f"; add a batch axis with {name}[None]"
    if value.dim() == dims - 1:
        apart = f", or a channel axis with {name}[:, None]" if 1 in many else ""
        return f"; add a batch axis with {name}[None]{apart}"
    if value.dim() == dims - 2 and 1 in many:
        return f"; add batch and channel axes with {name}[None, None]"
    return ""


def _channels(name: str, seen: int, wanted: int) -> str:
    """Images of another number of channels than a network has."""
    if wanted == 1:
        return f"; a gray network takes the channels one by one: {name}.flatten(0, 1)[:, None]"
    if seen == 1:
        return f"; repeat the gray channel with {name}.expand(-1, {wanted}, -1, -1)"
    return f"; leave the alpha channel out with {name}[:, :3]" if (seen, wanted) == (4, 3) else ""
