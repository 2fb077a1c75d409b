"""The families: dense networks for vectors, fully convolutional multi-scale ones for images and volumes of any size."""

import itertools
from dataclasses import replace

from ..algebra.spec import BORDERS as BORDERS  # for configurations
from ..algebra.spec import Spec, Stage
from .lpn import LPN
from .registry import register

# knots of phi(sigma) for noise-conditional networks, image range [0, 1]: five per decade
NOISE_LEVELS = (0.01, 0.0158, 0.0251, 0.0398, 0.0631, 0.1, 0.158, 0.251)


def check_side(name: str, side: int, least: int, most: int, odd: bool = False) -> None:
    """ValueError unless the side of a kernel lies between two numbers, both included, and is odd where it must be."""
    if not least <= side <= most or (odd and side % 2 == 0):
        raise ValueError(f"{name} must be {'odd and ' if odd else ''}between {least} and {most}, got {side}")


def check_reads_noise(sigma_conditional: bool | tuple[float, ...]) -> None:
    """ValueError for False: networks in units of the noise have to be told its level."""
    if sigma_conditional is False:
        raise ValueError("sigma_conditional must be True or a tuple of knots: such a network reads sigma, got False")


@register("dense", "for vectors, from Python", None)
class MLPLPN(LPN):
    """Dense learned proximal network for vectors.

    Parameters
    ----------
    dim : int
        Length of x.
    hidden : int
        Units per stage.
    layers : int
        Number of non-negative hidden-to-hidden matrices; the network has layers + 1 stages. As in the
        published 1-D network the head is w . z + c . x + c0.
    beta : float
        Sharpness of the softplus.
    alpha : float
        Strong convexity: psi contains alpha/2 |x|^2.
    squared_head : bool
        The first stage also enters through g . z^2 (and has a bias). Linear heads alone make f bounded: it
        approaches a line by many steps. Squared ones make it piecewise linear, as soft thresholding is.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.MLPLPN(dim=2, hidden=32, layers=2)
    >>> model(torch.randn(7, 2)).shape
    torch.Size([7, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 50,
        layers: int = 4,
        beta: float = 10.0,
        alpha: float = 0.0,
        squared_head: bool = False,
    ):
        first = Stage(width=hidden, bias=squared_head)
        cores = [Stage(width=hidden, kernel=1) for _ in range(layers)]
        stages = _with_heads([first, *cores], on_all=False, squared_first=squared_head)
        super().__init__(Spec("dense", dim, stages, beta, alpha, linear=True, constant=True))


@register(
    "multiscale",
    "softplus stages at several scales",
    {name: name for name in ("hidden", "strides", "kernel", "skip_kernel", "heads", "squared_head", "beta", "alpha")},
    noise="optional",
)
class ConvLPN(LPN):
    """Fully convolutional, multi-scale learned proximal network: an exact prox at every image size, or volume size.

    Stage l reads the stage before it through a non-negative kernel and the image, resized to its scale,
    through a skip; psi sums the heads over all pixels. With `ndim=3` images are volumes, x is (N, C, D, H, W), and
    everything else is as for images; the backend "torch" runs them.

    Parameters
    ----------
    channels : int
        Image channels.
    hidden : int
        Channels per stage.
    strides : tuple of int
        Stride of each stage, 1 or 2; its length is the number of stages.
    kernel, skip_kernel : int
        Odd sides of the core kernels and of the skips. None is 5 for images and 3 for volumes: a start at soft
        thresholding (networks/initialise.py) has two channels for every tap, 54 of 27 in volumes.
    heads : "last" or "all"
        Which stages enter psi.
    squared_head : bool
        The first stage also enters through g . z^2: units that grow quadratically represent the identity,
        which a denoiser at low noise nearly is, far more cheaply than the staircase of nearly piecewise
        linear ones. (On later stages they would make f grow without a useful bound, see networks/gain.py.)
    beta, alpha : float
        Softplus sharpness; strong convexity alpha/2 |x|^2.
    sigma_conditional : bool or tuple of float
        Let the biases depend on the noise level (in the range of NOISE_LEVELS, or of the knots given);
        every call then takes `sigma`.
    ndim : 2 or 3
        Axes of space: images (N, C, H, W) or volumes (N, C, D, H, W).

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.ConvLPN(1, hidden=8)
    >>> model(torch.rand(2, 1, 37, 50)).shape
    torch.Size([2, 1, 37, 50])
    >>> volumes = lf.ConvLPN(1, hidden=8, ndim=3)
    >>> volumes(torch.rand(2, 1, 9, 12, 15)).shape
    torch.Size([2, 1, 9, 12, 15])
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 64,
        strides: tuple[int, ...] = (1, 2, 1, 2, 1),
        kernel: int = 3,
        skip_kernel: int | None = None,
        heads: str = "all",
        squared_head: bool = True,
        beta: float = 100.0,
        alpha: float = 1e-3,
        sigma_conditional: bool | tuple[float, ...] = False,
        ndim: int = 2,
    ):
        if skip_kernel is None:
            skip_kernel = 5 if ndim == 2 else 3
        if any(s not in (1, 2) for s in strides) or not strides:
            raise ValueError(f"strides must be a non-empty tuple of 1s and 2s, got {strides}")
        for name, side in (("kernel", kernel), ("skip_kernel", skip_kernel)):
            check_side(name, side, 1, 9, odd=True)
        if heads not in ("last", "all"):
            raise ValueError(f"heads must be 'last' or 'all', got {heads!r}")
        scales = [1, *itertools.accumulate(strides, lambda a, b: a * b)]  # scale of the image before each stage
        stages = [
            Stage(
                width=hidden,
                kernel=kernel if index else 0,
                stride=stride if index else 1,
                padding=kernel // 2 if index else 0,
                skip_kernel=skip_kernel,
                skip_stride=stride,
                skip_padding=skip_kernel // 2,
                resize=scale,
            )
            for index, (stride, scale) in enumerate(zip(strides, scales, strict=False))
        ]
        spec = Spec(
            "conv",
            channels,
            _with_heads(stages, on_all=heads == "all", squared_first=squared_head),
            beta,
            alpha,
            linear=True,
            noise_levels=noise_knots(sigma_conditional),
            ndim=ndim,
        )
        super().__init__(spec)


def noise_knots(sigma_conditional: bool | tuple[float, ...]) -> tuple[float, ...]:
    """Knots of phi(sigma) for a family's argument: none, the default ones, or those given."""
    if isinstance(sigma_conditional, bool):
        return NOISE_LEVELS if sigma_conditional else ()
    return tuple(sigma_conditional)


def _with_heads(stages: list[Stage], on_all: bool, squared_first: bool = False) -> tuple[Stage, ...]:
    """The stages with linear heads on the last of them, or on all, and perhaps a squared one on the first."""
    headed = []
    for index, stage in enumerate(stages):
        heads = ("linear",) if on_all or index == len(stages) - 1 else ()
        headed.append(replace(stage, heads=heads + ("squared",) if squared_first and index == 0 else heads))
    return tuple(headed)
