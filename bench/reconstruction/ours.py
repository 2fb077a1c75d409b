"""The package's solvers: inside their theorems with nothing tuned, and with the published settings.

Nothing is set but the number of iterations and the start: step, strength and noise level of the network follow from
the noise of the measurements (lpn_fast/solvers/automatic.py). "lpn-tuned" has the one number that the baselines have:
the noise that is assumed, in units of the true one, chosen on training images. It scales the weight of the prior by
its square and leaves the theorem alone. "lpn-automatic" is `lf.reconstruct`, which chooses the networks, too.
"""

from dataclasses import replace

import lpn_fast as lf
from lpn_fast import solvers
from lpn_fast.solvers.automatic import trained_levels

from .outcome import Outcome
from .tasks import Instance, Task

ITERATIONS = 100
METHODS = ("lpn-pgd", "lpn-fista", "lpn-admm", "lpn-drs", "lpn-hqs")
ASSUMED_GRID = (0.45, 0.6, 0.75, 0.9, 1.1)
LADDER = 4  # levels from the network's largest to its smallest, in `continued`


def automatic(instance: Instance) -> Outcome:
    """`lf.reconstruct` with the noise level and nothing else."""
    result = lf.reconstruct(instance.y, instance.physics, noise=instance.noise)
    total = sum(stage.iterations for stage in result.stages)
    return Outcome(
        result.x, total, result.objective, int(result.converged.sum()), "", result.misfit.mean().item(),
        {"warnings": result.warnings, "stages": [f"{s.name}: {s.note}" for s in result.stages]},
    )  # fmt: skip


def theorem(
    method: str, model, instance: Instance, iterations: int = ITERATIONS, assumed: float | None = None, **settings
) -> Outcome:
    """A solver by its name, refusing to leave its theorem; `settings` are further arguments of it.

    `assumed` is the noise assumed over the true one.
    """
    solver = getattr(solvers, method.removeprefix("lpn-"))
    if assumed is not None:
        settings["noise"] = assumed * instance.noise
    result = solver(
        instance.y, instance.physics, model, x0=instance.simple, max_iter=iterations, tol=1e-4, strict=True, **settings
    )
    outcome = _outcome(result)
    if assumed is None:
        return outcome
    return replace(outcome, misfit=assumed * outcome.misfit, config=outcome.config | {"assumed_noise": assumed})


def continued(model, instance: Instance, iterations: int = ITERATIONS) -> Outcome:
    """FISTA after short runs with a stronger prior, each inside the theorem and started from the last.

    Where the noise is small and the operator sees little, the right weight is tiny and what the operator does not
    see moves slowly under it; the levels of the network, from the largest down, fill it in first.
    """
    x, done, levels = instance.simple, 0, [None]
    if model.is_noise_conditional:
        low, high = trained_levels(model)
        levels = [high * (low / high) ** (k / (LADDER - 1)) for k in range(LADDER)]
    for sigma in levels:
        result = solvers.fista(
            instance.y, instance.physics, model, x0=x, sigma=sigma, strength=1.0,
            max_iter=iterations, tol=1e-3, strict=True,
        )  # fmt: skip
        x, done = result.x, done + result.iterations
    result = solvers.fista(instance.y, instance.physics, model, x0=x, max_iter=iterations, tol=1e-4, strict=True)
    return replace(_outcome(result), iterations=done + result.iterations)


def published(task: Task, model, instance: Instance) -> Outcome:
    """ADMM as in the published code: small penalty, fixed network level, few iterations, the data step's image."""
    settings = task.published
    result = solvers.admm(
        instance.y, instance.physics, model, x0=instance.simple, rho=settings.equivalent_rho,
        sigma=settings.sigma if model.is_noise_conditional else None, strength=1.0,
        box=(0.0, 1.0) if settings.box else None, returned="data", max_iter=settings.iterations, tol=0.0,
    )  # fmt: skip
    return _outcome(result)


def _outcome(result) -> Outcome:
    factors = [c.factor or float("inf") for c in result.conditions if not c.holds]
    return Outcome(
        result.x,
        result.iterations,
        result.objective,
        int(result.converged.sum()),
        max((f for f in factors if f != float("inf")), default=1.0 if not factors else float("inf")),
        "" if result.misfit is None else result.misfit.mean().item(),
        {"settings": str(result.settings), "conditions": str(result.conditions)},
    )
