"""A learned proximal network that cannot run away: one stage of ridge functions in mirrored pairs.

    psi(x) = sum_j g_j (z_j^+)^2 + g_j (z_j^-)^2 + c . x + alpha/2 |x|^2,   z_j^+- = softplus_beta(+-A_j x + b_j(sigma))

with b <= 0, so that f(x) - c - alpha x is a sum of smooth soft thresholds of the filter responses. Of each pair
only one side is active far from zero, hence the gain at infinity (networks/gain.py) is at most

    S = sup_omega sum_j 2 g_j |A_j(omega)|^2 + alpha  <=  k^2 |M^T M| + alpha,

M = (sqrt(2 g_j) a_j) of the filters as rows, since a wave has norm k on their k x k pixels. `project_` holds the right
side at LIMIT by cutting the singular values of M, which keeps what is already there: tight frames, where training
starts, stay as they are. (Holding S itself on a grid of frequencies, by cutting spectra, cutting the filters to their
side again and scaling for what is left, ate the gain up: from 0.99 to 0.74 in 400 steps.)

Where S < 1, R is coercive, and since the curvature of a pair never exceeds gain.OVERSHOOT = 1.06 times 2 g_j,
grad^2 psi <= 1.06 S and R is convex up to a quadratic of modulus 1 - 1 / 1.06 < 0.06. Less expressive than the
multi-scale networks, but solvers behave as for a convex problem. (Convex ridge regularisers, arXiv 2211.12461, learn R;
here the prox itself is explicit.)
"""

import torch

from ..algebra.spec import Spec, Stage
from .families import check_side, noise_knots
from .lpn import LPN
from .registry import register

LIMIT = 0.995  # largest S: at one, R would be coercive only in the limit
LEVEL = 0.1  # typical thresholds and constants, for images in [0, 1]
ROUNDING = 1e-6  # rounding of float32 parameters: projecting twice changes nothing


@register(
    "ridge",
    "one stage of mirrored filters; R is coercive and nearly convex",
    {"pairs": "hidden", "kernel": "skip_kernel", "beta": "beta", "alpha": "alpha"},
    noise="optional",
)
class RidgeLPN(LPN):
    """Convolutional network of ridge functions whose learned R is coercive and nearly convex.

    Parameters
    ----------
    channels : int
        Image channels.
    pairs : int
        Mirrored pairs of filters.
    kernel : int
        Odd side of the filters.
    beta, alpha : float
        Softplus sharpness; strong convexity alpha/2 |x|^2.
    sigma_conditional : bool or tuple of float
        Let the thresholds depend on the noise level, as in `ConvLPN`.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.RidgeLPN(1, pairs=4, kernel=3)
    >>> model(torch.rand(2, 1, 21, 30)).shape
    torch.Size([2, 1, 21, 30])
    """

    def __init__(
        self,
        channels: int,
        pairs: int = 49,
        kernel: int = 7,
        beta: float = 100.0,
        alpha: float = 1e-3,
        sigma_conditional: bool | tuple[float, ...] = False,
    ):
        check_side("kernel", kernel, 1, 15, odd=True)
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        super().__init__(_spec(channels, pairs, kernel, beta, alpha, noise_knots(sigma_conditional)))
        self.project_()

    @staticmethod
    def has_form_of(spec: Spec) -> bool:
        """Whether networks of this class have such a spec; whether filters are mirrored is up to their values."""
        first = spec.stages[0]
        if spec.is_dense or len(spec.stages) > 1 or first.skip_kernel < 1:
            return False
        return spec == _spec(
            spec.channels, first.width // 2, first.skip_kernel, spec.beta, spec.alpha, spec.noise_levels
        )

    def step_scales(self) -> dict[str, float]:
        """The size of each parameter for images in [0, 1]: steps of an optimizer are meant relative to it."""
        stage = self.stages[0]
        sizes = {"skip": 1 / stage.skip.shape[-1], "head_squared": 1 / len(stage.skip), "bias": LEVEL, "noise": LEVEL}
        sizes = {f"stages.0.{name}": size for name, size in sizes.items() if hasattr(stage, name)}
        return {"linear": LEVEL, **sizes}

    @torch.no_grad()
    def project_(self) -> "RidgeLPN":
        """Clamp g >= 0 and b <= 0, mirror the pairs exactly, hold the gain at LIMIT; in place."""
        super().project_()
        stage = self.stages[0]
        stage.skip.copy_(_mirrored(stage.skip, -1))
        for parameter in (stage.head_squared, stage.bias, getattr(stage, "noise", None)):
            if parameter is not None:
                parameter.copy_(_mirrored(parameter, 1))
        stage.bias.clamp_(max=0)
        if self.is_noise_conditional:
            stage.noise.clamp_(max=0)
        self._limit_gain()
        return self

    def _limit_gain(self) -> None:
        """The nearest sqrt(2 g_j) a_j of which M^T M is at most (LIMIT - alpha) / k^2."""
        stage = self.stages[0]
        k, roots = stage.skip.shape[-1], (2 * stage.head_squared[::2]).sqrt().double()
        filters = stage.skip[::2].flatten(1).double()  # a_j, [pairs, C k^2]
        largest = (LIMIT - self.alpha) ** 0.5 / k
        _, sizes, v = torch.linalg.svd(roots.unsqueeze(1) * filters, full_matrices=False)  # svd of M
        if sizes[0] <= largest * (1 + ROUNDING):
            return
        excess = 1 - (largest / sizes).clamp(max=1)
        held = filters - (filters @ v.T * excess) @ v
        held = held.to(stage.skip).view(stage.skip[::2].shape)
        stage.skip.copy_(torch.stack([held, -held], 1).flatten(0, 1))


def _spec(channels: int, pairs: int, kernel: int, beta: float, alpha: float, levels: tuple[float, ...]) -> Spec:
    # filters that overlap the image by one pixel count: then A^T A is as flat at the borders as inside
    stage = Stage(2 * pairs, skip_kernel=kernel, skip_padding=kernel - 1, heads=("squared",))
    return Spec("conv", channels, (stage,), beta, alpha, linear=True, noise_levels=levels)


def _mirrored(t: torch.Tensor, sign: int) -> torch.Tensor:
    """Rows 2 i and 2 i + 1 replaced by their mean m and sign * m, where row 2 i + 1 enters with that sign."""
    mean = (t[::2] + sign * t[1::2]) / 2
    return torch.stack([mean, sign * mean], 1).flatten(0, 1)
