"""What every operator requires of its arguments: shape, type and device, in one line that names all three."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..per_sample import check_positive

DTYPES = (torch.float32, torch.float64)


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
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {value.dtype}")
    fits = value.dim() == len(expected) and all(
        isinstance(size, str) or size == got for size, got in zip(expected, value.shape, strict=True)
    )
    if not fits:
        without_batch = value.dim() == len(expected) - 1 and all(
            isinstance(size, str) or size == got for size, got in zip(expected[1:], value.shape, strict=True)
        )
        remedy = f"; add a batch axis with {name}[None]" if without_batch else ""
        if value.dim() == 2 and len(expected) == 4:
            remedy = f"; add batch and channel axes with {name}[None, None]"
        raise ValueError(f"{name} must have shape {shape_text(expected)}, got {tuple(value.shape)}{remedy}")


def check_images(name: str, images: Tensor) -> None:
    """Raise unless `images` is (N, C, H, W) in float32 or float64."""
    check_batch(name, images, ("N", "C", "H", "W"))


def check_prox(
    z: Tensor,  # (N, C, H, W)
    y: Tensor,  # (N, ...)
    gamma: float | Tensor,  # (N,) if a tensor
    measured: tuple[int, ...],
) -> None:
    """Raise unless y is `measured`-shaped, of the type and on the device of z, and gamma is positive."""
    if tuple(y.shape) != tuple(measured):
        raise ValueError(f"y must have shape {tuple(measured)} for z of shape {tuple(z.shape)}, got {tuple(y.shape)}")
    if (y.dtype, y.device) != (z.dtype, z.device):
        raise TypeError(f"y must be {z.dtype} on {z.device} as z is, got {y.dtype} on {y.device}")
    check_positive("gamma", gamma, len(z))


def check_count(name: str, value, low: int = 1) -> int:
    """`value` as an int, or an error: a whole number, at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return value


def check_size(name: str, value) -> tuple[int, int]:
    """(height, width) from a pair or from one integer for a square."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be a number or (height, width), got {value!r}")
    height, width = (check_count(name, side) for side in pair)
    return height, width


def shape_text(expected: tuple) -> str:
    """(N, C, 512, 512), as shapes are written in messages."""
    return "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
