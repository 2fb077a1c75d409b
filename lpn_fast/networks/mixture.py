"""The posterior mean of a mixture of Gaussians, patch by patch, in a learned orthonormal frame.

In units of the noise (spec.noise_units), with the coefficients c_j = a_j * x / k of FrameLPN's tight frame,

    z_1 = c^2,    u = W z_1 + b(sigma),    psi(x) = h . z_1 + w log sum_m exp(u_m) + alpha/2 |x|^2,

so that f multiplies coefficient j by 2 h_j + 2 w sum_m p_m W_mj, p = softmax(u). Of a patch y = x + n from a mixture
with weights pi_m and covariances sum_j v_mj a_j a_j^T, log p(y) + 1/2 |y|^2 is (up to a constant) the log-sum-exp of

    u_m = log pi_m - 1/2 sum_j log(1 + v_mj) + 1/2 sum_j v_mj / (1 + v_mj) k^2 c_j^2,

and its gradient the posterior mean (Tweedie's formula). f is its average over the k^2 patches that cover a pixel:
w = 1 / k^2 and W_mj = k^2/2 v_mj / (1 + v_mj), where training starts, with experts for many contrasts, spectra and
directions. It learns them, and a temperature: W and b divided by T, w times T.

The gates of FrameLPN open one by one as energy rises. Experts compete: energy that speaks for one of them closes what
the others would let pass.

`project_` keeps, for any weights, the frame orthonormal, the patch means passed by h and out of W, h_j = 0 elsewhere,
and w W_mj <= (LIMIT - alpha) / 2. The log-sum-exp is at most a constant above its largest term, hence
psi(x) <= LIMIT/2 |x|^2 + const: R is coercive, as in networks/frame.py.
"""

import math

import torch
from torch import Tensor

from ..algebra.spec import Spec, Stage
from .families import check_reads_noise, check_side, noise_knots
from .frame import LIMIT, cosine_atoms, hold_orthonormal_, keep_rotations_, sizes_at_start
from .lpn import LPN
from .registry import register

# Experts at the start: variances contrast * spectrum(radius) * direction(angle) of the coefficients
CONTRASTS = (0.1, 1e5)  # in variances of the noise, from the first expert to the last
SPECTRA = (2.0, 3.5)  # falling powers of the radius of all directions alike
DIRECTED = 2.5  # the same of those with a direction
ANGLES = (0.0, 30.0, 60.0, 90.0)  # degrees between the direction and the columns of the image
SPREAD = 20.0  # degrees
FLOOR = 0.02  # share of energy across the direction
COLOUR = 0.1  # variance of differences of channels over that of their mean

# While training:
LOG_ODDS = 12.0  # largest, with W_mj as a share of its limit: variances of 1e5 and, where they vanish, of 1e-5
LOG_SCALES = {"core": 10.0, "bias": 10.0, "noise": 10.0, "head": 3.0}  # sizes of steps in logarithms


