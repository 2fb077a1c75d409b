"""Solvers: descent, fixed points and solutions, on priors whose truth is known without a network."""

import pytest
import torch
from solver_cases import (
    CONVEX,
    NONCONVEX,
    PHYSICS,
    SIDE,
    SOLVERS,
    QuadraticPrior,
    follow,
    linear_solution,
    make_measurements,
    matrix_of,
)

import lpn_fast as lf
from lpn_fast.per_sample import dot
from lpn_fast.physics import Denoising
from lpn_fast.solvers import admm, drs, fista, hqs, pgd
from lpn_fast.solvers.alternating_directions import ORDERS, AlternatingDirections
from lpn_fast.solvers.automatic import Settings
from lpn_fast.solvers.douglas_rachford import DouglasRachford
from lpn_fast.solvers.driver import INVISIBLE
from lpn_fast.solvers.problem import checked_problem, half_square
from lpn_fast.solvers.prox import LearnedProx
from lpn_fast.solvers.proximal_gradient import ProximalGradient

EVERY_PHYSICS = pytest.mark.parametrize("physics", PHYSICS.values(), ids=PHYSICS)
MONOTONE = pytest.mark.parametrize("solver", [pgd, fista, hqs])
GRADIENT = pytest.mark.parametrize("solver", [pgd, fista])
MIXED = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)  # strengths of a batch of four

pytestmark = pytest.mark.usefixtures("one_thread")


def rises(objective):
    """The largest rise of any sample between two iterations, relative to its largest |F|."""
    return ((objective[1:] - objective[:-1]) / objective.abs().amax(dim=0)).max().item()


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


# ---------------------------------------------------------------- solutions: a linear system is the truth


@EVERY_PHYSICS
@pytest.mark.parametrize("name", ["pgd", "fista", "admm", "drs"])
def test_every_solver_reaches_the_solution_of_the_linear_system(name, physics):
    y, model = make_measurements(physics), QuadraticPrior(q=1.0)
    result = SOLVERS[name](y, physics, model, strength=MIXED, max_iter=2000, tol=1e-12)
    weight = (MIXED / result.settings.step_size * model.q).tolist()
    assert result.converged.all() and result.conditions.all_hold
    for n in range(4):
        expected = linear_solution(physics, y[n : n + 1], weight=weight[n], mean=model.mean)
        assert torch.allclose(result.x[n : n + 1], expected, atol=1e-9)


@EVERY_PHYSICS
@pytest.mark.parametrize("rho", [0.3, 5.0])
def test_hqs_reaches_the_joint_minimiser(physics, rho):
    """(A^T A + rho) x - rho z = A^T y,  (1 + t q) z - x = t q mean, as one linear system."""
    y, q, t, mean = make_measurements(physics), 0.4, 0.5, 0.3
    result = hqs(y, physics, QuadraticPrior(q, mean), rho=rho, strength=t, max_iter=2000, tol=1e-13)
    a, unit = matrix_of(physics), torch.eye(SIDE**2, dtype=torch.float64)
    system = torch.cat((torch.cat((a.T @ a + rho * unit, -rho * unit), 1), torch.cat((-unit, (1 + t * q) * unit), 1)))
    right = torch.cat((y.flatten(1) @ a, torch.full((4, SIDE**2), t * q * mean, dtype=torch.float64)), 1)
    z = torch.linalg.solve(system, right.T).T[:, SIDE**2 :]
    assert torch.allclose(result.x.flatten(1), z, atol=1e-9)


def test_per_sample_steps_solve_per_sample_problems():
    physics, model = PHYSICS["full"], QuadraticPrior(q=1.0)
    y, eta = make_measurements(physics), torch.tensor([0.2, 0.5, 0.7, 0.3], dtype=torch.float64)
    for solver, option in ((pgd, {"step_size": eta}), (fista, {"step_size": eta}), (drs, {"step_size": eta}), 
                           (admm, {"rho": 1 / eta})):  # fmt: skip
        result = solver(y, physics, model, strength=0.6, max_iter=3000, tol=1e-13, **option)
        for n in range(4):
            expected = linear_solution(physics, y[n : n + 1], weight=0.6 / eta[n].item() * model.q, mean=model.mean)
            assert torch.allclose(result.x[n : n + 1], expected, atol=1e-9)


