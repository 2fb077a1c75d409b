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

In a basis all covariances have the same eigenvectors. More `filters` than a basis has let each expert have directions
of its own, which sums of squares of enough filters approach; psi is convex whatever they are, as long as W >= 0.

Patches that overlap know nothing of each other's expert. `contexts` let neighbours agree: in context c, which holds for
a neighbourhood, experts have the odds V_cm times pi_m, and contexts compete by what all patches around say for them
(algebra/spec.py): as a mixture of mixtures would, whose components are textures, edges, plain areas.

`project_` keeps, for any weights, the basis orthonormal and more filters of unit norm and without means; the patch
means passed by h and out of W, h_j = 0 elsewhere; and w sum_j W_mj a_j a_j^T <= (LIMIT - alpha) / 2, which in a basis
is w W_mj <= (LIMIT - alpha) / 2. The log-sum-exp is at most a constant above its largest term, hence
psi(x) <= LIMIT/2 |x|^2 + const: R is coercive, as in networks/frame.py. Contexts change the constant alone.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from ..algebra.spec import Spec, Stage
from .families import check_reads_noise, check_side, noise_knots
from .frame import cosine_atoms, hold_orthonormal_, keep_rotations_, sizes_at_start
from .gain import forms_of
from .lpn import LPN
from .mixture_contexts import contexts_at_images
from .mixture_filters import (
    forms_beyond,
    forms_of_experts,
    hold_filters_,
    keep_tangents_,
    keep_to_limit_,
    scale_rows_,
)
from .mixture_start import Sampler, mixture_at_patches, nonnegative_fit, waves
from .registry import register

# Experts at the start: variances contrast * spectrum(radius) * direction(angle) of the coefficients
CONTRASTS = (0.1, 1e5)  # in variances of the noise, from the first expert to the last
SPECTRA = (2.0, 3.5)  # falling powers of the radius of all directions alike
DIRECTED = 2.5  # the same of those with a direction
ANGLES = (0.0, 30.0, 60.0, 90.0)  # degrees between the direction and the columns of the image
SPREAD = 20.0  # degrees
FLOOR = 0.02  # share of energy across the direction
COLOUR = 0.1  # variance of differences of channels over that of their mean

SHARPNESS = 16.0  # s of contexts
SHARPNESSES = (0.1, 1e3)

# Largest gain. Nearer to one than that of frames: what passes loses contrast by so much, and the gain is known exactly
LIMIT = 0.9995

# While training:
LOG_ODDS = 12.0  # largest, with W_mj as a share of its limit: variances of 1e5 and, where they vanish, of 1e-5
# sizes of steps in logarithms
LOG_SCALES = {"core": 10.0, "odds": 10.0, "bias": 10.0, "noise": 10.0, "head": 3.0, "sharpness": 5.0}
NEAR = 1e-4  # relative distance to the limit of the gain at which an expert counts as being there
LOG_CONTEXT = 9.0  # largest log V_cm, and its negative: no context makes an expert impossible
TURNS = 7.0  # steps of filters that need not stay orthogonal, over those of a basis