@register(
    "mixture",
    "experts, as of a mixture of Gaussians, compete for the coefficients of a learned frame; R is coercive",
    {"kernel": "skip_kernel", "experts": "hidden", "alpha": "alpha", "border": "border"},
    noise="always",
    own_start=True,
)
class MixtureLPN(LPN):
    """Noise-conditional convolutional network: experts compete for the energies of a learned frame.

    Parameters
    ----------
    channels : int
        Image channels.
    kernel : int
        Side of the patches, 2 to 15; there are n = channels * kernel^2 filters.
    experts : int
        Experts M, at least 2.
    alpha : float
        Strong convexity alpha/2 |x|^2.
    sigma_conditional : True or tuple of float
        Knots of the noise level between which the experts' weights may vary; every call takes `sigma`.
    border : "zero" or "mirror"
        How images go on beyond their border, as for FrameLPN.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.MixtureLPN(1, kernel=4, experts=12)
    >>> model(torch.rand(2, 1, 37, 50), sigma=0.1).shape
    torch.Size([2, 1, 37, 50])
    """

    def __init__(
        self,
        channels: int,
        kernel: int = 7,
        experts: int = 96,
        alpha: float = 1e-4,
        sigma_conditional: bool | tuple[float, ...] = True,
        border: str = "zero",
    ):
        check_side("kernel", kernel, 2, 15)
        if experts < 2:
            raise ValueError(f"experts must be at least 2, got {experts}")
        check_reads_noise(sigma_conditional)
        super().__init__(_spec(channels, kernel, experts, alpha, noise_knots(sigma_conditional), border))
        self._draw()
        self.project_()

    @staticmethod
    def has_form_of(spec: Spec) -> bool:
        """Whether networks of this class have such a spec."""
        if spec.is_dense or not spec.noise_units or len(spec.stages) != 2:
            return False
        first, last = spec.stages
        form = _spec(spec.channels, first.skip_kernel, last.width, spec.alpha, spec.noise_levels, spec.border)
        return spec == form

    @property
    def _budget(self) -> float:
        """What h_j and each w W_mj are at most."""
        return (LIMIT - self.alpha) / 2

    # ---- start, projection, gradients

    @torch.no_grad()
    def _draw(self) -> None:
        """Start: the cosine frame, and the experts of the constants above, in turn over their shapes."""
        first, last = self.stages
        channels, k, experts = self.spec.channels, first.skip.shape[-1], len(last.core)
        atoms, frequencies = cosine_atoms(channels, k)
        first.skip.copy_((atoms / k).view(first.skip.shape))
        variance = _spectra(frequencies * torch.tensor([7 / k, 7 / k, 1.0]))  # [shapes, n]
        contrast = torch.logspace(*(math.log10(c) for c in CONTRASTS), -(-experts // len(variance)))
        variance = (contrast[:, None, None] * variance).flatten(0, 1)[:experts]  # [M, n]
        variance *= torch.exp(0.1 * torch.randn(variance.shape))
        last.core.copy_((k * k / 2 * variance / (1 + variance))[:, :, None, None])
        last.bias.copy_(-0.5 * torch.log1p(variance).sum(1))
        last.noise.zero_()
        last.head.fill_(1 / k**2)

    @torch.no_grad()
    def project_(self) -> "MixtureLPN":
        """Clamp what must not be negative; hold the frame orthonormal, its means ungated, and the gain; in place."""
        super().project_()
        (first, last), channels = self.stages, self.spec.channels
        hold_orthonormal_(first.skip)
        first.head.zero_()
        first.head[:channels] = self._budget
        last.core[:, :channels] = 0
        last.core.clamp_(max=self._budget / last.head.item() if last.head.item() > 0 else math.inf)
        return self

    @torch.no_grad()
    def project_gradients_(self) -> "MixtureLPN":
        """Gradients onto what `project_` leaves free: the basis only rotates, and h is fixed.

        Those of w and W are in log w and in the log-odds of W_mj as a share of its limit, which is log v_mj.
        """
        first, last = self.stages
        keep_rotations_(first.skip)
        if first.head.grad is not None:
            first.head.grad.zero_()
        if last.core.grad is not None and last.head.grad is not None:
            slopes = last.core.grad * last.core  # in log W
            last.head.grad.mul_(last.head).sub_(slopes.sum())  # w W stays where log w moves
            last.core.grad.copy_(slopes * (1 - last.core * (last.head / self._budget)))
        return self

    @torch.no_grad()
    def step_(self, steps: dict[str, Tensor]) -> None:
        """As `LPN.step_`, with w and W in the coordinates of `project_gradients_`.

        Variances of all sizes move at the same rate there, and none is stopped at zero, where steps to and fro would
        leave it above zero.
        """
        steps, last = dict(steps), self.stages[1]
        core, head = steps.pop("stages.1.core"), steps.pop("stages.1.head")
        super().step_(steps)
        odds = torch.logit(last.core.double() * (last.head.double() / self._budget), 1e-9) + core
        last.head.mul_(head.exp())
        last.core.copy_(self._budget / last.head * odds.clamp(-LOG_ODDS, LOG_ODDS).sigmoid())

    def step_scales(self) -> dict[str, float]:
        """The size of each parameter at the start: steps of an optimizer are meant relative to it."""
        scales = sizes_at_start(self, MixtureLPN._draw)
        scales["stages.0.head"] = self._budget
        return scales | {f"stages.1.{name}": scale for name, scale in LOG_SCALES.items()}


def _spec(channels: int, kernel: int, experts: int, alpha: float, levels: tuple[float, ...], border: str) -> Spec:
    first = Stage(
        channels * kernel**2, skip_kernel=kernel, skip_padding=kernel - 1, bias=False, heads=("linear",)
    )  # the padding of FrameLPN
    last = Stage(experts, kernel=1, skip_kernel=0, heads=("linear",), competing=True)
    levels = {"noise_levels": levels, "noise_units": True}
    return Spec("conv", channels, (first, last), 1.0, alpha, square_first=True, border=border, **levels)


def _spectra(frequencies: Tensor) -> Tensor:
    """Variances of the coefficients at (row, column, channel) frequencies [n, 3], for each shape: [shapes, n]."""
    row, column, channel = frequencies.unbind(1)
    radius = torch.hypot(row, column).clamp(min=1)
    angle = torch.rad2deg(torch.atan2(row, column))
    shapes = [radius**-power for power in SPECTRA]
    for direction in ANGLES:
        along = torch.exp(-((angle - direction) ** 2) / (2 * SPREAD**2))
        shapes.append(radius**-DIRECTED * (FLOOR + (1 - FLOOR) * along))
    return torch.stack(shapes) * torch.where(channel > 0, COLOUR, 1.0)