def test_a_box_is_a_second_term():
    """Against projected gradient on the same quadratic, in which the box is active."""
    physics, model, rho, t = PHYSICS["full"], QuadraticPrior(q=0.5), 2.0, 0.6
    y = make_measurements(physics)
    result = admm(y, physics, model, rho=rho, strength=t, box=(0.25, 0.5), max_iter=2000, tol=1e-12)
    a, x = matrix_of(physics), torch.zeros(4, SIDE**2, dtype=torch.float64)
    for _ in range(1000):
        gradient = (x @ a.T - y.flatten(1)) @ a + t * rho * model.q * (x - model.mean)
        x = (x - 0.2 * gradient).clamp(0.25, 0.5)
    assert ((x == 0.25) | (x == 0.5)).double().mean() > 0.2
    assert torch.allclose(result.x.flatten(1), x, atol=1e-8)


@pytest.mark.parametrize("name", ["fista", "admm", "drs"])
def test_solvers_agree_with_pgd_on_a_convex_prior(name):
    """With rho = 1 / eta all minimise h + (t / eta) R, and all are inside their theorems."""
    physics = PHYSICS["full"]
    y, eta = make_measurements(physics, samples=2), 0.9 / physics.norm() ** 2
    options = {"strength": 0.9, "max_iter": 500, "tol": 1e-9, "strict": True}
    by_pgd = pgd(y, physics, CONVEX, step_size=eta, **options)
    other = SOLVERS[name](y, physics, CONVEX, **({"rho": 1 / eta} if name == "admm" else {"step_size": eta}), **options)
    assert by_pgd.converged.all() and other.converged.all()
    assert torch.allclose(by_pgd.x, other.x, atol=1e-6)
    assert torch.allclose(by_pgd.objective[-1], other.objective[-1], rtol=1e-8)


# ---------------------------------------------------------------- descent


@EVERY_PHYSICS
@pytest.mark.parametrize("strength", [1.0, 0.3, MIXED], ids=str)
def test_pgd_decreases_its_objective_sufficiently_on_a_nonconvex_prior(physics, strength):
    y = make_measurements(physics)
    eta, curvature = 0.9 / physics.norm() ** 2, physics.norm() ** 2
    result, path = follow(pgd, y, physics, NONCONVEX, step_size=eta, strength=strength, max_iter=60, tol=0.0)
    moved = 2 * half_square((path[1:] - path[:-1]).flatten(0, 1)).reshape(-1, len(y))  # ||x+ - x||^2
    promised = (1 / (2 * eta) - curvature / 2) * moved
    rounding = 1e-13 * result.objective.abs().max()
    assert result.conditions.all_hold
    assert (result.objective[1:] <= result.objective[:-1] - promised + rounding).all()