@register(
    "mixture",
    "experts, as of a mixture of Gaussians, compete for the coefficients of a learned frame; R is coercive",
    {
        "kernel": "skip_kernel",
        "experts": "hidden",
        "filters": "filters",
        "contexts": "contexts",
        "window": "context_window",
        "spacing": "spacing",
        "alpha": "alpha",
        "border": "border",
    },
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
        Side of the patches, 2 to 15.
    experts : int
        Experts M, at least 2.
    filters : int
        Filters n, more than channels * kernel^2; 0 for an orthonormal basis, of as many.
    alpha : float
        Strong convexity alpha/2 |x|^2.
    sigma_conditional : True or tuple of float
        Knots of the noise level between which the experts' weights may vary; every call takes `sigma`.
    border : "zero" or "mirror"
        How images go on beyond their border, as for FrameLPN.
    contexts : int
        Contexts C in which the experts compete, at least 2; 0 for none.
    window : int
        Side of the neighbourhood that has one context in pixels, odd. Without contexts it means nothing.
    spacing : 1 or 2
        Pixels from one patch to the next along each axis: 2, of kernels of even side, computes a quarter of the
        patches, and f commutes with shifts by two pixels alone.

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
        filters: int = 0,
        contexts: int = 0,
        window: int = 17,
        spacing: int = 1,
    ):
        check_side("kernel", kernel, 2, 15)
        if experts < 2:
            raise ValueError(f"experts must be at least 2, got {experts}")
        basis = channels * kernel**2
        if filters and filters <= basis:
            raise ValueError(
                f"filters must be more than channels * kernel^2 = {basis}, or 0 for a basis of as many, got {filters}"
            )
        if contexts < 0 or contexts == 1:
            raise ValueError(f"contexts must be at least 2, or 0 for none, got {contexts}")
        _check_window(window)
        _check_spacing(spacing, kernel)
        check_reads_noise(sigma_conditional)
        knots = noise_knots(sigma_conditional)
        sizes = channels, kernel, filters or basis, experts, contexts, window, spacing
        super().__init__(_spec(*sizes, alpha, knots, border))
        self._at_limit: Tensor | None = None  # experts that `project_gradients_` found there
        self._draw()
        self.project_()

    @staticmethod
    def has_form_of(spec: Spec) -> bool:
        """Whether networks of this class have such a spec."""
        if spec.is_dense or not spec.noise_units or len(spec.stages) not in (2, 3):
            return False
        first, experts = spec.stages[:2]
        contexts = (spec.stages[2].width, _in_pixels(spec)) if spec.has_contexts else (0, 0)
        sizes = spec.channels, first.skip_kernel, first.width, experts.width, *contexts, spec.spacing
        enough = first.width >= spec.channels * first.skip_kernel**2
        return enough and spec == _spec(*sizes, spec.alpha, spec.noise_levels, spec.border)

    @property
    def in_basis(self) -> bool:
        """Whether the filters are an orthonormal basis of patches, or more."""
        return len(self.stages[0].skip) == self.stages[0].skip[0].numel()

    @property
    def has_start_from_data(self) -> bool:
        """Whether training should start with `start_from_`."""
        return self.spec.has_contexts or not self.in_basis

    @property
    def _budget(self) -> float:
        """What h_j and the eigenvalues of each w sum_j W_mj a_j a_j^T are at most."""
        return self.spec.spacing**2 * (LIMIT - self.alpha) / 2

    def with_spacing(self, spacing: int | None = None, window: int | None = None) -> Self:
        """A copy with the same weights whose patches lie so many pixels apart, or whose contexts have such a window.

        Exact proxes all of them, with the same bound on the gain; f is the average of fewer patches or of more. Wider
        ones are trained in less time, and a network of every patch that goes on from there learns the rest soon.

        Parameters
        ----------
        spacing, window : int, optional
            As for the class; None leaves it.

        Raises
        ------
        ValueError
            A spacing of 2 of kernels of odd side; a window without contexts.

        Examples
        --------
        >>> import lpn_fast as lf
        >>> lf.MixtureLPN(1, kernel=4, experts=12).with_spacing(2).spec.spacing
        2
        """
        first, before = self.spec.stages[0], self.spec.spacing
        spacing = before if spacing is None else spacing
        _check_spacing(spacing, first.skip_kernel)
        if window is not None:
            if not self.spec.has_contexts:
                raise ValueError(f"window is for networks with contexts, this one has none; got {window}")
            _check_window(window)
        stages = [dataclasses.replace(first, skip_stride=spacing), *self.spec.stages[1:]]
        if self.spec.has_contexts:
            stages[2] = dataclasses.replace(stages[2], window=_on_lattice(window or _in_pixels(self.spec), spacing))
        model = copy.deepcopy(self)
        model.spec = dataclasses.replace(self.spec, stages=tuple(stages))
        with torch.no_grad():
            model.stages[-1].head.mul_((spacing / before) ** 2)
        return model.project_()

    # ---- start, projection, gradients

    @torch.no_grad()
    def _draw(self) -> None:
        """Start: the cosine frame, and the experts of the constants above, in turn over their shapes."""
        first, last = self.stages[:2]
        channels, k, experts = self.spec.channels, first.skip.shape[-1], len(last.core)
        atoms, frequencies = cosine_atoms(channels, k)
        variance = _spectra(frequencies * torch.tensor([7 / k, 7 / k, 1.0]))  # [shapes, n]
        contrast = torch.logspace(*(math.log10(c) for c in CONTRASTS), -(-experts // len(variance)))
        variance = (contrast[:, None, None] * variance).flatten(0, 1)[:experts]  # [M, n]
        variance *= torch.exp(0.1 * torch.randn(variance.shape))
        passed = variance / (1 + variance)
        if not self.in_basis:
            atoms = torch.cat([atoms, waves(channels, k, len(first.skip) - len(atoms)).double()])
            cosines = atoms[channels : channels * k * k]
            forms = forms_of(cosines, passed[:, channels:].double())
            passed = torch.cat([passed[:, :channels], nonnegative_fit(forms, atoms[channels:]).float()], 1)
        first.skip.copy_((atoms / k).view(first.skip.shape))
        last.core.copy_((k * k / 2 * passed)[:, :, None, None])
        last.bias.copy_(-0.5 * torch.log1p(variance).sum(1))
        last.noise.zero_()
        self.stages[-1].head.fill_((self.spec.spacing / k) ** 2)
        if self.spec.has_contexts:
            contexts = self.stages[2]
            contexts.odds.copy_(torch.exp(0.5 * torch.randn(contexts.odds.shape[1:])))
            contexts.bias.zero_()
            contexts.noise.zero_()
            contexts.sharpness.fill_(math.log(SHARPNESS))

    def start_from_(self, crops: Sampler, seed: int = 0, report: Callable[[str], None] | None = None) -> "MixtureLPN":
        """Start at what is fitted to images, in place; some minutes. For `has_start_from_data`.

        More filters than a basis has start at a mixture of Gaussians of patches (networks/mixture_start.py), contexts
        where its experts are found together (networks/mixture_contexts.py).

        Parameters
        ----------
        crops : callable
            Takes a count and a generator, returns clean images (count, C, side, side) in [0, 1].
        seed : int
        report : callable, optional
            Takes a line after each round.
        """
        if not self.has_start_from_data:
            raise ValueError("a start from data requires more filters than a basis has, or contexts, got neither")
        generator = torch.Generator().manual_seed(seed)
        if not self.in_basis:
            filters, experts = mixture_at_patches(crops, self.spec, generator, report)
            self.stages[0].skip.data[self.spec.channels :] = filters
            self.stages[-1].head.data.copy_(experts.pop("head"))
            for name, value in experts.items():
                getattr(self.stages[1], name).data.copy_(value)
            self.project_()
        if self.spec.has_contexts:
            for name, value in contexts_at_images(crops, self.spec, self.packed().float().cpu(), generator).items():
                getattr(self.stages[2], name).data.copy_(value)
        return self.project_()

    @torch.no_grad()
    def project_(self) -> "MixtureLPN":
        """Clamp what must not be negative; hold the filters, their means ungated, and the gain; in place."""
        super().project_()
        (first, last), channels = self.stages[:2], self.spec.channels
        first.head.zero_()
        first.head[:channels] = self._budget
        last.core[:, :channels] = 0
        head = self.stages[-1].head.item()
        most = self._budget / head if head > 0 else math.inf
        if self.spec.has_contexts:
            self.stages[2].odds.clamp_(math.exp(-LOG_CONTEXT), math.exp(LOG_CONTEXT))
            self.stages[2].sharpness.clamp_(*map(math.log, SHARPNESSES))
        if self.in_basis:
            hold_orthonormal_(first.skip)
            last.core.clamp_(max=most)
        else:
            hold_filters_(first.skip)
            if math.isfinite(most):
                scale_rows_(last.core, *forms_beyond(first.skip, last.core, most), most)
        return self

    @torch.no_grad()
    def project_gradients_(self) -> "MixtureLPN":
        """Gradients onto what `project_` leaves free: the basis only rotates, and h is fixed.

        Those of w and V are in their logarithms, those of W in the log-odds of W_mj as a share of its limit, log v_mj.
        """
        (first, last), head = self.stages[:2], self.stages[-1].head
        if first.head.grad is not None:
            first.head.grad.zero_()
        if last.core.grad is not None and head.grad is not None:
            slopes = last.core.grad * last.core  # in log W
            head.grad.mul_(head).sub_(slopes.sum())  # w W stays where log w moves
            if not self.in_basis and first.skip.grad is not None:
                most = (1 - NEAR) * self._budget / head.item()
                self._at_limit = keep_to_limit_(first.skip, last.core, slopes, most)
            last.core.grad.copy_(slopes * (1 - last.core * (head / self._budget)))
        if self.spec.has_contexts and self.stages[2].odds.grad is not None:
            self.stages[2].odds.grad.mul_(self.stages[2].odds)
        if first.skip.grad is not None:
            (keep_rotations_ if self.in_basis else keep_tangents_)(first.skip)
        return self

    @torch.no_grad()
    def step_(self, steps: dict[str, Tensor]) -> None:
        """As `LPN.step_`, with w and W in the coordinates of `project_gradients_`.

        Variances of all sizes move at the same rate there, and none is stopped at zero, where steps to and fro would
        leave it above zero.
        """
        steps, last, head = dict(steps), self.stages[1], self.stages[-1].head
        core, rise = steps.pop("stages.1.core"), steps.pop(f"stages.{len(self.stages) - 1}.head")
        if self.spec.has_contexts:
            self.stages[2].odds.mul_(steps.pop("stages.2.odds").exp())
        super().step_(steps)
        odds = torch.logit(last.core.double() * (head.double() / self._budget), 1e-9) + core
        head.mul_(rise.exp())
        last.core.copy_(self._budget / head * odds.clamp(-LOG_ODDS, LOG_ODDS).sigmoid())
        if not self.in_basis and self._at_limit is not None:
            hold_filters_(self.stages[0].skip)
            forms = forms_of_experts(self.stages[0].skip, last.core[self._at_limit])
            scale_rows_(last.core, self._at_limit, forms, (1 - NEAR / 2) * self._budget / head.item())

    def step_scales(self) -> dict[str, float]:
        """The size of each parameter at the start: steps of an optimizer are meant relative to it."""
        scales = sizes_at_start(self, MixtureLPN._draw)
        if not self.in_basis:
            scales["stages.0.skip"] *= TURNS
        scales["stages.0.head"] = self._budget
        return {name: LOG_SCALES[name.split(".")[-1]] if name[7] > "0" else scale for name, scale in scales.items()}


def _spec(
    channels: int,
    kernel: int,
    filters: int,
    experts: int,
    contexts: int,
    window: int,
    spacing: int,
    alpha: float,
    levels: tuple[float, ...],
    border: str,
) -> Spec:
    padding = kernel - 1  # as in FrameLPN
    reads = {"skip_kernel": kernel, "skip_stride": spacing, "skip_padding": padding}
    stages = [Stage(filters, **reads, bias=False, heads=("linear",))]
    compete = {"kernel": 1, "skip_kernel": 0, "heads": ("linear",), "competing": True}
    if contexts:
        window = _on_lattice(window, spacing)
        stages += [Stage(experts, kernel=1, skip_kernel=0), Stage(contexts, window=window, **compete)]
    else:
        stages += [Stage(experts, **compete)]
    levels = {"noise_levels": levels, "noise_units": True}
    return Spec("conv", channels, tuple(stages), 1.0, alpha, square_first=True, border=border, **levels)


def _check_spacing(spacing: int, kernel: int) -> None:
    if spacing not in (1, 2) or kernel % spacing:
        raise ValueError(f"spacing must be 1, or 2 for kernels of even side, got {spacing} for a side of {kernel}")


def _check_window(window: int) -> None:
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 3, got {window}")


def _on_lattice(window: int, spacing: int) -> int:
    """Positions, an odd number, in a window of so many pixels."""
    return window // spacing | 1


def _in_pixels(spec: Spec) -> int:
    """The smallest window that has as many."""
    return spec.spacing * (spec.stages[2].window - 1) + 1


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
