"""Wiener filtering in a learned orthonormal frame, gated by energies; R is bounded below by construction.

In units of the noise (spec.noise_units). The rows a_j of an orthonormal basis of C x k x k patches, the patch means
among them, slide over the image: c_j = a_j * x / k, a tight frame, sum_j |c_j|^2 = |x|^2. Energies drive gates,

    z_1 = c^2,     z_l = softplus(W_l z_{l-1} + b_l(sigma))   for the gates l = 2..L,
    psi(x) = sum_j h_j c_j^2  +  sum_l w_l . z_l  +  alpha/2 |x|^2

so that every coefficient is multiplied by 2 h_j plus what the gates say that see it: a gate opens, from 0 to 1, where
the energy W_l z_{l-1} of the coefficients it looks at exceeds its threshold -b_l(sigma). A gate that looks at one
coefficient is a hard threshold; at many, it switches a Wiener filter on. Gates pool over frequencies, and over
neighbours where their kernels are larger than one. The same happens in the posterior mean of a mixture of Gaussians,
where the responsibilities are such gates. At the start the basis is the cosine basis, and f a usable denoiser before
any training.

`project_` keeps, for any weights, the frame orthonormal, the means ungated, and

    h_j + sum over paths of  W_2 .. W_l w_l  =  (LIMIT - alpha) / 2     for every j.

Softplus is at most a constant above max(u, 0), hence psi(x) <= LIMIT/2 |x|^2 + const: a coefficient with all its gates
open passes, and nothing is amplified for good. Then

    R(x) = psi*(x) - 1/2 |x|^2 >= <x, x> - psi(x) - 1/2 |x|^2 >= (1 - LIMIT)/2 |x|^2 - const:

R is coercive, and no solver whose objective falls can run away (networks/gain.py says why).
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..algebra.cosines import cosine_atoms
from ..algebra.spec import Spec, Stage
from .families import check_reads_noise, check_side, noise_knots
from .gain import quadratic_heads, seen_by_one_pixel
from .lpn import LPN
from .registry import register

LIMIT = 0.998  # largest gain: at one, R would still be bounded below but no longer coercive

# At the start:
ALWAYS = 0.05  # multiplier of a coefficient with all gates closed
THRESHOLD = 2.7  # energy that opens a gate of one coefficient, in standard deviations of its noise
BREADTHS = (0.3, 1.0, 2.0, 3.0)  # range of the frequencies a gate sees, one breadth per round over the filters
SECOND = 0.3  # share of a gate's effect that waits for the gate after it


@register(
    "frame",
    "a learned frame whose coefficients are gated by energies nearby; R is coercive",
    {"kernel": "skip_kernel", "gates": "gates", "beta": "beta", "alpha": "alpha", "border": "border"},
    noise="always",
    own_start=True,
)
class FrameLPN(LPN):
    """Noise-conditional convolutional network: a learned frame whose coefficients are gated by energies nearby.

    Parameters
    ----------
    channels : int
        Image channels.
    kernel : int
        Side of the filters, 2 to 15; there are n = channels * kernel^2 of them.
    gates : tuple of (kernel, stride, width)
        Stages after the first: odd side of their non-negative kernels, stride 1 or 2, channels. () leaves a linear f.
        None is two gates per filter that is not a mean, of side 1.
    beta : float
        Softplus sharpness; cores and biases can take any other, so it fixes units only.
    alpha : float
        Strong convexity alpha/2 |x|^2.
    sigma_conditional : True or tuple of float
        Knots of the noise level between which thresholds, in units of the noise, may vary; every call takes `sigma`.
    border : "zero" or "mirror"
        How images go on beyond their border, where every gate is of a single pixel: by zeros, as they do for all other
        gates, or mirrored, which costs no accuracy there (docs/concepts.md).

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.FrameLPN(1, kernel=4, gates=((1, 1, 8),))
    >>> model(torch.rand(2, 1, 37, 50), sigma=0.1).shape
    torch.Size([2, 1, 37, 50])
    """

    def __init__(
        self,
        channels: int,
        kernel: int = 7,
        gates: tuple[tuple[int, int, int], ...] | None = None,
        beta: float = 1.0,
        alpha: float = 1e-4,
        sigma_conditional: bool | tuple[float, ...] = True,
        border: str = "zero",
    ):
        check_side("kernel", kernel, 2, 15)
        check_reads_noise(sigma_conditional)
        if gates is None:
            gates = ((1, 1, 2 * channels * (kernel**2 - 1)),)
        for side, stride, width in gates:
            if side % 2 == 0 or not 1 <= side <= 9 or stride not in (1, 2) or width < 1:
                raise ValueError(
                    f"a gate must be (odd side up to 9, stride 1 or 2, positive width), got {(side, stride, width)}"
                )
        super().__init__(_spec(channels, kernel, tuple(gates), beta, alpha, noise_knots(sigma_conditional), border))
        self._gated_cosines()
        self.project_()

    @staticmethod
    def has_form_of(spec: Spec) -> bool:
        """Whether networks of this class have such a spec."""
        if spec.is_dense or not spec.noise_units or not spec.square_first:
            return False
        gates = tuple((stage.kernel, stage.stride, stage.width) for stage in spec.stages[1:])
        first = spec.stages[0]
        form = _spec(spec.channels, first.skip_kernel, gates, spec.beta, spec.alpha, spec.noise_levels, "zero")
        return replace(spec, border="zero") == form

    @property
    def _kernel(self) -> int:
        return self.spec.stages[0].skip_kernel

    @property
    def _budget(self) -> float:
        """What h_j and the paths from c_j^2 add up to."""
        return (LIMIT - self.alpha) / 2

    # ---- start, projection, gradients

    @torch.no_grad()
    def _gated_cosines(self) -> None:
        """Start: the cosine frame; gates centred at its frequencies in turn, ever broader from round to round."""
        first, channels = self.stages[0], self.spec.channels
        atoms, frequencies = cosine_atoms(channels, self._kernel)
        first.skip.copy_((atoms / self._kernel).view(first.skip.shape))
        for stage in self.stages[1:]:
            stage.noise.zero_()
        for index, stage in enumerate(self.stages[1:], 1):
            width, side, stride = len(stage.core), stage.core.shape[-1], self.spec.stages[index].stride
            if index > 1:
                stage.core.copy_(torch.rand_like(stage.core) + 0.5)
                stage.core.div_(seen_by_one_pixel(stage.core, stride).sum(0).view(1, -1, 1, 1))
                before = self.stages[index - 1].head
                stage.head.fill_(SECOND * before.mean())
                before.mul_(1 - SECOND)
                stage.bias.copy_(-stage.core.sum((1, 2, 3)) / 2)
                continue
            varied = len(frequencies) - channels
            number = torch.arange(width)
            centre = channels + number % varied
            breadth = torch.tensor(BREADTHS)[(number // varied).clamp(max=len(BREADTHS) - 1)]
            scaled = frequencies * (7 / self._kernel)  # cycles per pixel decide what is near
            distance = (scaled[centre][:, None] - scaled).square().sum(-1)  # [width, n]
            seen = torch.exp(-distance / (2 * breadth[:, None] ** 2)) * torch.exp(0.2 * torch.randn(distance.shape))
            for repeat in range(int(number[-1]) // varied + 1):  # every round has the same share in a coefficient
                part = slice(repeat * varied, (repeat + 1) * varied)
                seen[part] /= seen[part].sum(0).clamp(min=1e-6)
            seen[:, :channels] = 0
            seen *= (1 - ALWAYS) / seen.sum(0).clamp(min=1e-12).max()
            norm = seen.norm(dim=1)  # how far the energy of noise spreads about its mean, seen.sum(1)
            threshold = seen.sum(1) + (THRESHOLD**2 - 1) * norm
            spread = (self._kernel**2 * seen / norm[:, None])[:, :, None, None] * (stride / side) ** 2
            stage.core.copy_(spread.expand_as(stage.core))
            stage.bias.copy_(-threshold / norm)
            stage.head.copy_(norm * self._budget / self._kernel**2)

    @torch.no_grad()
    def project_(self) -> "FrameLPN":
        """Clamp what must not be negative; hold the frame orthonormal, its means ungated, and the gain; in place."""
        super().project_()
        first, channels = self.stages[0], self.spec.channels
        hold_orthonormal_(first.skip)
        if len(self.stages) > 1:
            self.stages[1].core[:, :channels] = 0
            factor = (self._budget / self._gated().clamp(min=torch.finfo(first.skip.dtype).tiny)).clamp(max=1)
            self.stages[1].core.mul_(factor.view(1, -1, 1, 1))
        first.head.copy_((self._budget - self._gated()).clamp(min=0))
        return self

    @torch.no_grad()
    def project_gradients_(self) -> "FrameLPN":
        """Gradients onto what `project_` leaves free: the basis only rotates, and h_j is what the gates leave over."""
        first = self.stages[0]
        keep_rotations_(first.skip)
        if first.head.grad is not None and len(self.stages) > 1:
            ways = [p for stage in self.stages[1:] for p in (stage.core, stage.head) if p.grad is not None]
            with torch.enable_grad():
                parts = torch.autograd.grad(self._gated(), ways, first.head.grad)
            for parameter, part in zip(ways, parts, strict=True):
                parameter.grad.sub_(part)
            first.head.grad.zero_()
        return self

    def step_scales(self) -> dict[str, float]:
        """The size of each parameter at the start: steps of an optimizer are meant relative to it."""
        scales = sizes_at_start(self, FrameLPN._gated_cosines)
        scales["stages.0.head"] = self._budget  # computed by `project_`, wherever a step takes it
        return scales | {name: scales[name.replace("noise", "bias")] for name in scales if name.endswith("noise")}

    def _gated(self) -> Tensor:
        """What the gates, all open, add to h_j: [n]."""
        return quadratic_heads(self) - self.stages[0].head.detach()


def _spec(
    channels: int, kernel: int, gates: tuple, beta: float, alpha: float, levels: tuple[float, ...], border: str
) -> Spec:
    # filters that overlap the image by one pixel count: then the frame is as tight at the borders as inside
    padding, filters = kernel - 1, channels * kernel**2
    stages = [Stage(filters, skip_kernel=kernel, skip_padding=padding, bias=False, heads=("linear",))]
    for side, stride, width in gates:
        stages.append(Stage(width, side, stride, side // 2, skip_kernel=0, heads=("linear",)))
    levels = {"noise_levels": levels, "noise_units": True}
    return Spec("conv", channels, tuple(stages), beta, alpha, square_first=True, border=border, **levels)


@torch.no_grad()
def sizes_at_start(model: LPN, draw: Callable[[LPN], None]) -> dict[str, float]:
    """Root mean square of each parameter as `draw` sets it, always from the same random numbers."""
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draw(fresh)
    return {name: p.square().mean().sqrt().item() for name, p in fresh.named_parameters()}


@torch.no_grad()
def hold_orthonormal_(skip: Tensor) -> None:
    """The nearest filters a_j / k, [C k^2, C, k, k], with orthonormal a_j of which the first C are the patch means."""
    channels, k = skip.shape[1], skip.shape[-1]
    means = cosine_atoms(channels, k, skip.dim() - 2)[0][:channels].to(skip)
    rest = skip.flatten(1)[channels:] * k
    rest = rest - rest @ means.T @ means
    try:
        u, _, v = torch.linalg.svd(rest, full_matrices=False)  # the nearest matrix of orthonormal rows is u v
    except torch.linalg.LinAlgError:  # seen in float32 with 169 singular values that are all but one
        u, v = (part.to(rest) for part in torch.linalg.svd(rest.double(), full_matrices=False)[::2])
    skip.copy_((torch.cat([means, u @ v]) / k).view(skip.shape))


@torch.no_grad()
def keep_rotations_(skip: Tensor) -> None:
    """Reduce the gradient of such filters, in place, to the part that rotates them and leaves the means alone."""
    if skip.grad is not None:
        skip.grad.copy_(rotations(skip, skip.grad))


def rotations(skip: Tensor, gradient: Tensor) -> Tensor:
    """The part of such a gradient, of its shape."""
    channels, basis = skip.shape[1], skip.flatten(1) * skip.shape[-1]
    g = gradient.flatten(1).clone()
    g[:channels] = 0
    g = g - g @ basis[:channels].T @ basis[:channels]
    symmetric = g @ basis.T
    g = g - (symmetric + symmetric.T) / 2 @ basis
    g[:channels] = 0
    return g.view(gradient.shape)
