"""Gradient descent on h + w R without a prox: against linear systems, other solvers, and itself alone."""

import pytest
import torch
from solver_cases import PHYSICS, QuadraticPrior, follow, linear_solution, make_measurements

import lpn_fast as lf
from lpn_fast.per_sample import norm


class SmoothQuadratic(QuadraticPrior):
    def prior_and_grad(self, x, sigma=None):
        return self.q / 2 * norm(x - self.mean) ** 2, self.q * (x - self.mean)


def small_prior() -> lf.ExplicitLPN:
    torch.manual_seed(0)
    return lf.ExplicitLPN(1, 3, 6, sigma_conditional=(0.1,)).double()


@pytest.mark.parametrize("name", PHYSICS)
def test_a_quadratic_objective_is_minimised_as_its_linear_system_says(name):
    physics, prior = PHYSICS[name], SmoothQuadratic()
    y = make_measurements(physics)
    result = lf.solvers.gradient(y, physics, prior, step_size=0.8, strength=0.6, tol=1e-12, max_iter=3000)
    expected = linear_solution(physics, y, 0.6 / 0.8 * prior.q, prior.mean)
    assert bool(result.converged.all()) and torch.allclose(result.x, expected, atol=1e-8)


@pytest.mark.parametrize("name", PHYSICS)
def test_the_objective_never_rises_and_is_that_of_the_image(name):
    physics, prior = PHYSICS[name], small_prior()
    y = make_measurements(physics)
    result, path = follow(lf.solvers.gradient, y, physics, prior, sigma=0.1, step_size=0.9, max_iter=60, tol=0.0)
    assert bool((result.objective[1:] <= result.objective[:-1]).all())
    for k in (0, len(path) // 2, len(path) - 1):
        value = 0.5 * norm(physics.A(path[k]) - y) ** 2 + prior.prior(path[k], 0.1) / 0.9
        assert torch.allclose(result.objective[k], value, rtol=1e-10)


def test_rounding_ends_a_run_and_does_not_raise_the_objective():
    physics, prior = PHYSICS["circular"], small_prior().float()
    y = make_measurements(physics).float()
    result = lf.solvers.gradient(y, physics, prior, sigma=0.1, max_iter=400, tol=0.0)
    assert bool((result.objective[1:] <= result.objective[:-1]).all()) and bool(result.converged.all())


def test_an_objective_without_curvature_is_descended_by_safe_steps():
    """Along most of what an operator of one pixel misses, R is flat or concave: pairs are left out."""
    mask = torch.zeros(1, 8, 8, dtype=torch.float64)
    mask[0, 3, 4] = 1.0
    physics = lf.physics.Inpainting(mask)
    prior, x0 = small_prior(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    result = lf.solvers.gradient(torch.zeros_like(x0), physics, prior, sigma=0.1, x0=x0, max_iter=300, tol=1e-9)
    assert bool((result.objective[1:] <= result.objective[:-1]).all())
    assert bool((norm(prior.grad_prior(result.x, 0.1)) < 1e-3 * norm(prior.grad_prior(x0, 0.1))).all())


def test_it_finds_what_fista_finds():
    physics, prior = PHYSICS["circular"], small_prior()
    y = make_measurements(physics)
    options = {"sigma": 0.1, "step_size": 0.9, "tol": 1e-11, "max_iter": 5000}
    ours, theirs = (solver(y, physics, prior, **options) for solver in (lf.solvers.gradient, lf.solvers.fista))
    assert bool((norm(ours.x - theirs.x) <= 1e-6 * norm(theirs.x)).all())


def test_each_sample_comes_out_as_it_does_alone():
    physics, prior = PHYSICS["full"], small_prior()
    y = make_measurements(physics)
    together = lf.solvers.gradient(y, physics, prior, sigma=0.1, tol=1e-6)
    for n in range(len(y)):
        alone = lf.solvers.gradient(y[n : n + 1], physics, prior, sigma=0.1, tol=1e-6)
        assert torch.allclose(alone.x[0], together.x[n], atol=1e-9) and alone.iterations[0] == together.iterations[n]


def test_conditions_are_reported_and_priors_without_a_gradient_refused():
    physics = PHYSICS["identity"]
    y = make_measurements(physics)
    conditions = lf.solvers.gradient(y, physics, small_prior(), sigma=0.1, max_iter=1).conditions
    assert conditions.all_hold and [c.name for c in conditions] == ["smooth prior", "matched adjoint"]
    with pytest.raises(TypeError, match="model must have prior_and_grad"):
        lf.solvers.gradient(y, physics, QuadraticPrior())