@MONOTONE
@pytest.mark.parametrize(
    ("dtype", "band"),
    # The rounding band, of |F| + 1/2 |x|^2: R(x) is a difference of terms of that size that carry the type's
    # rounding, 6e-8 or 1e-16, and the inner solves for t < 1 stop at 1e-6 or 1e-12 of the image.
    [(torch.float64, 1e-13), (torch.float32, 5e-7)],
    ids=["float64", "float32"],
)
def test_the_objective_of_every_sample_of_a_mixed_batch_falls_for_200_iterations(solver, dtype, band):
    """A network with its inner solves, strengths, noise levels, intensities and steps all different."""
    torch.manual_seed(3)
    model = lf.RidgeLPN(1, pairs=5, kernel=3, sigma_conditional=True).to(dtype).eval()
    physics = lf.physics.Blur.gaussian(1.0, boundary="full")
    x = torch.rand(4, 1, 8, 7, dtype=torch.float64) * torch.tensor([0.1, 1.0, 1.0, 5.0]).reshape(4, 1, 1, 1)
    y = physics.A(x)
    y = (y + 0.05 * torch.randn(y.shape, dtype=torch.float64)).to(dtype)
    steps = torch.tensor([0.99, 0.3, 0.9, 0.7])
    result = solver(
        y, physics, model, strength=torch.tensor([1.0, 0.8, 0.5, 0.9]), sigma=torch.tensor([0.03, 0.1, 0.05, 0.06]),
        max_iter=200, tol=0.0, strict=True, **({"rho": 1 / steps} if solver is hqs else {"step_size": steps}),
    )  # fmt: skip
    assert len(result.objective) == 200 or result.converged.all()  # in float32 some arrive at their fixed point
    assert (result.objective[-1] < result.objective[0]).all()
    scale = result.objective.abs().amax(0) + half_square(result.x.double())
    assert ((result.objective[1:] - result.objective[:-1]) <= band * scale).all()


def test_outside_the_theorem_the_objective_of_pgd_rises(monkeypatch):
    """So the tests above can fail: a step of 1.9 / ||A||^2 on the steep prior, were it not halved."""
    physics = PHYSICS["identity"]
    y = make_measurements(physics)
    monkeypatch.setattr(ProximalGradient, "with_safe_steps", lambda self, new, old: new)
    with pytest.warns(RuntimeWarning, match="outside its convergence theorem"):
        result = pgd(y, physics, NONCONVEX, step_size=2.5, max_iter=60, tol=0.0)
    assert rises(result.objective) > 1e-3


@pytest.mark.parametrize("solver", [pgd, fista])
def test_a_step_with_which_the_objective_rose_is_halved_and_its_condition_is_no(solver):
    """The operator says a norm that is a tenth of its own; nothing else could tell."""

    class Understated(Denoising):
        def norm(self):
            return 0.1

    physics = Understated()
    y = make_measurements(physics)
    with pytest.warns(RuntimeWarning, match="objective rose in 4 of 4 samples, step halved up to"):
        result = solver(y, physics, QuadraticPrior(q=0.1), max_iter=300, tol=0.0)
    assert not result.conditions["step size"].holds
    assert rises(result.objective) <= 1e-12
    expected = (y + result.settings.weight * 0.1 * 0.3) / (1 + result.settings.weight * 0.1)
    assert torch.allclose(result.x, expected, atol=1e-6)


def test_the_default_ends_when_what_is_left_to_come_is_small():
    """Against the limit, for contraction rates from 0.5 to 0.99, where one tolerance on a single change cannot do."""
    for q in (1.0, 0.1, 0.01):
        physics = PHYSICS["identity"]
        y = make_measurements(physics)
        options = {"step_size": 0.5 if q == 1.0 else q, "strength": 1.0}
        prior = QuadraticPrior(q=1e-3)
        limit = pgd(y, physics, prior, max_iter=20000, tol=1e-14, **options).x
        result = pgd(y, physics, prior, x0=torch.zeros_like(y), max_iter=5000, **options)
        assert result.converged.all()
        left = (result.x - limit).flatten(1).norm(dim=1) / limit.flatten(1).norm(dim=1)
        assert (left <= 1.1 * INVISIBLE).all() and (left >= 0.2 * INVISIBLE).any()


@MONOTONE
@EVERY_PHYSICS
def test_the_objective_falls_on_a_nonconvex_prior(solver, physics):
    result = solver(make_measurements(physics), physics, NONCONVEX, strength=0.5, max_iter=80, tol=0.0)
    assert rises(result.objective) <= 1e-13


