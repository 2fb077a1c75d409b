"""The report of a run: each hypothesis with its numbers, and by how much a run is outside."""

import pytest
import torch
from solver_cases import CONVEX, PHYSICS, SOLVERS, QuadraticPrior, make_measurements

from lpn_fast.physics import Blur, CompressedSensing
from lpn_fast.solvers import Condition, Conditions, admm, drs, fista, hqs, pgd

EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.mark.parametrize("solver", [pgd, fista, drs])
def test_a_step_outside_the_theorem_is_flagged_with_its_factor(solver):
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    inside, outside = (solver(y, physics, CONVEX, step_size=s, max_iter=1).conditions for s in (0.99, 2.5))
    assert inside.all_hold and not outside.all_hold
    assert outside["matched adjoint"].holds and not outside["step size"].holds
    assert outside["step size"].factor == pytest.approx(2.5) and inside["step size"].factor is None
    assert "no (2.5x outside)" in str(outside)
    with pytest.raises(
        ValueError, match=r"is outside .* step size must satisfy .*, got 2.5, outside by a factor of 2.5"
    ):
        solver(y, physics, CONVEX, step_size=2.5, strict=True)


@pytest.mark.parametrize("rho, factor", [(0.1, 10.0), (1 / 70, 70.0)])
def test_the_published_penalties_are_flagged_with_their_factors(rho, factor):
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    conditions = admm(y, physics, CONVEX, rho=rho, max_iter=1).conditions
    assert [c.name for c in conditions if not c.holds] == ["penalty"]
    assert conditions["penalty"].factor == pytest.approx(factor)
    with pytest.raises(ValueError, match=rf"ADMM is outside .* penalty .* outside by a factor of {factor:.3g}"):
        admm(y, physics, CONVEX, rho=rho, strict=True)


@pytest.mark.parametrize("name", ["pgd", "fista", "drs", "admm"])
def test_the_sample_that_is_worst_off_decides(name):
    physics = PHYSICS["circular"]
    y, steps = make_measurements(physics), torch.tensor([0.5, 4.0, 0.9, 2.0])
    option = {"rho": 1 / steps} if name == "admm" else {"step_size": steps}
    conditions = SOLVERS[name](y, physics, CONVEX, max_iter=1, **option).conditions
    row = conditions["penalty" if name == "admm" else "step size"]
    assert row.factor == pytest.approx(4.0) and row.actual == ("0.25" if name == "admm" else "4")


class Doubled:
    """A = 2 I."""

    def A(self, x):
        return 2 * x

    A_adjoint = A

    def norm(self):
        return 2.0


@pytest.mark.parametrize("name", ["pgd", "fista", "drs", "admm"])
def test_the_limit_is_that_of_the_squared_norm(name):
    """With ||A|| = 2 a step of 0.4 is below 1 / ||A|| and 1.6 times above 1 / ||A||^2."""
    y = make_measurements(Doubled())
    for step, holds in ((0.2, True), (0.4, False)):
        option = {"rho": 1 / step} if name == "admm" else {"step_size": step}
        conditions = SOLVERS[name](y, Doubled(), CONVEX, max_iter=1, **option).conditions
        assert conditions.all_hold is holds
    assert conditions["penalty" if name == "admm" else "step size"].factor == pytest.approx(1.6)
    assert SOLVERS[name](y, Doubled(), CONVEX, max_iter=1, strict=True).conditions.all_hold


def test_no_penalty_of_half_quadratic_splitting_is_outside():
    physics = PHYSICS["circular"]
    for rho in (1e-3, 1e3):
        conditions = hqs(make_measurements(physics), physics, CONVEX, rho=rho, max_iter=1, strict=True).conditions
        assert conditions.all_hold and conditions["penalty"].actual == f"{rho:.4g}"


def test_a_network_without_strong_convexity_is_flagged():
    physics, model = PHYSICS["circular"], QuadraticPrior()
    model.alpha = 0.0
    y = make_measurements(physics)
    assert not admm(y, physics, model, max_iter=1).conditions["strong convexity"].holds
    with pytest.raises(ValueError, match="strong convexity must satisfy 0 < alpha < 1, got 0"):
        admm(y, physics, model, strict=True)


def test_what_the_published_code_adds_is_outside_the_statement():
    physics = PHYSICS["circular"]
    y, options = make_measurements(physics), {"rho": 2.0, "max_iter": 1}
    assert admm(y, physics, CONVEX, **options).conditions.all_hold
    assert admm(y, physics, CONVEX, order="prior-data-dual", **options).conditions.all_hold
    assert not admm(y, physics, CONVEX, order="data-prior-dual", **options).conditions["update order"].holds
    assert not admm(y, physics, CONVEX, box=(0.0, 1.0), **options).conditions["terms"].holds


def test_an_excessive_relaxation_is_flagged():
    physics = PHYSICS["circular"]
    y = make_measurements(physics)
    assert not drs(y, physics, CONVEX, relaxation=2.0, max_iter=1).conditions["relaxation"].holds
    with pytest.raises(ValueError, match="relaxation must satisfy 0 < lambda < 2, got 2.5"):
        drs(y, physics, CONVEX, relaxation=2.5, strict=True)


@EVERY_SOLVER
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


@EVERY_SOLVER
def test_an_operator_with_only_two_methods_is_accepted(solver):
    class Bare:
        def __init__(self, blur):
            self.A, self.A_adjoint = blur.A, blur.A_adjoint

    blur = PHYSICS["full"]
    y = make_measurements(blur)
    options = {"rho": 2.0} if solver in (admm, hqs) else {"step_size": 0.5}
    rich, bare = (solver(y, p, CONVEX, max_iter=300, tol=1e-8, **options) for p in (blur, Bare(blur)))
    assert torch.allclose(rich.x, bare.x, atol=1e-6)
    says = "(||A|| fails with probability 1e-06)" in str(bare.conditions)
    assert says is (solver is not hqs) and "probability" not in str(rich.conditions)


def test_a_norm_that_holds_but_for_a_probability_is_used_and_says_so():
    physics = CompressedSensing(16, 1 / 4)
    y = physics.A(torch.rand(2, 1, 16, 16, dtype=torch.float64))
    result = pgd(y, physics, QuadraticPrior(), max_iter=1, strict=True)
    assert result.settings.step_size == pytest.approx(0.95 / physics.probable_norm()[0] ** 2)
    assert result.settings.step_size > 1.5 * 0.95 / physics.norm() ** 2
    assert "(||A|| fails with probability 1e-09)" in str(result.conditions)
    proved = pgd(y, CompressedSensing(16, 1 / 4, flat=True), QuadraticPrior(), max_iter=1)
    assert "probability" not in str(proved.conditions)


def test_conditions_print_as_an_aligned_table():
    table = str(Conditions("PGD", (Condition("step size", "0 < eta < 1", "2", False, factor=2.0),)))
    assert table == "PGD        required     actual  holds\nstep size  0 < eta < 1  2       no (2x outside)"
    with pytest.raises(KeyError, match="no condition 'rho'; there are step size"):
        Conditions("PGD", (Condition("step size", "", "", True),))["rho"]
