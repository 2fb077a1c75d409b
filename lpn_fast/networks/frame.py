"""Thresholding in a learned orthonormal frame, lifted by its neighbourhood; R is bounded below by construction.

In units of the noise (spec.noise_units). The rows a_j of an orthonormal basis of C x k x k patches, the patch means
among them, slide over the image: c_j = a_j * x / sqrt(k), a tight frame, sum_j |c_j|^2 = k |x|^2. Every filter feeds
units of both signs and of r = 1..m thresholds tau_jr = -b_jr >= 0,

    z_1 = softplus(+-c_j - tau_jr),     z_l = softplus(W_l z_{l-1} + b_l)   for the gates l = 2..L,
    psi(x) = sum_jr g_jr z_1^2 + w_jr z_1  +  sum_l w_l . z_l  +  alpha/2 |x|^2,      sum_r 2 g_jr = (LIMIT - alpha)/k

The squared heads shrink: g (c - tau)_+^2 has the soft threshold 2 g (c - tau)_+ for its gradient. The linear heads
lift: w raises a coefficient that has passed its threshold by a constant, and so does a gate, which opens where
coefficients nearby, of any filter, are large. Soft thresholds with full lifts are hard ones; gates let the
neighbourhood decide. At the start the basis is the cosine basis, and f a usable denoiser before any training.

`project_` keeps, for any weights, the frame orthonormal, the means unthresholded, and the lifts within what the
thresholds took: with everything open, unit u of the first stage is lifted by

    L_u = w_u + sum over paths of  W_2 .. W_l w_l,          sum_r L_jr <= sum_r 2 g_jr tau_jr    for every j and sign.

Softplus is at most a constant above (u)_+, so per filter, with c >= 0 and c large,

    sum_r g (c - tau)^2 + L (c - tau) <= sum_r g c^2 + const,     hence   psi(x) <= LIMIT/2 |x|^2 + const
    and   R(x) = psi*(x) - 1/2 |x|^2 >= <x, x> - psi(x) - 1/2 |x|^2 >= (1 - LIMIT)/2 |x|^2 - const:

R is coercive, and down to that small quadratic it is bounded below by a constant per pixel. No solver whose objective
falls can run away (networks/gain.py has the story): networks that lift more than they shrank do.
"""

import copy
import math

import torch
from torch import Tensor

from ..algebra.spec import Spec, Stage
from .families import noise_knots
from .lpn import LPN

LIMIT = 0.998  # of the gain: at one R would still be bounded below, but coercive no more
THRESHOLDS = (0.9, 2.7)  # at the start, in standard deviations of a coefficient's noise
SHARES = (0.1, 0.9)  # of the squared heads, at the start
OWN = 0.5  # share of the lifts that a coefficient's own size releases, at the start; the gates have the rest