@GRADIENT
def test_the_objective_is_the_data_term_plus_the_weighted_prior(solver):
    physics, model = PHYSICS["full"], QuadraticPrior()
    y = make_measurements(physics)
    result = solver(y, physics, model, step_size=0.4, strength=0.3, max_iter=7)
    prior = 0.5 * model.q * (result.x - model.mean).square().sum(dim=(1, 2, 3))
    expected = half_square(physics.A(result.x) - y) + 0.3 / 0.4 * prior
    assert torch.allclose(result.objective[-1], expected, rtol=1e-12)


# ---------------------------------------------------------------- acceleration and backtracking


def test_fista_needs_fewer_iterations_than_pgd_where_the_problem_is_ill_conditioned():
    physics, model = PHYSICS["circular"], QuadraticPrior(q=0.005)
    y = make_measurements(physics)
    plain, accelerated = (s(y, physics, model, max_iter=3000, tol=1e-8).iterations for s in (pgd, fista))
    assert (accelerated < 0.3 * plain).all()


def test_fista_discards_extrapolations_that_would_rise():
    """On an ill-conditioned quadratic the momentum overshoots; a sample that does so pays for a second prox."""
    physics, model = PHYSICS["circular"], QuadraticPrior(q=0.002)
    result = fista(make_measurements(physics), physics, model, max_iter=400, tol=0.0)
    assert model.samples_seen > result.iterations.sum()
    assert rises(result.objective) <= 1e-14


def test_backtracking_takes_longer_steps_to_the_same_solution():
    physics = PHYSICS["circular"]
    y, runs = make_measurements(physics), []
    for backtracking in (False, True):
        model = QuadraticPrior(q=0.4)
        strength = torch.tensor([0.08, 0.1, 0.15, 0.2], dtype=torch.float64)
        result = pgd(y, physics, model, strength=strength, backtracking=backtracking, max_iter=1000, tol=1e-7)
        runs.append((result, model.samples_seen))
    (fixed, proxes), (adaptive, adaptive_proxes) = runs
    assert rises(adaptive.objective) <= 1e-13 and adaptive.conditions.all_hold
    assert (adaptive.iterations < 0.6 * fixed.iterations).all() and adaptive_proxes < 0.7 * proxes
    assert torch.allclose(adaptive.x, fixed.x, atol=1e-4)


def test_backtracking_on_a_nonconvex_prior_falls_and_leaves_the_companions_alone():
    physics = PHYSICS["full"]
    y = make_measurements(physics)
    options = {"backtracking": True, "max_iter": 15, "tol": 0.0}
    together = pgd(y, physics, NONCONVEX, strength=MIXED / 4, **options)
    assert rises(together.objective) <= 1e-13
    for n in range(4):
        alone = pgd(y[n : n + 1], physics, NONCONVEX, strength=MIXED[n].item() / 4, **options)
        assert torch.allclose(alone.objective[:, 0], together.objective[:, n], rtol=1e-11)


def test_backtracking_mends_a_step_that_is_too_long():
    physics, model = PHYSICS["identity"], QuadraticPrior(q=1.0)
    y = make_measurements(physics)
    result = pgd(y, physics, model, step_size=8.0, strength=0.8, backtracking=True, max_iter=500, tol=1e-12)
    assert rises(result.objective) <= 1e-13 and result.conditions.all_hold
    assert torch.allclose(result.x, linear_solution(physics, y, weight=0.1, mean=model.mean), atol=1e-9)


# ---------------------------------------------------------------- ADMM and Douglas-Rachford


def posed(y, physics, strength=1.0, step_size=1.0):
    return checked_problem(y, physics), Settings(step_size, strength, None, None, "unknown", "given")


