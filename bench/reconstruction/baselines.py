"""What a user would take instead; each has one number that is chosen on training images, by mean PSNR.

TV       min  1/2 |A x - y|^2 + c s^2 TV(x)        Condat-Vu (J. Optim. Theory Appl. 158, 2013), per sample alike
         x+ = x - tau (grad h(x) + D^T u),   u+ = P(u + D (2 x+ - x) / (8 tau'))     TV isotropic, D forward
PnP-DnCNN  half-quadratic splitting with a falling noise level (as Zhang et al., arXiv 2008.13751), the flexible
         DnCNN for all levels; gamma_k = sigma_k^2 / (c s^2) weighs the data, sigma_k from .19 to s or 1/255
PnP-BM3D   the same with block matching as the denoiser, where the package bm3d is installed
WCRR     min  1/2 |A x - y|^2 + c / eta R(x)       Goujon et al., arXiv 2308.10542: weakly convex ridges,
         R'(x) = W^T phi(W x), phi(t) = (mu p(a t) - q(a t)) / a with linear splines p, q; accelerated gradients
BM3D     block matching on the simple answer
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lpn_fast import metrics

from . import data
from .outcome import Outcome
from .tasks import Instance

TV_GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
TRUST_GRID = (0.1, 0.25, 0.6)
WCRR_GRID = (0.03, 0.1, 0.3, 1.0)
LARGEST_LEVEL = 49 / 255  # where the falling noise level begins


def tuned(method: Callable[[Instance, float], Outcome], grid: tuple[float, ...], train: Instance) -> float:
    """The value of the grid with the best mean PSNR on training images."""
    return max(grid, key=lambda value: metrics.psnr(method(train, value).x.clamp(0, 1), train.x).mean().item())


# ---- total variation


def total_variation(instance: Instance, weight: float, iterations: int = 200, tol: float = 0.0) -> Outcome:
    """Primal-dual splitting on h + weight s^2 TV, in units where the data term has curvature one."""
    curvature = instance.physics.norm() ** 2
    limit = weight * instance.noise**2 / curvature
    tau, sigma = 0.5, 0.15  # 1 / tau - 8 sigma >= 1/2
    x = instance.simple
    u = torch.zeros(2, *x.shape)
    for done in range(1, iterations + 1):  # noqa: B007
        gradient = instance.physics.A_adjoint(instance.physics.A(x) - instance.y) / curvature
        new = x - tau * (gradient + differences_adjoint(u))
        u = u + sigma * differences(2 * new - x)
        u = u / (u.norm(dim=0) / limit).clamp_min(1)
        still, x = tol > 0 and bool(((new - x).flatten(1).norm(dim=1) <= tol * new.flatten(1).norm(dim=1)).all()), new
        if still:
            break
    return Outcome(x, done, config={"weight": weight, "tol": tol})


def differences(x: Tensor) -> Tensor:  # (N, C, H, W) -> (2, N, C, H, W), zero at the far borders
    return torch.stack(
        (F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1)), F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1)))
    )


def differences_adjoint(u: Tensor) -> Tensor:
    rows, columns = u[0][..., :-1, :], u[1][..., :, :-1]
    return F.pad(rows, (0, 0, 1, 0)) - F.pad(rows, (0, 0, 0, 1)) + F.pad(columns, (1, 0)) - F.pad(columns, (0, 1))


# ---- plug and play with DnCNN


class FlexibleDnCNN:
    """The denoiser for all noise levels, gray or in colour: x = net(noisy, map of the level)."""

    def __init__(self, root: Path, kind: str = "gray"):
        arrays = data.weights(root, f"fdncnn_{kind}")
        count = sum(key.endswith("weight") for key in arrays)
        self.layers = [(arrays[f"conv{i:02d}.weight"], arrays[f"conv{i:02d}.bias"]) for i in range(count)]

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        z = torch.cat((x, torch.full_like(x[:, :1], sigma)), dim=1)
        for i, (weight, bias) in enumerate(self.layers):
            z = F.conv2d(z, weight, bias, padding=1)
            z = z if i == len(self.layers) - 1 else z.relu_()
        return z


def falling(
    denoiser: Callable[[Tensor, float], Tensor],
    instance: Instance,
    trust: float,
    iterations: int = 8,
    last: float | None = None,
) -> Outcome:
    """Data prox, then the denoiser (x, level) -> x, with noise levels that fall geometrically to `last`.

    None is the noise of the measurements, which is that of the image where the operator has norm one.
    """
    last = min(max(instance.noise if last is None else last, 1 / 255), LARGEST_LEVEL / 2)
    x = instance.simple
    for level in torch.logspace(torch.tensor(LARGEST_LEVEL).log10(), torch.tensor(last).log10(), iterations).tolist():
        x = instance.physics.prox_l2(x, instance.y, level**2 / (trust * instance.noise**2))
        x = denoiser(x, level)
    return Outcome(x, iterations, config={"trust": trust})


# ---- weakly convex ridge regulariser


class RidgeRegulariser:
    """Gradient of R for images in [0, 1]; the stored network counts noise in 255ths."""

    RANGE, NOISE_RANGE = 0.1, 30.0  # the splines' knots

    def __init__(self, root: Path):
        arrays = data.weights(root, "wcrr_repo_WCRR-CNN")
        first = arrays["conv_layer.conv_layers.0.parametrizations.weight.original"]
        self.kernels = [first - first.mean(dim=(1, 2, 3), keepdim=True)]
        self.kernels += [arrays[f"conv_layer.conv_layers.{i}.weight"] for i in (1, 2)]
        # W is their composition, cropped by no border, with the norm taken out
        spectrum = torch.fft.rfft2(_composed(self.kernels).double(), s=(128, 128)).abs().square().sum(dim=(0, 1))
        self.kernels[-1] = self.kernels[-1] / spectrum.max().sqrt().float()
        self.kernel = _composed(self.kernels)  # (60, 1, 13, 13)
        self.mu = float(arrays["mu_"].exp())
        self.splines = [_antisymmetric(arrays[f"activation_{part}.coefficients"][0], self.RANGE) for part in
                        ("cvx", "ccv")]  # fmt: skip
        self.scaling = arrays["spline_scaling.coefficients"]  # (60, 11)

    def gradient(self, x: Tensor, sigma: float) -> Tensor:
        """R'(x) at noise level sigma, in image units."""
        level = min(max(255 * sigma, 0.5), self.NOISE_RANGE)
        at = level / self.NOISE_RANGE * (self.scaling.shape[1] - 1)
        low = min(int(at), self.scaling.shape[1] - 2)
        a = (self.scaling[:, low] + (at - low) * (self.scaling[:, low + 1] - self.scaling[:, low])).exp()
        a = (a / (level + 1e-5)).reshape(1, -1, 1, 1)
        side = self.kernel.shape[-1] // 2
        t = F.pad(x, (side, side, side, side))
        for kernel in self.kernels:  # three small ones after another take a third of the time of one
            t = F.conv2d(t, kernel)
        t = a * t
        phi = (self.mu * _spline(self.splines[0], t, self.RANGE) - _spline(self.splines[1], t, self.RANGE)) / a
        for kernel in reversed(self.kernels):
            phi = F.conv_transpose2d(phi, kernel)
        return phi[..., side:-side, side:-side]


