"""Images from measurements with nothing tuned: start, pilot, descent.

    start     what the operator makes of y without a prior                              (physics/starts.py)
    pilot     a falling noise level, from the start towards the noise of y              (solvers/continuation.py)
    descent   on one fixed objective from there, inside its theorem, until an iteration cannot be seen

The descent goes down the gradient of h + w R where R itself was learned (`ExplicitLPN`), as for all but blurs in
colour. With other networks it is half-quadratic splitting at the pilot's last level: its objective, h smoothed by a
penalty plus the weighted prior, falls whatever the operator. FISTA minimises h + w R instead where the noise is below
the least that the network knows, so that the prior has to be weakened, and where a shipped model was trained through
the minimisers of such problems (blurs). An operator with A^T A = c I leaves nothing to continue, and a network of one
noise level cannot: gradient descent begins at the start.

The weight of the prior is a quarter of that of MAP for networks that are denoisers, and about MAP's for those trained
through minimisers. Descents on R itself have half of MAP's, and an eighth where A attenuates and its inverse makes
noise louder; where the noise lies far below the lowest level that R knows, R is smoother than its weight says, and has
all of it, or a half. Where measurements are pictures of the image, more may be better, as for smooth images behind a
mild blur, and the measurements decide. With noise n of the level of theirs, y + a n and y - n / a are independent of
each other, so that what is reconstructed from the one can be judged by the other (the coupled bootstrap of Oliveira,
Lei, Tibshirani), for every sample by itself.

Where A misses much of the image, the minimiser of other networks is a worse picture than the pilot's, towards which
the objective goes on to fall in steps that cannot be seen (`python -m bench.reconstruction`): these are not made.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .choice import Choice, choose
from .networks import LPN, ExplicitLPN
from .per_sample import broadcast, dot, norm
from .physics import LinearOperator, seen
from .physics.noise import without_noise
from .solvers import Reconstruction, Stage, alarms, estimate_noise, fista, gradient, hqs, pgd
from .solvers.automatic import trained_levels
from .solvers.continuation import LEAST_NOISE, MISSING, TRUST, Pilot, follow_levels, highest_level, working_noise
from .solvers.noise import haar_level, known_noise
from .solvers.problem import InverseProblem, checked_problem, positive, random_like, relative_misfit

DESCENT_ITERATIONS = 200
VISIBLE = 2e-3  # relative change of an iteration: a quarter of a gray level of 255 in a picture of mean square 1/16
SETTLED = 1e-3  # the same for what was trained through minimisers, which are better than what leads to them
MINIMISED = 1e-4  # the same for descents on R itself: minimisers are better than all that leads to them
ISOMETRY = 1e-4  # |A^T A v - c v| / |A^T A v| of a random v
FAINT = 2.0  # noise levels of the model over the noise, from where the prior is weakened
WEIGHTS = (1 / TRUST, 2**0.5 / TRUST, 2 / TRUST)  # weights of the prior over that of MAP, where measurements can choose
GRADIENT_WEIGHTS = (0.125, 0.25, 0.5)  # the same for R itself
# Weights of R itself where measurements cannot choose: at noise that R knows, and far below that. Operators are even or
# attenuate, which makes noise in the image louder: EVEN is their typical gain over the largest, from where they count
# as even.
EVEN, EVEN_WEIGHTS, ATTENUATED_WEIGHTS = 0.2, (0.5, 1.0), (0.125, 0.5)
MINIMISER_WEIGHTS = (0.5, 0.8, 1.2, 1.8)  # the same for networks that were trained through minimisers
FEW = 2**14  # pixels; as many as an image of 128 x 128 leave chance in the choice of a weight
SPLIT = 0.5  # a: noise added to what is reconstructed, over that of y
CLOSER = 2.0  # an estimate of the noise this much above what a reconstruction leaves of y took signal for noise
ASSUMED = 0.85  # noise told to the model for blurs over the true one: where its training ended (its card)
DOUBTFUL = 3.0  # factor between given and estimated noise
LOCAL = 0.1  # part of a single pixel's measurement that may lie beyond a quarter of the sides around it
TILES = 4  # a side: in the calmest of 16 parts an image shows its noise rather than its texture


def reconstruct(
    y: Tensor,
    physics: LinearOperator,
    model: LPN | ExplicitLPN | Choice | str = "auto",
    *,
    noise: float | Tensor | None = None,
    is_estimate: bool = False,
    weight: float | Tensor | None = None,
    x0: Tensor | None = None,
    progress: bool | Callable[[int], object] = False,
) -> Reconstruction:
    """Reconstructions of images in [0, 1] from measurements y = A x + noise, with nothing to tune.

    Parameters
    ----------
    y : Tensor or array, shape (N, ...), float32 or float64
        Measurements; complex ones of operators that measure frequencies.
    physics : LinearOperator
        An operator of `lf.physics`, or any other linear one.
    model : LPN, ExplicitLPN or str
        A network, or the name of a shipped one. "auto" takes a shipped one that suits operator and channels, and
        says which and why in the result's `stages`. A network of one channel is applied to every channel. A `Choice`
        has one for the pilot and one for the descent.
    noise : float or Tensor, shape (N,), optional
        Standard deviation of the noise in y. None asks the physics (`physics.with_noise`), else estimates it from y.
    is_estimate : bool
        That `noise` is an estimate from y, too. Estimates err upwards: where measurements are no pictures of the image,
        a reconstruction that leaves far less of y lowers them.
    weight : float or Tensor, shape (N,), optional
        Weight of the prior over that of MAP for the noise level; more is smoother. None chooses.
    x0 : Tensor, shape (N, C, H, W), optional
        Where to start; None is the operator's own, `physics.start(y)`.
    progress : bool or callable
        Show progress bars of pilot and descent; or a function that is called with the number of iterations so far, of
        both together. What it raises ends the call.

    Returns
    -------
    Reconstruction
        Of the descent; prints as three lines. `stages` has start, pilot and descent, each with its image and misfit.
        Of a blur with the boundary "valid", `x` is what lies in the frame of y, and the stages have the rim as well.

    Raises
    ------
    TypeError, ValueError
        As the solvers; noise that is not given and cannot be estimated; a model for other channels.

    Warns
    -----
    RuntimeWarning
        Images that look like 0..255, a given noise level more than three times off the estimate, a condition that
        does not hold, a result that misses its measurements, samples that were still changing.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> physics = lf.physics.Inpainting.random(32, seen=0.5).with_noise(lf.physics.GaussianNoise(0.02))
    >>> result = lf.reconstruct(physics.simulate(torch.full((1, 1, 32, 32), 0.5), 0), physics)
    >>> result.x.shape, [stage.name for stage in result.stages]
    (torch.Size([1, 1, 32, 32]), ['start', 'pilot', 'descent'])
    """
    y = _real_tensor(y, physics)
    problem = checked_problem(y, physics, x0=x0)
    if weight is not None:
        weight = torch.as_tensor(positive("weight", weight, y), dtype=torch.float64, device=y.device).expand(len(y))
    level = working_noise(problem, noise)
    choice = choose(model, physics, problem.x0)
    found = [] if noise is None or is_estimate else _doubts(problem, level)
    stages = [_stage("start", problem, problem.x0, level, "the operator's own" if x0 is None else "given")]
    conditional = choice.pilot.is_noise_conditional
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # given below, of the noise that is true
        if not conditional or _is_isometry(problem):
            why = "A^T A is a multiple of the identity" if conditional else "the model has a single noise level"
            told = level if weight is None else weight.sqrt() * level
            options = _descent(progress) | {"x0": problem.x0}
            if choice.by_gradient:
                result = gradient(y, physics, choice.descent, noise=told, **options | {"tol": MINIMISED})
            else:
                result = pgd(y, physics, choice.pilot, noise=told, **options)
            note = f"{'' if choice.by_gradient else 'proximal '}gradient descent, {choice.reason}; no pilot: {why}"
        else:
            estimated = known_noise(physics, y) is None if noise is None else is_estimate
            if estimated and not _is_local(problem):
                level = _closer_noise(problem, choice, level)
            chosen = _weight(problem, choice, level) if weight is None else weight
            pilot, result, note = _solved(problem, choice, level, chosen, progress)
            note += ", by a weight that the measurements chose" * (weight is None and chosen is not None)
            stages.append(_stage("pilot", problem, pilot.x, level, choice.reason, pilot.iterations))
    stages.append(_stage("descent", problem, result.x, level, note, result.iterations))
    result = replace(result, misfit=stages[-1].misfit, warnings=(), stages=tuple(stages))
    known = level > LEAST_NOISE * torch.as_tensor(problem.norm).to(level)  # a misfit over nothing says nothing
    found += alarms.of_units(choice.descent, problem.x0) + _unfinished(result)
    found += alarms.of_result(replace(result, misfit=stages[-1].misfit.where(known, 1.0)), problem.x0)
    crop = getattr(physics, "crop", None)
    result = replace(result, x=crop(result.x)) if callable(crop) else result
    return alarms.warned(result, found, stacklevel=2)


def _real_tensor(y: Tensor, physics: LinearOperator) -> Tensor:
    """An array as a tensor, complex measurements in the form of the operator."""
    y = torch.from_numpy(y) if isinstance(y, np.ndarray) else y
    as_real = getattr(without_noise(physics), "as_real", None)
    return as_real(y) if callable(as_real) and isinstance(y, Tensor) and y.is_complex() else y


def _solved(
    problem: InverseProblem,
    choice: Choice,
    level: Tensor,  # (N,)
    weight: Tensor | None,  # (N,)
    progress: bool | Callable[[int], object] = False,
) -> tuple[Pilot, Reconstruction, str]:
    """Pilot, descent, and what the descent is."""
    trust = TRUST if weight is None or choice.apart else 1 / weight
    pilot = follow_levels(problem, choice.pilot, level, progress, trust)
    result, note = _descended(problem, choice, level, weight, pilot, pilot.x, _descent(progress, pilot.iterations))
    return pilot, result, note


def _descended(
    problem: InverseProblem,
    choice: Choice,
    level: Tensor,  # (N,)
    weight: Tensor | None,  # (N,)
    pilot: Pilot,
    x0: Tensor,
    options: dict,
) -> tuple[Reconstruction, str]:
    """The descent from x0, and what it is."""
    y, physics, options = problem.y, problem.physics, options | {"x0": x0}
    if choice.by_gradient:
        if weight is None:
            usual = choice.through_minimisers
            weight = torch.full_like(level, ASSUMED**2) if usual else _usual_weight(problem, choice.descent, level)
        told, note = level * weight.sqrt(), "quasi-Newton descent with a prior that gives its gradient"
        return gradient(y, physics, choice.descent, noise=told, **options | {"tol": MINIMISED}), note
    if choice.through_minimisers:
        told = (ASSUMED if weight is None else weight.sqrt()) * level
        note = "FISTA with a network that was trained through the minimisers of such problems"
        return fista(y, physics, choice.descent, noise=told, **options | {"tol": SETTLED}), note
    if bool((pilot.sigma.double() * problem.norm > FAINT * level).any()):
        note = "FISTA with the prior weakened: the noise is below the model's lowest level"
        return fista(y, physics, choice.pilot, noise=level / pilot.trust.sqrt(), **options), note
    rho = level.square() * pilot.penalty  # (N,)
    result = hqs(y, physics, choice.pilot, rho=rho, sigma=pilot.sigma, strength=1.0, noise=level, **options)
    return result, "half-quadratic splitting at the pilot's last noise level"


def _usual_weight(problem: InverseProblem, model: ExplicitLPN, level: Tensor) -> Tensor:
    """Weight of R itself over that of MAP, (N,), where the measurements cannot choose it."""
    v = random_like(problem.x0)
    gain = norm(problem.physics.A(v)) / norm(v)  # typical of directions, where the norm is the largest
    even = highest_level(problem) == MISSING or bool((gain >= EVEN * problem.norm).all())
    least, most = EVEN_WEIGHTS if even else ATTENUATED_WEIGHTS
    low = min(trained_levels(model) or model.spec.noise_levels)
    below = (low * problem.norm / level).clamp(min=1)  # how far the noise in the image lies below what R knows
    return (least * below.square()).clamp(max=most)


def _descent(progress: bool | Callable[[int], object] = False, pilot: Tensor | None = None) -> dict:
    """Options of a solver that says how many iterations were done, after those of the pilot, (N,)."""
    before = 0 if pilot is None else int(pilot.max())
    options: dict = {"max_iter": DESCENT_ITERATIONS, "tol": VISIBLE}
    if not callable(progress):
        return options | {"progress": progress}

    def callback(iteration: int, x: Tensor, objective: Tensor) -> None:
        progress(before + iteration)

    return options | {"callback": callback}


def _weight(problem: InverseProblem, choice: Choice, level: Tensor) -> Tensor | None:
    """The weight that every sample wants, (N,), by a part of the noise that is kept from the reconstruction.

    With y_1 = y + a n and y_2 = y - n / a, n as the noise of y: E |A x_1 - y_2|^2 = E |A x_1 - A x|^2 and a constant.
    What is left by chance are products of A x_1 with n and with the noise of y; n and -n together take the first away,
    where so few pixels need it.
    """
    if not _is_local(problem) or highest_level(problem) == MISSING:
        return None
    y, reached = problem.y, seen(problem.physics, problem.y)
    n = torch.where(reached, broadcast(level, y) * random_like(y), 0.0)
    trial = choice if choice.trial is None else Choice(choice.pilot, choice.trial, choice.reason)
    tried = MINIMISER_WEIGHTS if trial.through_minimisers else GRADIENT_WEIGHTS if trial.by_gradient else WEIGHTS
    weights = torch.tensor(tried, dtype=torch.float64, device=y.device)
    signs = (1, -1) if math.prod(y.shape[-2:]) <= FEW else (1,)
    risks = torch.stack([_risks(weights, problem, trial, level, sign * n, reached) for sign in signs]).sum(0)
    return _lowest(weights.log(), risks).exp()


def _lowest(places: Tensor, values: Tensor) -> Tensor:
    """Where parabolas through the least of values [W, N] and its neighbours at places, (W,), are lowest, (N,)."""
    middle = values.argmin(0).clamp(1, len(places) - 2)
    left, own, right = (places[middle + step] for step in (-1, 0, 1))
    at = torch.arange(values.shape[1], device=values.device)
    low, least, high = (values[middle + step, at] for step in (-1, 0, 1))
    down, up = (low - least) / (own - left), (high - least) / (right - own)
    bent = down + up > 0
    vertex = own + 0.5 * ((right - own) * down - (own - left) * up) / torch.where(bent, down + up, 1)
    return torch.where(bent, vertex, places[values.argmin(0)]).clamp(places[0], places[-1])


def _risks(
    weights: Tensor, problem: InverseProblem, choice: Choice, level: Tensor, noise: Tensor, reached: Tensor
) -> Tensor:
    """|A x_1 - y_2|^2 at every weight, [weights, N], with `noise`, like y, as n."""
    split, louder = replace(problem, y=problem.y + SPLIT * noise), level * (1 + SPLIT**2) ** 0.5
    pilot = follow_levels(split, choice.pilot, louder) if choice.apart else None
    x, risks = split.x0 if pilot is None else pilot.x, []
    for weight in weights:
        own = weight.expand(len(level))
        if pilot is None:
            x = _solved(split, choice, louder, own)[1].x
        else:  # from the minimiser at the weight before
            x = _descended(split, choice, louder, own, pilot, x, _descent())[0].x
        missed = torch.where(reached, problem.physics.A(x) - (problem.y - noise / SPLIT), 0.0)
        risks.append(norm(missed).square())
    return torch.stack(risks)


def _closer_noise(problem: InverseProblem, choice: Choice, level: Tensor) -> Tensor:
    """An estimated noise level, (N,), or what a reconstruction with it leaves of y where that is far less.

    Estimates err upwards, and a reconstruction that smooths too much leaves signal: what it leaves errs upwards too,
    but for the part of the noise that it fits.
    """
    x = follow_levels(problem, choice.pilot, level).x
    left = level * relative_misfit(problem.physics, x, problem.y, level)
    return torch.where(level > CLOSER * left, left, level)


def _is_isometry(problem: InverseProblem) -> bool:
    """Whether A^T A = c I, as a random image shows."""
    v = random_like(problem.x0)
    w = problem.physics.A_adjoint(problem.physics.A(v))
    c = float(dot(v, w).sum() / dot(v, v).sum())
    return bool((norm(w - c * v) <= ISOMETRY * norm(w)).all())


def _stage(
    name: str, problem: InverseProblem, x: Tensor, level: Tensor, note: str, iterations: Tensor | None = None
) -> Stage:
    done = torch.zeros(len(x), dtype=torch.int64, device=x.device) if iterations is None else iterations
    return Stage(name, x, relative_misfit(problem.physics, x, problem.y, level), done, note)


def _doubts(problem: InverseProblem, level: Tensor) -> list[str]:
    """A given noise level that the measurements contradict.

    The estimate takes texture for noise: it bounds the level from above, and only its calmest part does from below.
    """
    y, physics = problem.y, problem.physics
    try:
        above = estimate_noise(y, physics)  # (N,)
    except ValueError:  # measurements that are no images, or too small ones
        return []
    reached = seen(physics, y)
    below = torch.zeros_like(above)
    if _is_local(problem):
        calm = haar_level(_tiles(y), _tiles(reached)).reshape(-1, len(y))
        least = calm.where(calm > 0, torch.inf).amin(0)  # (N,)
        below = least.where(least.isfinite(), 0.0)  # infinite where no part has enough of what the operator reaches
    doubtful = (level > DOUBTFUL * above) | (DOUBTFUL * level < below)
    if not bool(doubtful.any()):
        return []
    first = int(doubtful.nonzero()[0])
    return [
        f"noise = {float(level[first]):.3g} is more than {DOUBTFUL:g} times off what y shows in sample {first}, "
        f"{float(above[first]):.3g} (lf.solvers.estimate_noise); noise=None takes the estimate"
    ]


def _is_local(problem: InverseProblem) -> bool:
    """Whether measurements are pictures of the same place: the middle pixel is seen around the middle."""
    dot = torch.zeros_like(problem.x0)
    dot[..., dot.shape[-2] // 2, dot.shape[-1] // 2] = 1
    energy = problem.physics.A(dot).square()
    height, width = energy.shape[-2:]
    near = energy[..., height // 4 : height - height // 4, width // 4 : width - width // 4]
    return float(near.sum()) >= (1 - LOCAL) * float(energy.sum())


def _tiles(images: Tensor) -> Tensor:  # (N, C, H, W) -> (TILES^2 N, C, H / TILES, W / TILES)
    height, width = (side // TILES for side in images.shape[-2:])
    whole = images[..., : height * TILES, : width * TILES]
    return whole.unflatten(-2, (TILES, height)).unflatten(-1, (TILES, width)).movedim((-4, -2), (0, 1)).flatten(0, 2)


def _unfinished(result: Reconstruction) -> list[str]:
    """Images that still changed so that one can see it."""
    late = int((~result.converged & ~result.broken & (result.residual[-1] > VISIBLE)).sum())
    return [f"{late} of {len(result.x)} images were still changing after {DESCENT_ITERATIONS} iterations"] * (late > 0)