@EVERY_PHYSICS
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("relaxation", [None, 0.7, 1.6], ids=["admm", "drs 0.7", "drs 1.6"])
def test_the_envelope_falls_on_a_nonconvex_prior(physics, strength, relaxation):
    """D = h(x) + <grad h(x), z - x> + 1/(2 gamma) ||z - x||^2 + (t / gamma) R(z) falls for gamma < 1 / ||A||^2."""
    y, gamma = make_measurements(physics), 0.95 / physics.norm() ** 2
    problem, settings = posed(y, physics, strength, gamma)
    prox = LearnedProx.of(NONCONVEX)
    method = AlternatingDirections(prox) if relaxation is None else DouglasRachford(prox, relaxation)
    state, envelopes = method.start(problem, settings), []
    for _ in range(60):
        state = method.step(state)
        x, z = state.data_image, state.image
        prior = state.objective - half_square(physics.A(z) - y)
        slope = dot(physics.A_adjoint(physics.A(x) - y), z - x)
        envelopes.append(half_square(physics.A(x) - y) + slope + half_square(z - x) / gamma + prior)
    envelopes = torch.stack(envelopes)  # (60, N)
    assert (envelopes[1:] <= envelopes[:-1] + 1e-11 * envelopes.abs().max()).all()
    assert (envelopes[-1] < envelopes[0]).all()


@pytest.mark.parametrize("solver", [admm, drs])
def test_inside_the_theorem_the_residual_of_a_network_falls_below_1e_5(solver):
    model = lf.pretrained("frame-gray")
    physics = lf.physics.Blur.gaussian(1.0, size="published")
    torch.manual_seed(0)
    y = physics.A(torch.rand(3, 1, 24, 24))
    y = y + 0.05 * torch.randn_like(y)
    result = solver(y, physics, model, noise=0.05, max_iter=400, tol=1e-5, strict=True)
    assert result.conditions.all_hold and result.converged.all()
    assert (result.residual[-1] <= 1e-5).all()


def test_admm_keeps_its_dual_at_the_gradient_of_the_data_term():
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    method = AlternatingDirections(LearnedProx.of(NONCONVEX))
    state = method.step(method.step(method.start(*posed(y, physics, step_size=1 / 1.5))))
    gradient = physics.A_adjoint(physics.A(state.data_image) - y)
    assert torch.allclose(-1.5 * state.dual, gradient, atol=1e-12)


def test_unrelaxed_douglas_rachford_is_admm_iterate_by_iterate():
    physics = PHYSICS["full"]
    y = make_measurements(physics)
    _, by_drs = follow(drs, y, physics, NONCONVEX, step_size=0.5, strength=0.6, max_iter=20)
    _, by_admm = follow(admm, y, physics, NONCONVEX, rho=2.0, strength=0.6, max_iter=20)
    assert torch.allclose(by_drs, by_admm, atol=1e-11)


def test_two_update_orders_are_one_cycle_and_the_third_is_another():
    physics = PHYSICS["full"]
    y = make_measurements(physics)
    x0 = physics.A_adjoint(y)
    options = {"rho": 2.0, "tol": 0.0}
    first_prox, _ = NONCONVEX.prox_and_prior(x0)
    _, prior_first = follow(admm, y, physics, NONCONVEX, x0=x0, order="prior-data-dual", max_iter=6, **options)
    _, dual_middle = follow(admm, y, physics, NONCONVEX, x0=first_prox, max_iter=5, **options)
    _, dual_last = follow(admm, y, physics, NONCONVEX, x0=x0, order="data-prior-dual", max_iter=5, **options)
    assert torch.allclose(prior_first[1:], dual_middle, atol=1e-11)
    assert not torch.allclose(dual_last, dual_middle, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_solves_a_convex_problem_and_returns_either_image(order):
    physics, model = PHYSICS["circular"], QuadraticPrior(q=1.0)
    y = make_measurements(physics)
    expected = linear_solution(physics, y, weight=2.0 * 1.0, mean=model.mean)
    for returned in ("prior", "data"):
        result = admm(y, physics, model, rho=2.0, order=order, returned=returned, max_iter=1000, tol=1e-12)
        assert torch.allclose(result.x, expected, atol=1e-9)
    early = [admm(y, physics, model, rho=2.0, order=order, returned=r, max_iter=2).x for r in ("prior", "data")]
    assert not torch.allclose(*early, atol=1e-3)