def ridges(regulariser: RidgeRegulariser, instance: Instance, weight: float, iterations: int = 150) -> Outcome:
    """Accelerated gradients on h / L + weight R, L = |A|^2, with restarts; the level is that of MAP, as ours."""
    curvature = instance.physics.norm() ** 2
    sigma = instance.noise / curvature**0.5
    step = 1 / (1 + weight * regulariser.mu)
    x = previous = instance.simple
    theta = torch.ones(len(x), 1, 1, 1)
    for _ in range(iterations):
        larger = (1 + (1 + 4 * theta**2).sqrt()) / 2
        z = x + (theta - 1) / larger * (x - previous)
        gradient = instance.physics.A_adjoint(instance.physics.A(z) - instance.y) / curvature
        gradient = gradient + weight * regulariser.gradient(z, sigma)
        previous, x, theta = x, z - step * gradient, larger
        uphill = (gradient * (x - previous)).sum(dim=(1, 2, 3), keepdim=True) > 0
        theta = torch.where(uphill, 1.0, theta)
    return Outcome(x, iterations, config={"weight": weight})


def _composed(kernels: list[Tensor]) -> Tensor:
    """The kernel of convolutions one after the other, from their answer to an impulse."""
    side = sum(k.shape[-1] - 1 for k in kernels) + 1
    z = torch.zeros(1, 1, 2 * side - 1, 2 * side - 1)
    z[..., side - 1, side - 1] = 1
    for k in kernels:
        z = F.conv2d(z, k)
    return z[0][:, None].flip(-1, -2).contiguous()


def _antisymmetric(coefficients: Tensor, limit: float) -> Tensor:
    """Values at the knots, with slopes in [0, 1] and none at the ends."""
    step = 2 * limit / (len(coefficients) - 1)
    slopes = (coefficients.diff() / step).clamp(0, 1)
    slopes[0] = slopes[-1] = 0
    values = F.pad(slopes.cumsum(0) * step, (1, 0))
    return (values - values.flip(0)) / 2


def _spline(values: Tensor, t: Tensor, limit: float) -> Tensor:
    """Linear interpolation between equidistant knots on [-limit, limit], constant outside."""
    at = ((t + limit) / (2 * limit) * (len(values) - 1)).clamp(0, len(values) - 1)
    low = at.floor().clamp_max(len(values) - 2).long()
    return values[low] + (at - low) * (values[low + 1] - values[low])


# ---- BM3D


def why_no_bm3d() -> str | None:
    """None where the package can be imported."""
    return None if importlib.util.find_spec("bm3d") else "the package bm3d is not installed"


def block_matching(x: Tensor, level: float) -> Tensor:
    """BM3D of images (N, 1, H, W) with white noise of that level, one at a time."""
    from bm3d import bm3d

    return torch.stack([torch.from_numpy(bm3d(image[0].numpy(), level)).to(x)[None] for image in x])


def bm3d(instance: Instance, level: float) -> Outcome:
    """The simple answer, denoised as if a noise of that level were on it."""
    return Outcome(block_matching(instance.simple, level), 1, config={"level": level})
