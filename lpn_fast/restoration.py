"""Images from measurements with nothing tuned: start, pilot, descent.

    start     what the operator makes of y without a prior                              (physics/starts.py)
    pilot     a falling noise level, from the start towards the noise of y              (solvers/pilot.py)
    descent   on one fixed objective from there, inside its theorem, until the picture no longer changes visibly

The descent is half-quadratic splitting at the pilot's last level: its objective, h smoothed by a penalty plus the
weighted prior, falls whatever the operator. Where a shipped model was trained through the minimisers of such problems
(blurs of gray images), FISTA minimises h + w R with that model instead. An operator with A^T A = c I leaves nothing to
continue: gradient descent begins at the start.
"""

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .networks import LPN, pretrained
from .per_sample import dot, norm
from .physics import Blur, ParallelBeamCT
from .solvers import Reconstruction, Stage, estimate_noise, fista, hqs, pgd
from .solvers.noise import known_noise
from .solvers.pilot import TRUST, fly
from .solvers.problem import InverseProblem, checked_problem, relative_misfit

INVISIBLE = 5e-4  # relative change of an iteration: a tenth of a gray level of 255 in a picture of mean square 1/2
DESCENT_ITERATIONS = 60
ISOMETRY = 1e-4  # |A^T A v - c v| / |A^T A v| of a random v
ASSUMED = 0.85  # noise told to the model for blurs over the true one: where its training ended (its card)
LIKE_BYTES = 4.0  # mean size of pixels above which images in [0, 1] are implausible


@dataclass(frozen=True)
class Choice:
    """Networks of the pilot and of the descent, and why these."""

    pilot: LPN
    descent: LPN
    reason: str