class FrameLPN(LPN):
    """Noise-conditional convolutional network that thresholds in a learned frame, with gates; R is bounded below.

    Parameters
    ----------
    channels : int
        Image channels.
    kernel : int
        Side of the filters, 2 to 9; there are channels * kernel^2 of them.
    gates : tuple of (kernel, stride, width)
        Stages after the first: odd side of their non-negative kernels, stride 1 or 2, channels. () leaves
        thresholds that see their own coefficient only.
    beta : float
        Softplus sharpness, in noise units.
    alpha : float
        Strong convexity alpha/2 |x|^2.
    sigma_conditional : True or tuple of float
        Knots of the noise level at which thresholds may deviate from the scaling with sigma; every call takes
        `sigma`.

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
        gates: tuple[tuple[int, int, int], ...] = ((1, 1, 64),),
        beta: float = 20.0,
        alpha: float = 1e-4,
        sigma_conditional: bool | tuple[float, ...] = True,
    ):
        if not 2 <= kernel <= 9:
            raise ValueError(f"kernel must be between 2 and 9, got {kernel}")
        if sigma_conditional is False:
            raise ValueError("sigma_conditional must be True or a tuple of knots: a frame network reads sigma")
        for side, stride, width in gates:
            if side % 2 == 0 or not 1 <= side <= 9 or stride not in (1, 2) or width < 1:
                raise ValueError(
                    f"a gate must be (odd side up to 9, stride 1 or 2, positive width), got {(side, stride, width)}"
                )
        super().__init__(_spec(channels, kernel, tuple(gates), beta, alpha, noise_knots(sigma_conditional)))
        self._threshold_in_cosines()
        self.project_()

    @staticmethod
    def has_form_of(spec: Spec) -> bool:
        """Whether networks of this class have such a spec."""
        if spec.is_dense or not spec.noise_units:
            return False
        gates = tuple((stage.kernel, stage.stride, stage.width) for stage in spec.stages[1:])
        first = spec.stages[0]
        return spec == _spec(spec.channels, first.skip_kernel, gates, spec.beta, spec.alpha, spec.noise_levels)

    # ---- units of the first stage, in the order (filter, threshold, sign)

    @property
    def _grid(self) -> tuple[int, int, int]:
        """(filters, thresholds, signs)."""
        return self.spec.channels * self.spec.stages[0].skip_kernel ** 2, len(THRESHOLDS), 2

    def _basis(self) -> Tensor:
        """The rows a_j, [n, n], from the first unit of each filter; orthonormal after `project_`."""
        n, m, _ = self._grid
        return self.stages[0].skip[:: 2 * m].reshape(n, n) * math.sqrt(self.spec.stages[0].skip_kernel)

    def _spread(self, basis: Tensor) -> Tensor:
        """Filters of all units, shape of the skip, from the basis [n, n]."""
        m = self._grid[1]
        rows = basis / math.sqrt(self.spec.stages[0].skip_kernel)
        return torch.stack([rows, -rows], 1).repeat_interleave(m, 0).view(self.stages[0].skip.shape)

    def _signs_alike(self, t: Tensor) -> Tensor:
        """Units +-c given the mean of their two entries; t [H_1, ...]."""
        return t.view(-1, 2, *t.shape[1:]).mean(1).repeat_interleave(2, 0)

    # ---- start, projection, gradients

    @torch.no_grad()
    def _threshold_in_cosines(self) -> None:
        """Start: the cosine frame, its shares and thresholds, own lifts and gates over neighbouring frequencies."""
        first, kernel, grid = self.stages[0], self.spec.stages[0].skip_kernel, self._grid
        n, m, _ = grid
        for stage in self.stages:
            stage.noise.zero_()
        atoms, frequencies = _cosine_atoms(self.spec.channels, kernel)
        first.skip.copy_(self._spread(atoms))
        first.bias.copy_(-_units(grid, THRESHOLDS) * kernel**-0.5)
        first.head_squared.copy_(_units(grid, SHARES) * ((LIMIT - self.alpha) / (2 * kernel)))
        first.bias[: 2 * m * self.spec.channels] = 0
        budget = self._budget()  # [n, 2]
        first.head.zero_()
        own = OWN if len(self.stages) > 1 else 1.0
        first.head.view(grid)[:, -1] = own * budget
        for index, stage in enumerate(self.stages[1:], 1):
            (width, fan), side, stride = stage.core.shape[:2], stage.core.shape[-1], self.spec.stages[index].stride
            if index == 1:
                centres = torch.arange(width) % (n - self.spec.channels) + self.spec.channels
                distance = (frequencies[centres][:, None] - frequencies).square().sum(-1)  # [width, n]
                near = torch.exp(-distance / 2)
                near[:, : self.spec.channels] = 0
                near = near / near.sum(1, keepdim=True)
                near = near.repeat_interleave(2 * m, 1) * torch.exp(0.3 * torch.randn(width, fan))
                stage.core.copy_(near[:, :, None, None].expand_as(stage.core) * (stride / side) ** 2)
                stage.bias.fill_(-(kernel**-0.5))
                stage.head.fill_(1)
                mean_lift = (stage.head @ _seen_by_one_pixel(stage.core, stride)).view(n, m * 2).sum(1)[-1] / 2
                stage.head.fill_((1 - own) * budget[-1, 0] / mean_lift)
            else:
                stage.core.copy_(torch.rand_like(stage.core) * (2 / (fan * side * side)))
                stage.bias.fill_(-0.1)
                stage.head.copy_(0.3 * self.stages[index - 1].head.mean().expand(width))

    @torch.no_grad()
    def project_(self) -> "FrameLPN":
        """Clamp what must not be negative; hold the frame orthonormal, its means open, and the lifts; in place."""
        super().project_()
        first, channels, grid = self.stages[0], self.spec.channels, self._grid
        means = _cosine_atoms(channels, self.spec.stages[0].skip_kernel)[0][:channels].to(first.skip)
        rest = self._basis()[channels:]
        rest = rest - rest @ means.T @ means
        u, _, v = torch.linalg.svd(rest, full_matrices=False)  # the nearest matrix of orthonormal rows is u v
        first.skip.copy_(self._spread(torch.cat([means, u @ v])))
        for parameter in (first.head, first.head_squared, first.bias, first.noise):
            parameter.copy_(self._signs_alike(parameter))
        first.bias.clamp_(max=0)
        first.noise.clamp_(max=0)
        first.bias[: 2 * grid[1] * channels] = 0
        first.noise[: 2 * grid[1] * channels] = 0
        share = first.head_squared.view(grid)
        tiny = torch.finfo(share.dtype).tiny
        whole = (LIMIT - self.alpha) / (2 * self.spec.stages[0].skip_kernel)
        share.add_(1e-12 * whole)  # a filter whose shares were all clamped to zero gets equal ones
        share.mul_(whole / share.sum(1, keepdim=True))
        factor = (self._budget() / self.lifts().clamp(min=tiny)).clamp(0, 1)[:, None]  # [n, 1, 2]
        first.head.view(grid).mul_(factor.amin(2, keepdim=True))
        if len(self.stages) > 1:
            self.stages[1].core.mul_(factor.expand(grid).reshape(1, -1, 1, 1))
        return self

    @torch.no_grad()
    def project_gradients_(self) -> "FrameLPN":
        """Gradients onto what `project_` leaves free: copies of a filter move together, the basis only rotates."""
        first, channels, grid = self.stages[0], self.spec.channels, self._grid
        n, m, _ = grid
        if first.skip.grad is not None:
            basis = self._basis()
            g = first.skip.grad.view(n, m, 2, n)
            g = (g[:, :, 0] - g[:, :, 1]).sum(1)
            g[:channels] = 0
            g = g - g @ basis[:channels].T @ basis[:channels]
            symmetric = g @ basis.T
            g = g - (symmetric + symmetric.T) / 2 @ basis
            g[:channels] = 0
            first.skip.grad.copy_(torch.stack([g, -g], 1).repeat_interleave(m, 0).view(first.skip.shape))
        for parameter in (first.head, first.head_squared, first.bias, first.noise):
            if parameter.grad is not None:
                parameter.grad.copy_(2 * self._signs_alike(parameter.grad))
        if first.head_squared.grad is not None:
            share = first.head_squared.grad.view(grid)
            share.sub_(share.mean(1, keepdim=True))
        return self

    def step_scales(self) -> dict[str, float]:
        """The size of each parameter at the start: steps of an optimizer are meant relative to it."""
        fresh = copy.deepcopy(self).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh._threshold_in_cosines()
        scales = {name: min(1.0, p.square().mean().sqrt().item()) for name, p in fresh.named_parameters()}
        return scales | {name: scales[name.replace("noise", "bias")] for name in scales if name.endswith("noise")}

    def lifts(self) -> Tensor:
        """sum_r L_jr, shape (n, 2): the most by which all heads together can raise a coefficient of either sign."""
        through = None
        for stage, shape in zip(reversed(self.stages[1:]), reversed(self.spec.stages[1:]), strict=True):
            total = stage.head if through is None else stage.head + through
            through = total @ _seen_by_one_pixel(stage.core, shape.stride)
        first = self.stages[0].head
        return (first if through is None else first + through).view(self._grid).sum(1)

    def _budget(self) -> Tensor:
        """sum_r 2 g_jr tau_jr, shape (n, 2), at the noise level where it is least: what lifts may add up to."""
        first = self.stages[0]
        tau = -(first.bias + first.noise.max(1).values)
        return (2 * first.head_squared * tau).view(self._grid).sum(1)


def _spec(channels: int, kernel: int, gates: tuple, beta: float, alpha: float, levels: tuple[float, ...]) -> Spec:
    # filters that overlap the image by one pixel count: then the frame is as tight at the borders as inside
    units = 2 * len(THRESHOLDS) * channels * kernel**2
    stages = [Stage(units, skip_kernel=kernel, skip_padding=kernel - 1, heads=("linear", "squared"))]
    for side, stride, width in gates:
        stages.append(Stage(width, side, stride, side // 2, skip_kernel=0, heads=("linear",)))
    return Spec("conv", channels, tuple(stages), beta, alpha, noise_levels=levels, noise_units=True)


def _units(grid: tuple[int, int, int], by_threshold: tuple[float, ...]) -> Tensor:
    """[H_1]: a value for each threshold, the same for all filters and both signs."""
    return torch.tensor(by_threshold).view(1, -1, 1).expand(grid).flatten()


def _cosine_atoms(channels: int, k: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of patches, [n, n] with n = C k^2, and (row, column, channel) frequencies [n, 3].

    Cosines in space times cosines over channels (their mean and differences); the C constant patches come first.
    """

    def cosines(length):
        n = torch.arange(length, dtype=torch.float64)
        rows = torch.cos(math.pi * n[:, None] * (n + 0.5) / length) * math.sqrt(2 / length)
        rows[0] /= math.sqrt(2)
        return rows

    rows, colour = cosines(k), cosines(channels)
    atoms = torch.einsum("ai,bj,qc->abqcij", rows, rows, colour).reshape(k * k * channels, -1)
    frequencies = torch.cartesian_prod(torch.arange(k), torch.arange(k), torch.arange(channels)).float()
    return atoms, frequencies


def _seen_by_one_pixel(core: Tensor, stride: int) -> Tensor:
    """[out, in]: sum of the taps of a core [out, in, k, k] through which one input pixel acts, largest over pixels."""
    sums = [core[:, :, i::stride, j::stride].sum((2, 3)) for i in range(stride) for j in range(stride)]
    return torch.stack(sums).amax(0)
