"""What operators require of their arguments, beside what contract.py checks for all."""

from collections.abc import Sequence

from torch import Tensor

from ..contract import check_batch, check_channels_second
from ..per_sample import check_positive


def check_images(name: str, images: Tensor) -> None:
    """Raise unless `images` is (N, C, H, W) in float32 or float64, the channels second."""
    check_batch(name, images, ("N", "C", "H", "W"))
    check_channels_second(name, images)


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
