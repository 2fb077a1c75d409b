"""Solvers: descent, fixed points and reports, on priors whose truth is known without a network."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lpn_fast.per_sample import column, dot
from lpn_fast.physics import Blur, Denoising
from lpn_fast.solvers import Condition, Conditions, Reconstruction, admm, pgd
from lpn_fast.solvers.admm import AlternatingDirections
from lpn_fast.solvers.problem import half_square, pose

SIDE = 6
SOLVERS = pytest.mark.parametrize("solver", [pgd, admm])
PHYSICS = {
    "circular": Blur.gaussian(1.0),
    "full": Blur(torch.tensor([[0.1, 0.4, 0.0], [0.2, 0.5, -0.2], [0.0, 0.1, 0.0]]), "full"),
    "identity": Denoising(),
}
EVERY_PHYSICS = pytest.mark.parametrize("physics", PHYSICS.values(), ids=PHYSICS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Transforms of 8 x 8 pixels take microseconds; waking a second one on a busy machine, milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class QuadraticPrior:
    """R(x) = q/2 ||x - mean||^2, so every objective is quadratic and its minimiser a linear system."""

    def __init__(self, q=0.5, mean=0.3):
        self.q, self.mean = q, mean
        self.alpha = 1 / (1 + q)
        self.samples_seen, self.sigmas_seen = 0, []

    def prox_and_prior(self, z, strength=1.0, sigma=None):
        self.samples_seen += len(z)
        self.sigmas_seen.append(sigma)
        t = column(strength, z)
        x = (z + t * self.q * self.mean) / (1 + t * self.q)
        return x, self.q * half_square(x - self.mean)


class SigmoidPrior:
    """f(u) = Q^T (a v + b sigmoid(beta (v - c))), v = Q u: one softplus stage seen through a rotation Q.

    The slope of the sigmoid lies between a and a + b beta / 4, so R is convex if and only if that is
    at most 1. It is the gradient of psi(u) = sum a/2 v^2 + b/beta softplus(beta (v - c)).
    """

    def __init__(self, a=0.3, b=0.7, beta=10.0, c=0.2):
        self.a, self.b, self.beta, self.c = a, b, beta, c
        self.alpha = a
        generator = torch.Generator().manual_seed(5)
        self.rotation = torch.linalg.qr(torch.randn(SIDE**2, SIDE**2, generator=generator, dtype=torch.float64)).Q

    def f(self, v):
        return self.a * v + self.b * torch.sigmoid(self.beta * (v - self.c))

    def psi(self, v):
        softplus = F.softplus(self.beta * (v - self.c), threshold=700)
        return (0.5 * self.a * v * v + self.b / self.beta * softplus).sum(dim=1)

    def prox_and_prior(self, z, strength=1.0, sigma=None):
        rotated = z.flatten(1) @ self.rotation.T  # (N, 36)
        v = self.solve(rotated, column(strength, rotated))
        x = self.f(v)
        prior = dot(v, x) - half_square(x) - self.psi(v)
        return (x @ self.rotation).reshape(z.shape), prior

    def solve(self, z, t):
        """Root of t v + (1 - t) f(v) = z, increasing in v, by bisection."""
        width = z.abs().max() / self.a + self.b / self.a + 1
        low, high = -width.expand_as(z), width.expand_as(z)
        for _ in range(80):
            middle = (low + high) / 2
            below = t * middle + (1 - t) * self.f(middle) < z
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


NONCONVEX = SigmoidPrior()  # slopes 0.3 to 2.05
CONVEX = SigmoidPrior(a=0.3, b=0.25)  # slopes 0.3 to 0.925


def make_measurements(physics, samples=4, noise=0.1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)
    x = torch.rand(samples, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    y = physics.A(x)
    return (y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)).to(dtype)


def follow(solver, *args, **options):
    """A run together with its images after every iteration, (iterations, N, ...)."""
    path = []
    result = solver(*args, callback=lambda k, x, objective: path.append(x), **options)
    return result, torch.stack(path)


def linear_solution(physics, y, weight, mean):
    """Minimiser of 1/2 ||A x - y||^2 + weight/2 ||x - mean||^2, from the matrix of A."""
    pixels = SIDE**2
    matrix = physics.A(torch.eye(pixels, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)).flatten(1).T
    right = y.flatten(1) @ matrix + weight * mean
    system = matrix.T @ matrix + weight * torch.eye(pixels, dtype=torch.float64)
    return torch.linalg.solve(system, right.T).T.reshape(-1, 1, SIDE, SIDE)


# ---------------------------------------------------------------- the toy priors are what they claim


def test_the_sigmoid_prior_is_the_prox_of_its_prior():
    """Brute force on a grid, in the rotated coordinates where it separates; t R included."""
    model = NONCONVEX
    v = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    x = model.f(v)  # all images, with R known
    prior = v * x - 0.5 * x * x - model.psi(v[:, None])
    for t in (0.3, 1.0):
        for z in (-0.7, 0.2, 0.45, 1.1):
            best = x[(0.5 * (x - z) ** 2 + t * prior).argmin()]
            found = model.f(model.solve(torch.tensor([[z]], dtype=torch.float64), t))
            assert found.item() == pytest.approx(best.item(), abs=1e-3)


def test_one_toy_prior_is_convex_and_the_other_is_not():
    steepest_convex, steepest_nonconvex = (m.a + m.b * m.beta / 4 for m in (CONVEX, NONCONVEX))
    assert steepest_convex < 1 < steepest_nonconvex


# ---------------------------------------------------------------- PGD


@EVERY_PHYSICS
@pytest.mark.parametrize("strength", [1.0, 0.3, torch.tensor([0.1, 0.5, 0.9, 1.0])], ids=str)
def test_pgd_decreases_its_objective_sufficiently_on_a_nonconvex_prior(physics, strength):
    y = make_measurements(physics)
    eta, curvature = 0.9 / physics.norm() ** 2, physics.norm() ** 2
    result, path = follow(pgd, y, physics, NONCONVEX, step_size=eta, strength=strength, max_iter=60, tol=0.0)
    moved = 2 * half_square((path[1:] - path[:-1]).flatten(0, 1)).reshape(-1, len(y))  # ||x+ - x||^2
    promised = (1 / (2 * eta) - curvature / 2) * moved
    rounding = 1e-13 * result.objective.abs().max()
    assert result.conditions.all_hold
    assert (result.objective[1:] <= result.objective[:-1] - promised + rounding).all()


def test_pgd_objective_is_the_data_term_plus_the_weighted_prior():
    physics, model = PHYSICS["full"], QuadraticPrior()
    y = make_measurements(physics)
    result = pgd(y, physics, model, step_size=0.4, strength=0.3, max_iter=7)
    prior = 0.5 * model.q * (result.x - model.mean).square().sum(dim=(1, 2, 3))
    expected = half_square(physics.A(result.x) - y) + 0.3 / 0.4 * prior
    assert torch.allclose(result.objective[-1], expected, rtol=1e-12)


@EVERY_PHYSICS
def test_pgd_reaches_the_solution_of_the_linear_system(physics):
    y, model = make_measurements(physics), QuadraticPrior(q=0.2)
    result = pgd(y, physics, model, strength=0.5, max_iter=2000, tol=1e-13)
    eta = 0.95 / physics.norm() ** 2
    expected = linear_solution(physics, y, weight=0.5 / eta * model.q, mean=model.mean)
    assert result.converged.all()
    assert torch.allclose(result.x, expected, atol=1e-10)


# ---------------------------------------------------------------- ADMM


@EVERY_PHYSICS
def test_admm_reaches_the_solution_of_the_linear_system(physics):
    y, model = make_measurements(physics), QuadraticPrior(q=0.2)
    result = admm(y, physics, model, strength=0.5, max_iter=2000, tol=1e-12)
    rho = 1.05 * physics.norm() ** 2
    expected = linear_solution(physics, y, weight=0.5 * rho * model.q, mean=model.mean)
    assert result.converged.all()
    assert torch.allclose(result.x, expected, atol=1e-9)


@EVERY_PHYSICS
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_admm_decreases_its_envelope_on_a_nonconvex_prior(physics, strength):
    """D = h(x) + <grad h(x), z - x> + rho/2 ||z - x||^2 + t rho R(z) falls for rho > ||A||^2."""
    y, rho = make_measurements(physics), 1.05 * physics.norm() ** 2
    problem = pose(y, physics, strength=strength, sigma=None, x0=None, max_iter=1, tol=0.0)
    method = AlternatingDirections(physics, NONCONVEX, rho)
    state, envelopes = method.start(problem), []
    for _ in range(60):
        state = method.step(state)
        x, z = state.data_image, state.image
        prior = state.objective - half_square(physics.A(z) - y)
        slope = dot(physics.A_adjoint(physics.A(x) - y), z - x)
        envelopes.append(half_square(physics.A(x) - y) + slope + rho * half_square(z - x) + prior)
    envelopes = torch.stack(envelopes)  # (60, N)
    assert (envelopes[1:] <= envelopes[:-1] + 1e-11 * envelopes.abs().max()).all()
    assert (envelopes[-1] < envelopes[0]).all()


def test_admm_keeps_its_dual_at_the_gradient_of_the_data_term():
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    problem = pose(y, physics, strength=1.0, sigma=None, x0=None, max_iter=1, tol=0.0)
    method = AlternatingDirections(physics, NONCONVEX, rho=1.5)
    state = method.step(method.step(method.start(problem)))
    gradient = physics.A_adjoint(physics.A(state.data_image) - y)
    assert torch.allclose(-1.5 * state.dual, gradient, atol=1e-12)


@EVERY_PHYSICS
def test_admm_and_pgd_agree_on_a_convex_prior(physics):
    """With rho = 1 / eta both minimise h + (t / eta) R, and both are inside their theorems."""
    y, eta = make_measurements(physics), 0.9 / physics.norm() ** 2
    options = {"strength": 0.3, "max_iter": 3000, "tol": 1e-11, "strict": True}
    by_pgd = pgd(y, physics, CONVEX, step_size=eta, **options)
    by_admm = admm(y, physics, CONVEX, rho=1 / eta, **options)
    assert by_pgd.converged.all() and by_admm.converged.all()
    assert torch.allclose(by_pgd.x, by_admm.x, atol=1e-8)
    assert torch.allclose(by_pgd.objective[-1], by_admm.objective[-1], rtol=1e-10)


# ---------------------------------------------------------------- the batch


@SOLVERS
def test_a_result_does_not_depend_on_the_companions(solver):
    physics = PHYSICS["full"]
    y = make_measurements(physics, samples=5)
    y[3] *= 10
    strength = torch.tensor([1.0, 0.2, 0.5, 0.7, 0.1])
    together = solver(y, physics, NONCONVEX, strength=strength, max_iter=80, tol=1e-6)
    assert len(together.iterations.unique()) > 1
    for i in range(5):
        alone = solver(y[i : i + 1], physics, NONCONVEX, strength=strength[i].item(), max_iter=80, tol=1e-6)
        rows = len(alone.objective)
        assert alone.iterations.item() == together.iterations[i].item()
        assert torch.allclose(alone.x[0], together.x[i], rtol=1e-11)
        assert torch.allclose(alone.objective[:, 0], together.objective[:rows, i], rtol=1e-12)
        assert (together.objective[rows:, i] == together.objective[rows - 1, i]).all()


@SOLVERS
def test_finished_samples_cost_nothing(solver):
    physics, model = PHYSICS["circular"], QuadraticPrior()
    y = make_measurements(physics)
    # The first sample starts at its solution.
    y[0] = physics.A(torch.full((1, 1, SIDE, SIDE), model.mean, dtype=torch.float64))
    result = solver(y, physics, model, max_iter=500, tol=1e-8)
    assert result.converged.all() and result.iterations[0] < result.iterations[1:].min()
    assert model.samples_seen == result.iterations.sum()
    assert len(result.objective) == len(result.residual) == result.iterations.max()
    assert (result.residual[-1] <= 1e-8).all()


@SOLVERS
def test_a_sample_that_becomes_nan_keeps_its_last_good_image(solver):
    class Fragile(QuadraticPrior):
        calls = 0

        def prox_and_prior(self, z, strength=1.0, sigma=None):
            self.calls += 1
            x, prior = super().prox_and_prior(z, strength, sigma)
            broken = (x.flatten(1).mean(dim=1) > 0.8) & (self.calls > 2)
            return x + torch.where(broken, torch.nan, 0.0).reshape(-1, 1, 1, 1), prior

    physics = PHYSICS["circular"]
    y = make_measurements(physics, samples=3)
    y[1] += 3
    with pytest.warns(RuntimeWarning, match=r"samples \[1\] became NaN or infinite in iteration 3"):
        result = solver(y, physics, Fragile(), max_iter=500, tol=1e-7)
    two_steps = solver(y, physics, QuadraticPrior(), max_iter=2)
    healthy = solver(y, physics, QuadraticPrior(), max_iter=500, tol=1e-7)
    assert torch.equal(result.x[1], two_steps.x[1]) and result.iterations[1] == 2
    assert result.converged.tolist() == [True, False, True]
    assert (result.objective[1:, 1] == two_steps.objective[1, 1]).all()
    assert torch.allclose(result.x[0::2], healthy.x[0::2], rtol=1e-12)


@SOLVERS
def test_a_sample_broken_from_the_start_returns_the_start(solver):
    class Broken(QuadraticPrior):
        def prox_and_prior(self, z, strength=1.0, sigma=None):
            return torch.full_like(z, torch.nan), torch.zeros(len(z), dtype=torch.float64)

    y = make_measurements(PHYSICS["identity"], samples=2)
    with pytest.warns(RuntimeWarning, match="became NaN"):
        result = solver(y, PHYSICS["identity"], Broken())
    assert torch.equal(result.x, y) and not result.converged.any() and not result.iterations.any()
    assert result.objective.isnan().all() and result.objective.shape == (1, 2)


@SOLVERS
def test_float32_images_stay_float32_and_objectives_are_float64(solver):
    physics = PHYSICS["circular"]
    y = make_measurements(physics, dtype=torch.float32)
    result = solver(y, physics, QuadraticPrior(), strength=torch.tensor([0.1, 0.2, 0.3, 0.4]), max_iter=4)
    assert isinstance(result, Reconstruction)
    assert result.x.dtype == torch.float32 and result.x.shape == (4, 1, SIDE, SIDE)
    assert result.objective.dtype == torch.float64 and not result.x.requires_grad


@SOLVERS
def test_the_noise_level_reaches_the_model(solver):
    physics, model = PHYSICS["circular"], QuadraticPrior()
    y = make_measurements(physics)
    solver(y, physics, model, sigma=0.1, max_iter=2)
    assert model.sigmas_seen == [0.1, 0.1]
    solver(y, physics, model, sigma=torch.tensor([0.1, 0.2, 0.3, 0.4]), max_iter=1)
    assert model.sigmas_seen[-1].shape == (4,)


# ---------------------------------------------------------------- conditions


def test_a_step_outside_the_theorem_is_flagged():
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    inside, outside = (pgd(y, physics, CONVEX, step_size=s, max_iter=1).conditions for s in (0.99, 1.01))
    assert inside.all_hold and not outside.all_hold
    assert not outside["step size"].holds and outside["matched adjoint"].holds
    with pytest.raises(ValueError, match=r"PGD is outside .* step size must satisfy 0 < eta < .*, got 1.01"):
        pgd(y, physics, CONVEX, step_size=1.01, strict=True)


def test_the_published_penalty_is_flagged():
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    conditions = admm(y, physics, CONVEX, rho=0.1, max_iter=1).conditions
    assert [c.name for c in conditions if not c.holds] == ["penalty"]
    with pytest.raises(ValueError, match=r"ADMM is outside .* penalty must satisfy rho > .*, got 0.1"):
        admm(y, physics, CONVEX, rho=0.1, strict=True)


def test_a_network_without_strong_convexity_is_flagged():
    physics, model = PHYSICS["circular"], QuadraticPrior()
    model.alpha = 0.0
    y = make_measurements(physics)
    assert not admm(y, physics, model, max_iter=1).conditions["strong convexity"].holds
    with pytest.raises(ValueError, match="strong convexity must satisfy 0 < alpha < 1, got 0"):
        admm(y, physics, model, strict=True)


@SOLVERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_unmatched_adjoint_is_flagged(solver, dtype):
    class Unflipped(Blur):
        def A_adjoint(self, y):
            return Blur(self.kernel.flip(0, 1), self.boundary).A_adjoint(y)

    skewed = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.3, 0.4], [0.0, 0.1, 0.0]])
    for kind, matched in ((Blur, True), (Unflipped, False)):
        y = make_measurements(kind(skewed), dtype=dtype)
        report = solver(y, kind(skewed), QuadraticPrior(), max_iter=1).conditions
        assert report["matched adjoint"].holds is matched


@SOLVERS
def test_an_operator_with_only_two_methods_is_accepted(solver):
    class Bare:
        def __init__(self, blur):
            self.A, self.A_adjoint = blur.A, blur.A_adjoint

    blur = PHYSICS["full"]
    y = make_measurements(blur)
    options = {"step_size": 0.5} if solver is pgd else {"rho": 2.0}
    rich, bare = (solver(y, p, CONVEX, max_iter=1000, tol=1e-9, **options) for p in (blur, Bare(blur)))
    assert torch.allclose(rich.x, bare.x, atol=1e-7)
    assert "(||A|| estimated)" in str(bare.conditions) and "estimated" not in str(rich.conditions)


def test_conditions_print_as_an_aligned_table():
    table = str(Conditions("PGD", (Condition("step size", "0 < eta < 1", "2", False),)))
    assert table == "PGD        required     actual  holds\nstep size  0 < eta < 1  2       no"
    with pytest.raises(KeyError, match="no condition 'rho'; there are step size"):
        Conditions("PGD", (Condition("step size", "", "", True),))["rho"]


def test_results_are_frozen():
    result = pgd(make_measurements(PHYSICS["identity"]), PHYSICS["identity"], CONVEX, max_iter=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.x = None


# ---------------------------------------------------------------- callback, progress


@SOLVERS
def test_a_callback_sees_every_iteration_and_can_stop(solver):
    physics, seen = PHYSICS["circular"], []

    def callback(iteration, x, objective):
        seen.append((iteration, x, objective))
        return iteration == 3

    y = make_measurements(physics)
    result = solver(y, physics, NONCONVEX, tol=0.0, callback=callback)
    assert [k for k, _, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], result.x) and not torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(torch.stack([objective for _, _, objective in seen]), result.objective)
    assert not result.converged.any() and (result.iterations == 3).all()


def test_progress_is_shown_when_asked_for(capsys):
    y = make_measurements(PHYSICS["identity"])
    pgd(y, PHYSICS["identity"], CONVEX, max_iter=2, progress=True)
    assert "pgd" in capsys.readouterr().err
    pgd(y, PHYSICS["identity"], CONVEX, max_iter=2)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- bad input


@SOLVERS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength must be positive, got 0.0"),
        ({"strength": 1.5}, r"strength must lie in \(0, 1\], got 1.5"),
        ({"strength": torch.tensor([0.5, 2.0])}, r"strength must lie in \(0, 1\], got \[0.5, 2.0\]"),
        ({"strength": torch.ones(3)}, r"strength must be a number or have shape \(2,\), got \(3,\)"),
        ({"strength": math.nan}, "strength must be positive, got nan"),
        ({"sigma": -0.1}, "sigma must be positive, got -0.1"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"tol": -1e-3}, "tol must be at least 0, got -0.001"),
        ({"tol": math.nan}, "tol must be at least 0, got nan"),
        ({"x0": torch.zeros(2, 1, 5, 6)}, "x0 must have measurements of the shape of y"),
        ({"x0": torch.zeros(3, 1, 6, 6)}, "x0 must hold 2 samples as y does"),
        ({"x0": torch.full((2, 1, 6, 6), math.inf)}, r"x0 must be finite, got .* in samples \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solver(torch.zeros(2, 1, 6, 6), PHYSICS["circular"], CONVEX, **options)


@SOLVERS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": 2.5}, "max_iter must be an integer, got 2.5"),
        ({"x0": torch.zeros(2, 1, 6, 6, dtype=torch.float64)}, "x0 must be torch.float32 on cpu as y is"),
        ({"x0": [0.0]}, "x0 must be a tensor, got list"),
    ],
)
def test_values_of_the_wrong_kind_are_named(solver, options, message):
    with pytest.raises(TypeError, match=message):
        solver(torch.zeros(2, 1, 6, 6), PHYSICS["circular"], CONVEX, **options)


@pytest.mark.parametrize("bad", [-0.1, 0.0, math.nan, math.inf])
def test_a_step_size_and_a_penalty_are_positive(bad):
    y = torch.zeros(2, 1, 6, 6)
    with pytest.raises(ValueError, match=f"step_size must be positive, got {bad}"):
        pgd(y, PHYSICS["circular"], CONVEX, step_size=bad)
    with pytest.raises(ValueError, match=f"rho must be positive, got {bad}"):
        admm(y, PHYSICS["circular"], CONVEX, rho=bad)
    with pytest.raises(ValueError, match=r"rho must be one number for the whole batch, got shape \(2,\)"):
        admm(y, PHYSICS["circular"], CONVEX, rho=torch.ones(2))


@SOLVERS
def test_measurements_out_of_contract_are_named(solver):
    physics, y = PHYSICS["circular"], torch.zeros(3, 1, 6, 6)
    y[1, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match=r"y must be finite, got NaN or infinite values in samples \[1\]"):
        solver(y, physics, CONVEX)
    with pytest.raises(ValueError, match=r"y must have shape \(N, ...\) with at least one sample"):
        solver(y[:0], physics, CONVEX)
    with pytest.raises(TypeError, match="y must be float32 or float64, got torch.float16"):
        solver(y.half(), physics, CONVEX)
    with pytest.raises(TypeError, match="physics must have a method A, got str"):
        solver(y, "blur", CONVEX)
