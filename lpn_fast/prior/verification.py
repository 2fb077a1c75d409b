"""Is this map an exact prox? Structure and behaviour, each property on its own line.

Structure (of an LPN): stored weights of the right sign, finite, softplus, alpha. An LPN projects its
weights whenever it evaluates, so a negative weight never shows in its values: the stored ones are looked at.
Behaviour (of any map): what prior/measures.py measures, in float64 where the map can be copied to it,
at the sample and around it. Behaviour can refute, never prove; structure proves.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..algebra.parameters import layout
from ..contract import check_float
from ..networks import LPN, ExplicitLPN
from ..networks.checkpoint import MOST_SKEW
from ..networks.inputs import checked_network
from ..per_sample import broadcast, dot, norm
from . import measures
from .report import Property, Report

MOST_SAMPLES = 4  # enough to refute; the cost is a few hundred evaluations of these
SOLVED_SIDE = 8  # pixels of the one image that a prox which is a solve, to 1e-12 every time, is looked at with
SCALES = (1e-3, 1e-1, 1.0)  # distances of competitors and segment ends, in units of the sample's deviation
TRIANGLE = 0.1  # its edges, in the same units: short enough to integrate over softplus kinks
# Violations that rounding explains, relative: exact in theory, eps times a few hundred accumulations in practice.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
GRADIENT_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-2}  # difference quotients: eps^(2/3) and curvature
GRADIENT_STEP = {torch.float64: 1e-5, torch.float32: 1e-2}
OWN_ARITHMETIC = {torch.float64: 1e-12, torch.float32: 1e-4}  # a dtype and its kernels against float64


@dataclass(frozen=True)
class Subject:
    """The map under test, at one noise level, in the most precise dtype it can be had in."""

    field: measures.Field
    potential: measures.Potential | None
    sample: Tensor  # [n, ...]
    draw: Callable[[], Tensor]  # standard normal noise of sample's shape

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.sample.dtype]


def verify(
    model: Callable[..., Tensor], sample: Tensor, sigma: float | Tensor | None = None, *, seed: int = 0
) -> Report:
    """Test that a network, or any map, is an exact proximal operator.

    Parameters
    ----------
    model : LPN, nn.Module or callable
        Called as model(x), or model(x, sigma) where sigma is given. A method `potential` of the same
        signature is used if there is one; without it the properties that need psi are left out.
    sample : Tensor, shape (N, ...)
        Typical inputs; the first 4 are used, of an explicit prior a corner of the first one. Images should be large
        enough to show borders and interior.
    sigma : float or Tensor, shape () or (N,), optional
        Noise level.
    seed : int
        Seed of the random directions and competitors.

    Returns
    -------
    Report
        `print(report)` shows a table; `report.all_hold`, `report.failed`, `report.to_dict()`.

    Raises
    ------
    TypeError, ValueError
        model is not callable; sample is not a float32 or float64 tensor, empty, or not finite.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> lf.verify(lf.MLPLPN(dim=3), torch.randn(4, 3)).all_hold
    True
    """
    _check(model, sample)
    if isinstance(model, ExplicitLPN):
        sample = sample[:1, :, :SOLVED_SIDE, :SOLVED_SIDE]
        sigma = sigma[:1] if isinstance(sigma, Tensor) and sigma.dim() else sigma
    subject = _subject(model, sample, sigma, seed)
    properties = [*_structure(model)] if isinstance(model, LPN) else []
    if isinstance(model, ExplicitLPN):
        properties = [*_certificate(model, subject, sigma)]
    with torch.no_grad():
        properties += [_own_arithmetic(model, subject, sample, sigma), *_behaviour(subject)]
        properties.append(_border(model, subject))
    return Report(tuple(properties))


def _finite_weights(model: nn.Module) -> Property:
    broken = [name for name, t in model.named_parameters() if not bool(t.isfinite().all())]
    detail = f"NaN or infinity in {', '.join(broken)}" if broken else "every stored parameter"
    return Property("finite weights", not broken, float(len(broken)), "= 0", detail)


def _structure(model: LPN) -> Iterator[Property]:
    yield _finite_weights(model)
    spec, stored = model.spec, dict(model.named_parameters())
    lowest = {slot.name: float(stored[slot.name].detach().min()) for slot in layout(spec) if slot.nonnegative}
    negative = {name: value for name, value in lowest.items() if not value >= 0}
    detail = "stored core and head weights"
    if negative:
        detail = f"negative in {', '.join(negative)}; model.project_() clamps them, as evaluation does"
    yield Property("non-negative weights", not negative, min(lowest.values()), ">= 0", detail)
    yield Property("smooth activation", spec.beta > 0, spec.beta, "> 0", "softplus, convex and increasing: beta")
    if spec.alpha > 0:
        detail = "psi is strongly convex: f is onto and has an inverse"
    else:
        detail = "psi is convex, not strongly: f need not be onto, and ADMM's theorem requires alpha > 0"
    yield Property("alpha", 0 <= spec.alpha < 1, spec.alpha, "in [0, 1)", detail)


def _certificate(model: ExplicitLPN, subject: Subject, sigma) -> Iterator[Property]:
    yield (finite := _finite_weights(model))
    if not finite.holds:
        return
    skew, mu = model.skewness(), model.spec.concavity
    free = bool(model.spec.filters)
    name = "spectra of filters" if free else "orthonormal atoms"
    detail = (
        "largest eigenvalue of their sum over all frequencies, less 1" if free else "largest eigenvalue of A A^T - I"
    )
    yield Property(name, skew <= MOST_SKEW, skew, f"<= {MOST_SKEW:g}", detail)
    with torch.no_grad():
        levels = torch.tensor(model.spec.noise_levels).to(model.far)
        pot = model.potentials(levels)
        parts = [level.energies.double().sum(1).max() for level in (pot, pot.coarse) if level is not None]
        columns = float(max(parts)) * (1 + max(skew, 0.0))
    detail = "concavity of R, by the column sums of U: below 1 f is unique"
    yield Property("certificate", columns < 1, columns, "< 1", detail)
    exact = copy.deepcopy(model).to(subject.sample.dtype)
    level = sigma[: len(subject.sample)] if isinstance(sigma, Tensor) and sigma.dim() else sigma
    shift, v = mu + 1 / model.alpha, subject.draw()
    for _ in range(measures.POWER_STEPS):  # towards the lowest eigenvalue of the Hessian
        v = v / broadcast(norm(v), v)
        h = exact.hessian_product(subject.sample, v, level)
        lowest = float(dot(v, h).min())
        v = shift * v - h
    detail = "lowest eigenvalue of the Hessian of R at the sample, by power iteration"
    yield Property("lowest curvature", lowest >= -columns, lowest, f">= -{columns:.3g}", detail)


def _own_arithmetic(model, subject: Subject, sample: Tensor, sigma) -> Property:
    """The map as it is used, dtype and kernels included, against float64."""
    name = "own arithmetic"
    x = sample[:MOST_SAMPLES]
    if subject.sample.dtype == x.dtype:
        return Property(name, None, None, "", f"not compared: everything below is computed in {x.dtype}")
    used, exact = _evaluated(model, x, sigma), subject.field(subject.sample)
    error = float((norm(used.double() - exact) / (norm(exact) + measures.TINY)).max())
    limit = OWN_ARITHMETIC[x.dtype]
    return Property(name, error <= limit, error, f"<= {limit:.0e}", f"f in {x.dtype} against float64, relative")


def _behaviour(subject: Subject) -> Iterator[Property]:
    field, potential, x, draw = subject.field, subject.potential, subject.sample, subject.draw
    tolerance = subject.tolerance
    spread = float(x.std()) if x.numel() > 1 else 1.0
    spread = spread if spread > 0 else 1.0

    def judged(name: str, measured: float, limit: float, detail: str) -> Property:
        return Property(name, measured <= limit, measured, f"<= {limit:.0e}", detail)

    try:
        yield judged(
            "symmetric Jacobian", measures.asymmetry(field, x, draw(), draw()), tolerance, "<w, J v> = <v, J w>"
        )
        yield judged("no negative curvature", measures.negative_curvature(field, x, draw()), tolerance, "<v, J v> >= 0")
        slope = measures.steepest_slope(field, x, draw())
        yield Property("steepest slope", None, slope, "", "largest |J v| / |v| found at the sample; for information")
    except (TypeError, RuntimeError) as error:  # a map that autograd cannot see through
        yield Property("Jacobian", None, None, "", f"not tested: {error}")

    worst = measures.worst(measures.non_monotony(field, x, x + s * spread * draw()) for s in SCALES)
    yield judged("monotone", worst, tolerance, "<f(a) - f(b), a - b> >= 0")
    b, c = x + TRIANGLE * spread * draw(), x + TRIANGLE * spread * draw()
    around, quadrature = measures.circulation(field, x, b, c)
    yield judged("path independent", around, tolerance + 3 * quadrature, "integral of <f, dx> around triangles")

    if potential is None:
        yield Property("potential", None, None, "", "not tested: the map has no method `potential`")
        return
    mismatch = measures.gradient_mismatch(field, potential, x, spread * draw(), GRADIENT_STEP[x.dtype])
    yield judged("f is the gradient of psi", mismatch, GRADIENT_TOLERANCE[x.dtype], "against difference quotients")
    worst = measures.worst(measures.non_convexity(potential, x, x + s * spread * draw()) for s in SCALES)
    yield judged("psi convex on segments", worst, tolerance, "psi in the middle <= mean of the ends")
    others = [x + s * spread * draw() for s in SCALES] + [x.roll(1, 0), draw(), 0 * x]
    worst = measures.suboptimality(field, potential, x, others)
    yield judged("prox inequality", worst, tolerance, "no competitor has a smaller 1/2 |x - y|^2 + R(x)")


def _border(model, subject: Subject) -> Property:
    """Jacobian symmetry between border and interior of an image larger than the sample."""
    name, x = "exact at borders", subject.sample[:1]
    if x.dim() not in (4, 5):
        return Property(name, None, None, "", "not tested: the sample holds no images")
    if isinstance(model, LPN) and model.spec.image_size is not None:
        return Property(name, None, None, "", f"not tested: the network takes {model.spec.image_size} pixels only")
    noise = [subject.draw()[:1] for _ in range(2 ** (x.dim() - 2))]
    for axis in range(2, x.dim()):  # odd sides, where strides show
        x = torch.cat([x, x.flip(axis)], axis).narrow(axis, 1, 2 * x.shape[axis] - 1)
        noise = [
            torch.cat(pair, axis).narrow(axis, 1, x.shape[axis]) for pair in zip(noise[::2], noise[1::2], strict=True)
        ]
    sides = " x ".join(map(str, x.shape[2:]))
    try:
        measured = measures.border_asymmetry(subject.field, x, noise[0])
    except (TypeError, ValueError, RuntimeError) as error:
        return Property(name, None, None, "", f"not tested on {sides} pixels: {error}")
    detail = f"J between frame and interior of {sides} pixels"
    return Property(name, measured <= subject.tolerance, measured, f"<= {subject.tolerance:.0e}", detail)


def _subject(model, sample: Tensor, sigma, seed: int) -> Subject:
    x = sample.detach()[:MOST_SAMPLES]
    if isinstance(sigma, Tensor) and sigma.dim() == 1 and len(sigma) == len(sample):
        sigma = sigma[:MOST_SAMPLES]
    if isinstance(model, nn.Module):
        model, x = copy.deepcopy(model).double().eval(), x.double()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)

    def at_level(function, t: Tensor):
        if sigma is None:
            return function(t)
        level = sigma[: len(t)] if isinstance(sigma, Tensor) and sigma.dim() else sigma
        return function(t, level)

    potential = getattr(model, "potential", None)
    return Subject(
        lambda t: at_level(model, t),
        None if potential is None else lambda t: at_level(potential, t),
        x,
        draw,
    )


def _evaluated(model, x: Tensor, sigma) -> Tensor:
    if isinstance(sigma, Tensor) and sigma.dim():
        sigma = sigma[: len(x)]
    return model(x) if sigma is None else model(x, sigma)


def _check(model, sample) -> None:
    if not callable(model):
        checked_network(model)
    check_float("sample", sample)
    if sample.dim() < 2 or sample.numel() == 0:
        raise ValueError(f"sample must have shape (N, ...) and not be empty, got {tuple(sample.shape)}")
    if not bool(sample.isfinite().all()):
        raise ValueError("sample must be finite, got NaN or infinity")
