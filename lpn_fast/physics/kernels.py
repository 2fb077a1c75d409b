"""Blur kernels: sampled Gaussians, camera shakes, and measured kernels from a file.

k[i, j] = exp(-(i^2 + j^2) / (2 sigma^2)) / sum,     4 sigma to each side, where e^-8 is left of the peak
"""

import functools
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..per_sample import check_positive
from .checks import check_count

PATH = 300  # steps of a shake
NEAR_ONE = 1e-3  # how far a kernel's sum may be off: stored numbers are rounded


def gaussian_kernel(sigma: float, size: int | str | None = None) -> Tensor:
    """Sampled Gaussian of unit sum.

    Parameters
    ----------
    sigma : float
        Standard deviation in pixels.
    size : int or "published", optional
        Side. None is 4 sigma to each side. "published" is the cut-off of the published deblurring experiments (arXiv
        2310.14344), max(5, int(3 sigma)), plus one if that is even: of 1.6 pixels it leaves 1.22.

    Returns
    -------
    Tensor, shape (size, size), float64

    Raises
    ------
    TypeError, ValueError
        sigma not positive, or size not a whole number of at least 1.

    Examples
    --------
    >>> gaussian_kernel(2.0).shape
    torch.Size([17, 17])
    >>> gaussian_kernel(2.0, "published").shape
    torch.Size([7, 7])
    """
    check_positive("sigma", sigma, samples=1)
    if size is None:
        size = 2 * math.ceil(4 * sigma) + 1
    elif size == "published":
        size = max(5, int(3 * sigma)) | 1
    size = check_count("size", size)
    offsets = torch.arange(size, dtype=torch.float64) - size // 2  # (size,)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


def shake_kernel(side: int, generator: torch.Generator | None = None) -> Tensor:
    """A random camera shake of unit sum, its path's middle at the kernel's centre.

    Parameters
    ----------
    side : int
        Side of the kernel, at least 3; the path spans between 0.4 and 0.9 of it.
    generator : torch.Generator, optional
        On the CPU; torch's global one unless given.

    Returns
    -------
    Tensor, shape (side, side), float64, non-negative

    Raises
    ------
    TypeError, ValueError
        side not a whole number of at least 3.

    Examples
    --------
    >>> shake_kernel(15, torch.Generator().manual_seed(0)).sum()
    tensor(1., dtype=torch.float64)
    """
    if check_count("side", side) < 3:
        raise ValueError(f"side must be at least 3, got {side}")
    uniform = functools.partial(torch.rand, generator=generator, dtype=torch.float64)
    normal = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    forgotten = 10 ** (-0.5 - 2.0 * uniform(()))  # 1 - rho, in [0.003, 0.3]
    span = (0.4 + 0.5 * uniform(())) * (side - 1)
    pushes = normal(PATH, 2) * (forgotten * (2 - forgotten)).sqrt()
    velocity, path = normal(2), [torch.zeros(2, dtype=torch.float64)]
    for push in pushes:
        velocity = (1 - forgotten) * velocity + push
        path.append(path[-1] + velocity)
    points = torch.stack(path)  # (PATH + 1, 2)
    low, high = points.amin(0), points.amax(0)
    points = (points - (low + high) / 2) * (span / (high - low).amax()) + (side - 1) / 2
    kernel = torch.zeros(side, side, dtype=torch.float64)
    corner = points.floor().clamp(0, side - 2)
    inside = points - corner  # (PATH + 1, 2), in [0, 1]
    row, column = corner.long().unbind(1)
    for down in (0, 1):
        for right in (0, 1):
            share = (inside[:, 0] if down else 1 - inside[:, 0]) * (inside[:, 1] if right else 1 - inside[:, 1])
            kernel.index_put_((row + down, column + right), share, accumulate=True)
    return kernel / kernel.sum()


def load_kernels(path: str | Path, *, unit_sum: bool = True) -> dict[str, Tensor]:
    """Blur kernels, such as recorded camera shakes and measured point spread functions, from a file.

    Parameters
    ----------
    path : str or Path
        An .npz of arrays (kh, kw), an .npy with one such array or a stack (K, kh, kw), or a gray picture
        (TIFF, PNG). Read without executing anything that the file may hold.
    unit_sum : bool
        Divide every kernel by its sum, so that blurring keeps the mean of an image; a warning says by what.

    Returns
    -------
    dict of str -> Tensor, shape (kh, kw), float64
        Named as in the file; "0", "1", ... for an .npy.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not such a file, or an array that is not a kernel: its name and shape are given.

    Examples
    --------
    >>> import tempfile, pathlib, numpy
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "shakes.npz")
    >>> numpy.savez(path, left=numpy.ones((1, 5)))
    >>> load_kernels(path)["left"]
    tensor([[0.2000, 0.2000, 0.2000, 0.2000, 0.2000]], dtype=torch.float64)
    """
    path = Path(path)
    if path.suffix.lower() in (".tif", ".tiff", ".png"):
        return {"0": _kernel(str(path), _picture(path), unit_sum)}
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            stack = content[None] if content.ndim == 2 else content
            arrays = {str(i): array for i, array in enumerate(stack)}
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, header and pickle errors of many types; all mean the same to the user
        raise ValueError(f"{path} must be an .npz or .npy file of numbers: {error}") from error
    return {name: _kernel(f"{path}, {name}", array, unit_sum) for name, array in arrays.items()}


def _picture(path: Path) -> np.ndarray:
    """The values of a gray picture as they are stored, (kh, kw)."""
    try:
        with Image.open(path) as picture:
            if (pages := getattr(picture, "n_frames", 1)) > 1:
                raise ValueError(f"it holds {pages} pages")
            return np.asarray(picture)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise ValueError(f"{path} must be one gray picture: {error}") from error


def _kernel(name: str, array: np.ndarray, unit_sum: bool) -> Tensor:
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: a kernel must be numbers of shape (kh, kw), got {array.dtype} {array.shape}")
    kernel = torch.from_numpy(array.astype(np.float64))
    total = float(kernel.sum())
    if not bool(kernel.isfinite().all()):
        raise ValueError(f"{name}: a kernel must be finite, got NaN or infinite values")
    if unit_sum and not total > 0:
        raise ValueError(f"{name}: a kernel needs a positive sum to be normalised, got {total}")
    if unit_sum and abs(total - 1) > NEAR_ONE:
        warnings.warn(f"{name}: kernel divided by its sum, {total:.6g}", UserWarning, stacklevel=4)
    return kernel / total if unit_sum else kernel