def reconstruct(
    y: Tensor,
    physics,
    model: LPN | str = "auto",
    *,
    noise: float | Tensor | None = None,
    x0: Tensor | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructions of images in [0, 1] from measurements y = A x + noise, with nothing to tune.

    Parameters
    ----------
    y : Tensor, shape (N, ...), float32 or float64
        Measurements.
    physics : object with `A` and `A_adjoint`
        An operator of `lf.physics`, or any other linear one.
    model : LPN or "auto"
        A noise-conditional network. "auto" takes a shipped one that suits operator and channels, and
        says which one and why in the result's `stages`.
    noise : float or Tensor, shape (N,), optional
        Standard deviation of the noise in y. None asks the physics (`physics.with_noise`), else estimates it from y.
    x0 : Tensor, shape (N, C, H, W), optional
        Start of the pilot; None is the operator's own.
    progress : bool
        Show a progress bar of the descent.

    Returns
    -------
    Reconstruction
        Of the descent; prints as three lines. `stages` has start, pilot and descent, each with its image and misfit.

    Raises
    ------
    TypeError, ValueError
        As the solvers; noise that is not given and cannot be estimated; a model without noise levels, or for other
        channels.

    Warns
    -----
    RuntimeWarning
        Images that look like 0..255, a given noise level more than three times off the estimate, a condition that
        does not hold, samples that were still changing.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> physics = lf.physics.Inpainting.random(32, seen=0.5).with_noise(lf.physics.GaussianNoise(0.02))
    >>> result = lf.reconstruct(physics.simulate(torch.full((1, 1, 32, 32), 0.5), 0), physics)
    >>> result.x.shape, [stage.name for stage in result.stages]
    (torch.Size([1, 1, 32, 32]), ['start', 'pilot', 'descent'])
    """
    problem = checked_problem(y, physics, x0=x0)
    level = _noise(problem, noise)
    choice = _choice(problem, model)
    _warn_of_units(problem.x0)
    stages = [_stage("start", problem, problem.x0, level, "the operator's own" if x0 is None else "given")]
    options = {"tol": INVISIBLE, "max_iter": DESCENT_ITERATIONS, "progress": progress}
    if _is_isometry(problem):
        result = pgd(y, physics, choice.pilot, noise=level, x0=problem.x0, **options)
        note = "gradient descent: A^T A is a multiple of the identity, no pilot is needed"
    else:
        pilot = fly(problem, choice.pilot, level)
        most = int(pilot.iterations.max())
        stages.append(_stage("pilot", problem, pilot.x, level, f"at most {most} iterations; {choice.reason}"))
        if choice.descent is not choice.pilot:
            result = fista(y, physics, choice.descent, noise=ASSUMED * level, x0=pilot.x, **options)
            result = replace(result, misfit=relative_misfit(physics, result.x, y, level))
            note = "FISTA with a model trained through the minimisers of such problems"
        else:
            rho = (level / pilot.sigma.double()).square() / TRUST  # (N,)
            result = hqs(
                y, physics, choice.pilot, rho=rho, sigma=pilot.sigma, strength=1.0, noise=level, x0=pilot.x, **options
            )  # fmt: skip
            note = "half-quadratic splitting at the pilot's last noise level"
    stages.append(_stage("descent", problem, result.x, level, note))
    _warn_of_result(result)
    return replace(result, stages=tuple(stages))


def _noise(problem: InverseProblem, given: float | Tensor | None) -> Tensor:
    """s of every sample, (N,) float64: given, the physics', or estimated."""
    y = problem.y
    known = known_noise(problem.physics, y) if given is None else given
    if known is None:
        return estimate_noise(y, problem.physics)
    level = torch.as_tensor(known, dtype=torch.float64, device=y.device).expand(len(y)).clone()
    if not bool(((level > 0) & level.isfinite()).all()):
        raise ValueError(f"noise must be positive, got {level.tolist()}")
    if given is not None and y.dim() == 4:
        try:
            estimate = estimate_noise(y, problem.physics)
        except ValueError:  # measurements that are no images
            return level
        ratio = (level / estimate).log().abs().max().exp()
        if ratio > 3:
            warnings.warn(
                f"noise={float(level[0]):.3g} is a factor of {float(ratio):.3g} from what y shows, "
                f"{float(estimate[0]):.3g} (lf.solvers.estimate_noise)",
                RuntimeWarning,
                stacklevel=3,
            )
    return level


def _choice(problem: InverseProblem, model: LPN | str) -> Choice:
    """The networks, on the device and in the type of the measurements."""
    x = problem.x0
    operator = getattr(problem.physics, "physics", problem.physics)  # behind a noise model
    if isinstance(model, LPN):
        if not model.is_noise_conditional:
            raise ValueError(
                "model must be conditioned on the noise level (sigma_conditional), got one that is not; "
                "lf.solvers.pgd takes it"
            )
        return Choice(model, model, "the model given")
    if model != "auto":
        raise TypeError(f'model must be "auto" or an LPN, got {model!r}; lf.pretrained({model!r}) loads a shipped one')
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"model='auto' has networks for images (N, 1, H, W) and (N, 3, H, W), this operator's are {tuple(x.shape)}; "
            "give model="
        )
    descent = None
    if x.shape[1] == 3:
        name, reason = "natural-color-mixture", "colour images"
    elif isinstance(operator, ParallelBeamCT):
        name, reason = "ct", "a CT operator"
    else:
        name, reason = "natural-gray-mixture", "gray images"
        if isinstance(operator, Blur):
            descent = "natural-gray-deblur"
    pilot = pretrained(name, x.device).to(x.dtype)
    if descent is None:
        return Choice(pilot, pilot, f"model {name}: {reason}")
    return Choice(
        pilot, pretrained(descent, x.device).to(x.dtype), f"model {name}: {reason}; {descent} for the descent"
    )


def _is_isometry(problem: InverseProblem) -> bool:
    """Whether A^T A = c I, as a random image shows."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(problem.x0.shape, generator=generator, dtype=torch.float64).to(problem.x0)
    w = problem.physics.A_adjoint(problem.physics.A(v))
    c = float(dot(v, w).sum() / dot(v, v).sum())
    return bool((norm(w - c * v) <= ISOMETRY * norm(w)).all())


def _stage(name: str, problem: InverseProblem, x: Tensor, level: Tensor, note: str) -> Stage:
    return Stage(name, x, relative_misfit(problem.physics, x, problem.y, level), note)


def _warn_of_units(start: Tensor) -> None:
    size = float(start.abs().mean())
    if size > LIKE_BYTES:
        warnings.warn(
            f"the start has pixels of mean size {size:.3g}: the shipped models take images in [0, 1]. Divide y by the "
            "white level (255 for 8 bits), or give model=lf.rescaled(model, 1 / 255)",
            RuntimeWarning,
            stacklevel=3,
        )


def _warn_of_result(result: Reconstruction) -> None:
    if not result.conditions.all_hold:
        failing = ", ".join(c.name for c in result.conditions if not c.holds)
        warnings.warn(f"conditions of {result.conditions.theorem} do not hold: {failing}", RuntimeWarning, stacklevel=3)
    late = int((~result.converged).sum())
    if late:
        warnings.warn(
            f"{late} of {len(result.x)} images were still changing visibly after {DESCENT_ITERATIONS} iterations",
            RuntimeWarning,
            stacklevel=3,
        )
