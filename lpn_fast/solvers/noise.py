"""The noise level of measurements: known, or estimated from the measurements themselves.

Estimate: the diagonal Haar detail  d = (y_00 - y_01 - y_10 + y_11) / 2  of 2 x 2 blocks has the variance of white
noise and hardly any of a smooth signal, and the median ignores the edges that are left:

    s = median |d| / 0.6745                                Donoho, Johnstone, Biometrika 81, 1994

It takes fine texture for noise, so it errs upwards, least for measurements that the operator has smoothed (blur,
projections). It says nothing about measurements that are no images or whose neighbours are unrelated.

Measurements of an operator need not be smooth along both axes: projections in few directions are so along the detector
alone. There the fourth differences  d = (y_0 - 4 y_1 + 6 y_2 - 4 y_3 + y_4) / 70^1/2  of one axis have less of the
signal. As every one of these estimates errs upwards, the least counts, where it is the least by more than chance.

Frequencies are no image, but the outer ones hold little of a picture: the median of their parts is one of the noise.

Two things that cameras do are undone. Pixels of few levels make details of few values, whose median moves in steps:
each value stands for all within half a step, and the median lies inside its own. Where a sensor is at the end of its
range there is no noise to be seen: tiles that often hold the least or the largest value of the image do not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import check_number
from ..physics import MRI, LinearOperator, seen
from ..physics.noise import without_noise

GAUSSIAN_MEDIAN = 0.6744897501960817  # median of |n| for n standard normal
SMALLEST_SIDE = 8  # pixels: 16 blocks, below which a median means little
FEWEST_BLOCKS = (SMALLEST_SIDE // 2) ** 2
OUTER = 0.35  # cycles per pixel: from there on the frequencies of a picture are little beside noise
TILE = 8  # pixels
MOST_CLIPPED = 1 / 32  # share of a tile
FEWEST_UNCLIPPED = 1 / 16  # share of the tiles: where there are fewer, they are what the clipping left over
LEVELS = (255, 1)  # pixels are integers over one of these, if of few levels; 16 bits are as good as continuous
OFF_LEVEL = 1e-3  # rounding of float32, in levels
FOURTH = (1.0, -4.0, 6.0, -4.0, 1.0)
BY_CHANCE = 3.0  # standard errors of a median absolute deviation, 1.17 s / n^1/2, of n that do not overlap
MEDIAN_ERROR = 1.17


def estimate_noise(y: Tensor, physics: LinearOperator | None = None) -> Tensor:
    """Standard deviation of the noise in images, by the median absolute diagonal Haar detail.

    Parameters
    ----------
    y : Tensor, shape (N, C, H, W)
        Measurements with white noise, sides at least 8; frequencies as `physics.MRI` has them.
    physics : object with `A` and `A_adjoint`, optional
        Where given, entries that it cannot reach do not count, and differences along one axis do where they have less
        of the signal. Of `MRI` the outer frequencies count.

    Returns
    -------
    Tensor, shape (N,), float64

    Raises
    ------
    ValueError
        Measurements that are not images of that size, or that have no noise to be seen (a masked image).

    Examples
    --------
    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> estimate_noise(0.1 * torch.randn(1, 1, 64, 64, generator=generator)).round(decimals=2)
    tensor([0.1000], dtype=torch.float64)
    """
    remedy = "; give noise=, the standard deviation of the measurements"
    level = shown_level(y, physics)
    if level is None:
        raise ValueError(
            f"noise can only be estimated from measurements of shape (N, C, H, W) with sides of at least "
            f"{SMALLEST_SIDE}, or of outer frequencies, got {tuple(y.shape)}{remedy}"
        )
    if not bool((level > 0).all()):
        blank = (level <= 0).nonzero().flatten().tolist()
        raise ValueError(f"noise cannot be estimated from y: samples {blank} show none{remedy}")
    return level


def shown_level(y: Tensor, physics: LinearOperator | None = None) -> Tensor | None:
    """The estimate, (N,) float64, zero where measurements show no noise; None for those that cannot show any."""
    operator = None if physics is None else without_noise(physics)
    if isinstance(operator, MRI):
        rows, columns = (torch.fft.fftfreq(n).abs() for n in operator.mask.shape[-2:])
        outer = (torch.maximum(rows[:, None], columns[None]) >= OUTER).to(y.device)
        parts = y.abs().where(outer & seen(operator, y), torch.nan).flatten(1)
        found = parts.nanmedian(1).values.double() / GAUSSIAN_MEDIAN
        return found if bool(found.isfinite().all()) else None
    if y.dim() != 4 or min(y.shape[-2:]) < SMALLEST_SIDE:
        return None
    return haar_level(y) if operator is None else least_level(y, seen(operator, y))


def haar_level(images: Tensor, reached: Tensor | None = None) -> Tensor:
    """The estimate itself, (N,) float64, of images (N, C, H, W) with sides of at least 2; zero where there is none."""
    height, width = (side // 2 * 2 for side in images.shape[-2:])
    blocks = images[..., :height, :width]
    top, bottom = blocks[..., ::2, :], blocks[..., 1::2, :]
    detail = (top[..., ::2] - top[..., 1::2] - bottom[..., ::2] + bottom[..., 1::2]) / 2  # (N, C, H/2, W/2)
    size = detail.flatten(1).abs()
    counts = _unclipped(blocks).flatten(1)
    if reached is not None and not bool(reached.all()):
        whole = -F.max_pool2d(-reached.to(images), 2)[..., : height // 2, : width // 2].flatten(1)  # least of a block
        counts = torch.where(((counts & (whole > 0)).sum(1) >= FEWEST_BLOCKS)[:, None], counts, True) & (whole > 0)
        size = size.where(counts.sum(1, keepdim=True) >= FEWEST_BLOCKS, 0.0)
    return _median(size.where(counts, torch.nan), _step(blocks)) / GAUSSIAN_MEDIAN


def least_level(measured: Tensor, reached: Tensor) -> Tensor:
    """The least of the estimates, (N,) float64, of measurements (N, C, H, W) of which `reached` can be known."""
    level = haar_level(measured, reached)
    low, high = measured.amin((1, 2, 3), keepdim=True), measured.amax((1, 2, 3), keepdim=True)
    counts = reached & (measured > low) & (measured < high)  # not at the end of a range, as air that was set to zero
    for axis in (-1, -2):
        size = _windows(measured, axis) @ measured.new_tensor(FOURTH) / sum(w * w for w in FOURTH) ** 0.5
        size = size.abs().where(_windows(counts, axis).all(-1), torch.nan).flatten(1)
        enough = size.isfinite().sum(1) / len(FOURTH)  # (N,)
        along = size.nanmedian(1).values.double().nan_to_num(torch.inf) / GAUSSIAN_MEDIAN
        by_chance = 1 - BY_CHANCE * MEDIAN_ERROR / enough.clamp_min(1).sqrt()
        clear = (enough >= FEWEST_BLOCKS) & (_step(measured) == 0) & (along > 0) & (along < by_chance * level)
        level = torch.where(clear, along, level)
    return level


def _windows(values: Tensor, axis: int) -> Tensor:
    """All neighbours that a fourth difference takes, in one more axis; none where there are too few."""
    return values.unfold(axis, min(len(FOURTH), values.shape[axis]), 1)


def _unclipped(images: Tensor) -> Tensor:
    """Which 2 x 2 blocks lie in tiles that seldom hold the least or largest value, (N, C, H / 2, W / 2) bool."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    share = F.avg_pool2d(((images == low) | (images == high)).to(images), TILE, ceil_mode=True)  # (N, C, tiles)
    good = share <= MOST_CLIPPED
    good |= good.float().mean((1, 2, 3), keepdim=True) < FEWEST_UNCLIPPED
    whole = good.repeat_interleave(TILE // 2, 2).repeat_interleave(TILE // 2, 3)
    return whole[..., : images.shape[2] // 2, : images.shape[3] // 2]


def _step(images: Tensor) -> Tensor:
    """Distance of the values that a detail can take, (N,) float64; 0 where pixels have no levels."""
    step = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for levels in LEVELS:
        scaled = images * levels
        off = (scaled - scaled.round()).abs().amax((1, 2, 3))
        step = torch.where(off <= OFF_LEVEL, 0.5 / levels, step)
    return step


def _median(
    size: Tensor,  # (N, blocks), NaN where one does not count
    step: Tensor,  # (N,)
) -> Tensor:  # (N,) float64
    """The median, where a value stands for all within half a step of it."""
    middle = size.nanmedian(dim=1).values.double().nan_to_num(0.0)
    half = 0.5 * step
    low = (middle - half).clamp_min(0)
    below = (size < (middle - half)[:, None]).sum(1)
    inside = ((size - middle[:, None]).abs() < half[:, None]).sum(1).clamp_min(1)
    share = (0.5 * size.isfinite().sum(1) - below) / inside
    flat = size.nan_to_num(0.0).amax(1) == 0
    return torch.where((step > 0) & ~flat, low + share * (middle + half - low), middle)


def noise_level(physics: LinearOperator, y: Tensor, given: float | Tensor | None) -> Tensor:  # (N,) float64
    """Standard deviation of the noise in every sample: given, else the physics', else estimated."""
    known = known_noise(physics, y) if given is None else given
    if known is None:
        return estimate_noise(y, physics)
    check_number("noise", known)
    if callable(getattr(known, "level", None)):
        raise TypeError(f"noise must be a number or a tensor, got {known!r}; use physics.with_noise(noise)")
    level = torch.as_tensor(known, dtype=torch.float64, device=y.device)
    if level.dim() > 1 and level.numel() == len(level):  # (N, 1, 1, 1), as it scales images
        level = level.flatten()
    if level.dim() > 1 or (level.dim() == 1 and len(level) != len(y)):
        raise ValueError(f"noise must be a number or have shape ({len(y)},), got shape {tuple(level.shape)}")
    if not bool(((level >= 0) & level.isfinite()).all()):
        raise ValueError(f"noise must be at least 0, got {level.tolist()}")
    return level.expand(len(y))


def known_noise(physics: LinearOperator, y: Tensor) -> Tensor | None:  # (N,) float64
    """What an operator with a noise model (`physics.with_noise`) says of the noise in y, or None."""
    level = getattr(getattr(physics, "noise", None), "level", None)
    return level(y) if callable(level) else None
