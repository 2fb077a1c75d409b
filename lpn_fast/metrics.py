"""Image quality, one number per sample.

    psnr = 10 log10( range^2 / mean (x - r)^2 )

    ssim = mean over pixels of
           (2 mu_x mu_r + C1) (2 cov_xr + C2) / ( (mu_x^2 + mu_r^2 + C1) (var_x + var_r + C2) ),
           C1 = (0.01 range)^2,  C2 = (0.03 range)^2              Wang, Bovik, Sheikh, Simoncelli, 2004

Two definitions of SSIM are in use and they differ in the second digit, so the window has a name:
"uniform" is scikit-image's default (7 x 7 box, sample covariance), "gaussian" is the original
one (11 x 11, sigma 1.5, population covariance). Both average only the pixels whose window lies
inside the image, then the channels.

Everything is computed in float64: var = E[x^2] - mu^2 cancels, and in float32 the digits lost are
those that C2 = 9e-4 compares with. On a GPU float64 also keeps TF32 out of the filters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["psnr", "ssim"]

UNIFORM_SIDE = 7  # scikit-image's default window
GAUSSIAN_RADIUS, GAUSSIAN_SIGMA = 5, 1.5  # 11 x 11: the window of the 2004 paper


def psnr(x: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of every sample, in decibels.

    Parameters
    ----------
    x, reference : Tensor, shape (N, C, H, W) or (N, C, D, H, W)
        Images or volumes and what they should be; the mean square runs over all axes but the first.
    data_range : float
        Largest minus smallest value an image may take, 1 for images in [0, 1].

    Returns
    -------
    Tensor, shape (N,), float64
        `inf` where the two are equal.

    Raises
    ------
    ValueError
        Shapes that differ or are not as above, or a data_range that is not positive.

    Examples
    --------
    >>> import torch
    >>> reference = torch.zeros(2, 1, 8, 8)
    >>> psnr(reference + 0.1, reference).round(decimals=3)
    tensor([20., 20.], dtype=torch.float64)
    """
    x, reference = _checked_pair(x, reference, data_range, volumes=True)
    mean_square = (x - reference).square().mean(dim=tuple(range(1, x.dim())))  # (N,)
    return 10 * torch.log10(data_range**2 / mean_square)


def ssim(x: Tensor, reference: Tensor, data_range: float = 1.0, window: str = "uniform") -> Tensor:
    """Structural similarity of every sample, at most 1.

    Parameters
    ----------
    x, reference : Tensor, shape (N, C, H, W)
        Images and what they should be.
    data_range : float
        Largest minus smallest value an image may take, 1 for images in [0, 1].
    window : "uniform" or "gaussian"
        7 x 7 box with sample covariance (scikit-image's default, the one to compare with published
        tables made by it), or 11 x 11 Gaussian of sigma 1.5 with population covariance.

    Returns
    -------
    Tensor, shape (N,), float64

    Raises
    ------
    ValueError
        Shapes that differ or are not (N, C, H, W), an image smaller than the window, an unknown
        window, or a data_range that is not positive.

    Examples
    --------
    >>> import torch
    >>> image = torch.rand(2, 3, 16, 16)
    >>> ssim(image, image)
    tensor([1., 1.], dtype=torch.float64)
    """
    x, reference = _checked_pair(x, reference, data_range)
    taps, unbias = _window(window, x.device)
    if min(x.shape[-2:]) < len(taps):
        raise ValueError(
            f"x must be at least {len(taps)} pixels high and wide for window={window!r}, got {tuple(x.shape)}"
        )

    mean_x, mean_r = _local_mean(x, taps), _local_mean(reference, taps)  # (N, C, H', W'), windows inside
    var_x = unbias * (_local_mean(x * x, taps) - mean_x * mean_x)
    var_r = unbias * (_local_mean(reference * reference, taps) - mean_r * mean_r)
    cov = unbias * (_local_mean(x * reference, taps) - mean_x * mean_r)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_r + c1) / (mean_x * mean_x + mean_r * mean_r + c1)
    structure = (2 * cov + c2) / (var_x + var_r + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window(window: str, device: torch.device) -> tuple[Tensor, float]:
    """One-dimensional taps of the separable window, and the factor that unbiases its variance."""
    if window == "uniform":
        count = UNIFORM_SIDE**2
        taps = torch.full((UNIFORM_SIDE,), 1 / UNIFORM_SIDE, dtype=torch.float64, device=device)
        return taps, count / (count - 1)
    if window == "gaussian":
        offsets = torch.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1, dtype=torch.float64, device=device)
        taps = torch.exp(-0.5 * (offsets / GAUSSIAN_SIGMA) ** 2)
        return taps / taps.sum(), 1.0
    raise ValueError(f"window must be 'uniform' or 'gaussian', got {window!r}")


def _local_mean(
    image: Tensor,  # (N, C, H, W)
    taps: Tensor,  # (k,)
) -> Tensor:  # (N, C, H - k + 1, W - k + 1)
    n, c, h, w = image.shape
    planes = image.reshape(n * c, 1, h, w)
    rows = F.conv2d(planes, taps[None, None, :, None])  # (N C, 1, H - k + 1, W)
    means = F.conv2d(rows, taps[None, None, None, :])  # (N C, 1, H - k + 1, W - k + 1)
    return means.reshape(n, c, *means.shape[-2:])


def _checked_pair(x: Tensor, reference: Tensor, data_range: float, volumes: bool = False) -> tuple[Tensor, Tensor]:
    if x.dim() != 4 and not (volumes and x.dim() == 5):
        wanted = "(N, C, H, W) or (N, C, D, H, W)" if volumes else "(N, C, H, W)"
        raise ValueError(f"x must have shape {wanted}, got {tuple(x.shape)}")
    if x.shape != reference.shape:
        raise ValueError(f"reference must have the shape of x {tuple(x.shape)}, got {tuple(reference.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    return x.double(), reference.double()
