"""Solvers as batch jobs: samples on their own, stopping, NaN, callbacks, bad input."""

import dataclasses
import math

import pytest
import torch
from solver_cases import CONVEX, NONCONVEX, PHYSICS, SIDE, SOLVERS, Fragile, QuadraticPrior, make_measurements

import lpn_fast as lf
from lpn_fast.physics import Blur, Inpainting
from lpn_fast.solvers import Reconstruction, prox

EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)

pytestmark = pytest.mark.usefixtures("one_thread")


@EVERY_SOLVER
def test_a_result_does_not_depend_on_the_companions(solver):
    physics = PHYSICS["full"]
    y = make_measurements(physics, samples=5)
    y[3] *= 10
    strength = torch.tensor([1.0, 0.2, 0.5, 0.7, 0.1])
    together = solver(y, physics, NONCONVEX, strength=strength, max_iter=50, tol=1e-5)
    assert len(together.iterations.unique()) > 1
    for i in range(5):
        alone = solver(y[i : i + 1], physics, NONCONVEX, strength=strength[i].item(), max_iter=50, tol=1e-5)
        rows = len(alone.objective)
        assert alone.iterations.item() == together.iterations[i].item()
        assert torch.allclose(alone.x[0], together.x[i], rtol=1e-10)
        assert torch.allclose(alone.objective[:, 0], together.objective[:rows, i], rtol=1e-11)
        assert (together.objective[rows:, i] == together.objective[rows - 1, i]).all()


@EVERY_SOLVER
def test_a_network_reconstructs_a_batch_as_it_does_one_image(solver):
    """float32, the shipped network, automatic settings of every sample: the 1e-5 that users may rely on."""
    model, physics = lf.pretrained("frame-gray"), Blur.gaussian(1.2, boundary="full")
    torch.manual_seed(1)
    y = physics.A(torch.rand(3, 1, 16, 16))
    noise = torch.tensor([0.02, 0.005, 0.08])
    y = y + noise.reshape(3, 1, 1, 1) * torch.randn_like(y)
    together = solver(y, physics, model, noise=noise, max_iter=15, tol=0.0)
    for i in range(3):
        alone = solver(y[i : i + 1], physics, model, noise=noise[i].item(), max_iter=15, tol=0.0)
        assert torch.allclose(alone.x[0], together.x[i], atol=1e-5)


@EVERY_SOLVER
@pytest.mark.parametrize("kind", ["kernels", "masks"])
def test_samples_with_operators_of_their_own_may_all_stop_at_once(solver, kind):
    kernels = torch.rand(3, 5, 5)
    if kind == "kernels":
        physics = Blur(kernels / kernels.sum((1, 2), keepdim=True))
    else:
        physics = Inpainting(torch.rand(3, 1, SIDE, SIDE) < 0.7)
    y = physics.A(torch.rand(3, 1, SIDE, SIDE).double())
    result = solver(y, physics, NONCONVEX, max_iter=20, tol=1e9)
    assert result.converged.all() and len(result.iterations.unique()) == 1
    assert result.iterations[0] < 20


@EVERY_SOLVER
def test_samples_may_have_operators_of_their_own(solver):
    """An operator with `select` is cut with the batch."""

    class PerSample:
        def __init__(self, gains):
            self.gains = gains  # (N,)

        def A(self, x):
            assert len(x) == len(self.gains)
            return self.gains.reshape(-1, 1, 1, 1) * x

        A_adjoint = A

        def norm(self):
            return self.gains

        def select(self, samples):
            return PerSample(self.gains[samples])

    gains = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    y, model = make_measurements(PHYSICS["identity"], samples=3), QuadraticPrior(q=0.3)
    result = solver(y, PerSample(gains), model, x0=y, max_iter=400, tol=1e-10)  # the default start is scaled alike
    assert len(result.iterations.unique()) > 1 or solver is SOLVERS["hqs"]
    assert result.conditions.all_hold and result.converged.all()
    for i in range(3):
        alone = solver(y[i : i + 1], PerSample(gains[i : i + 1]), model, x0=y[i : i + 1], max_iter=400, tol=1e-10)
        assert torch.allclose(alone.x[0], result.x[i], rtol=1e-10)


@EVERY_SOLVER
def test_finished_samples_cost_nothing(solver):
    physics, model = PHYSICS["circular"], QuadraticPrior()
    y = make_measurements(physics)
    # The first sample starts at its solution.
    y[0] = physics.A(torch.full((1, 1, SIDE, SIDE), model.mean, dtype=torch.float64))
    result = solver(y, physics, model, max_iter=500, tol=1e-8)
    assert result.converged.all() and result.iterations[0] < result.iterations[1:].min()
    second_proxes = model.samples_seen - result.iterations.sum()  # those of rejected extrapolations
    assert second_proxes == 0 if solver is not SOLVERS["fista"] else 0 <= second_proxes <= result.iterations[1:].sum()
    assert len(result.objective) == len(result.residual) == result.iterations.max()
    assert (result.residual[-1] <= 1e-8).all()


@EVERY_SOLVER
def test_a_sample_that_becomes_nan_keeps_its_last_good_image(solver):
    physics = PHYSICS["circular"]
    y = make_measurements(physics, samples=3)
    y[1] += 3
    with pytest.warns(RuntimeWarning, match=r"samples \[1\] became NaN or infinite in iteration 3"):
        result = solver(y, physics, Fragile(), max_iter=500, tol=1e-7)
    two_steps = solver(y, physics, QuadraticPrior(), max_iter=2)
    healthy = solver(y, physics, QuadraticPrior(), max_iter=500, tol=1e-7)
    assert torch.equal(result.x[1], two_steps.x[1]) and result.iterations[1] == 2
    assert result.converged.tolist() == [True, False, True]
    assert result.broken.tolist() == [False, True, False] and not healthy.broken.any()
    assert (result.objective[1:, 1] == two_steps.objective[1, 1]).all()
    assert torch.allclose(result.x[0::2], healthy.x[0::2], rtol=1e-12)


@EVERY_SOLVER
def test_a_sample_broken_from_the_start_returns_the_start(solver):
    class Broken(QuadraticPrior):
        def prox_and_prior(self, z, strength=1.0, sigma=None):
            return torch.full_like(z, torch.nan), torch.zeros(len(z), dtype=torch.float64)

    y = make_measurements(PHYSICS["identity"], samples=2)
    with pytest.warns(RuntimeWarning, match="became NaN"):
        result = solver(y, PHYSICS["identity"], Broken())
    assert torch.equal(result.x, y) and not result.converged.any() and not result.iterations.any()
    assert result.broken.all() and result.objective.isnan().all() and result.objective.shape == (1, 2)


@EVERY_SOLVER
def test_float32_images_stay_float32_and_objectives_are_float64(solver):
    physics = PHYSICS["circular"]
    y = make_measurements(physics, dtype=torch.float32)
    result = solver(y, physics, QuadraticPrior(), strength=torch.tensor([0.1, 0.2, 0.3, 0.4]), max_iter=4)
    assert isinstance(result, Reconstruction)
    assert result.x.dtype == torch.float32 and result.x.shape == (4, 1, SIDE, SIDE)
    assert result.objective.dtype == torch.float64 and not result.x.requires_grad


@EVERY_SOLVER
def test_the_noise_level_reaches_the_model(solver):
    physics, model = PHYSICS["circular"], QuadraticPrior()
    y = make_measurements(physics)
    solver(y, physics, model, sigma=0.1, max_iter=2)
    assert set(model.sigmas_seen) == {0.1}
    solver(y, physics, model, sigma=torch.tensor([0.1, 0.2, 0.3, 0.4]), max_iter=1)
    assert model.sigmas_seen[-1].shape == (4,)


@EVERY_SOLVER
def test_the_preimage_starts_the_next_inner_solve(solver):
    class Warm(QuadraticPrior):
        def __init__(self):
            super().__init__()
            self.starts, self.preimages = [], []

        def prox_and_prior(self, z, strength=1.0, sigma=None, *, start=None, return_preimage=False):
            x, prior = super().prox_and_prior(z, strength, sigma)
            self.starts.append(start)
            self.preimages.append(x * (1 + self.q) - self.q * self.mean)  # f(u) = x
            return (x, prior, self.preimages[-1]) if return_preimage else (x, prior)

    physics, model = PHYSICS["circular"], Warm()
    warm = solver(make_measurements(physics), physics, model, strength=0.5, max_iter=4, tol=0.0)
    assert model.starts[0] is None
    assert all(torch.equal(s, u) for s, u in zip(model.starts[1:4], model.preimages, strict=False))
    cold = solver(make_measurements(physics), physics, QuadraticPrior(), strength=0.5, max_iter=4, tol=0.0)
    assert torch.equal(warm.x, cold.x)


@pytest.mark.parametrize("sigma", [0.05, torch.tensor([0.02, 0.05, 0.08, 0.1, 0.03])], ids=str)
def test_a_batch_evaluated_in_pieces_is_the_same_batch(sigma, monkeypatch):
    model, z = lf.FrameLPN(1, gates=((3, 1, 96),)).eval(), torch.rand(5, 1, 9, 10)
    assert prox.piece(lf.FrameLPN(1), z) == 5, "without activations in memory there is nothing to cut"
    whole = model.prox_and_prior(z, sigma=sigma)
    monkeypatch.setattr(prox, "CACHED_BYTES", 2 * 98 * 90 * 4)
    assert prox.piece(model, z) == 2
    with torch.no_grad():
        image, prior, _ = prox.LearnedProx.of(model)(z, 1.0, sigma, None)
    assert torch.allclose(image, whole[0], atol=1e-6) and torch.allclose(prior, whole[1], atol=1e-4)


def test_results_are_frozen():
    result = SOLVERS["pgd"](make_measurements(PHYSICS["identity"]), PHYSICS["identity"], CONVEX, max_iter=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.x = None


# ---------------------------------------------------------------- callback, progress


@EVERY_SOLVER
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
    y, pgd = make_measurements(PHYSICS["identity"]), SOLVERS["pgd"]
    pgd(y, PHYSICS["identity"], CONVEX, max_iter=2, progress=True)
    assert "pgd" in capsys.readouterr().err
    pgd(y, PHYSICS["identity"], CONVEX, max_iter=2)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- bad input


@EVERY_SOLVER
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength must be positive, got 0.0"),
        ({"strength": 1.5}, r"strength must lie in \(0, 1\], got 1.5"),
        ({"strength": torch.tensor([0.5, 2.0])}, r"strength must lie in \(0, 1\], got \[0.5, 2.0\]"),
        ({"strength": torch.ones(3)}, r"strength must be a number or have shape \(2,\), got \(3,\)"),
        ({"strength": math.nan}, "strength must be positive, got nan"),
        ({"strength": "best"}, "strength must be a number, a tensor or one of map, discrepancy, got 'best'"),
        ({"sigma": -0.1}, "sigma must be positive, got -0.1"),
        ({"noise": -0.1}, "noise must be positive, got -0.1"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"tol": -1e-3}, "tol must be at least 0, or None for the visible change, got -0.001"),
        ({"tol": math.nan}, "tol must be at least 0, or None for the visible change, got nan"),
        ({"x0": torch.zeros(2, 1, 5, 6)}, "x0 must have measurements of the shape of y"),
        ({"x0": torch.zeros(3, 1, 6, 6)}, "x0 must hold 2 samples as y does"),
        ({"x0": torch.full((2, 1, 6, 6), math.inf)}, r"x0 must be finite, got .* in samples \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solver(torch.zeros(2, 1, 6, 6), PHYSICS["circular"], CONVEX, **options)


@EVERY_SOLVER
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": 2.5}, "max_iter must be an integer, got 2.5"),
        ({"x0": torch.zeros(2, 1, 6, 6, dtype=torch.float64)}, "x0 must be torch.float32 on cpu as y is"),
        ({"x0": [0.0]}, "x0 must be a tensor, got list"),
        ({"sigma": "large"}, "sigma must be a number or a tensor, got 'large'"),
    ],
)
def test_values_of_the_wrong_kind_are_named(solver, options, message):
    with pytest.raises(TypeError, match=message):
        solver(torch.zeros(2, 1, 6, 6), PHYSICS["circular"], CONVEX, **options)


@pytest.mark.parametrize("bad", [-0.1, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_size_and_a_penalty_are_positive(name, bad):
    option = "rho" if name in ("admm", "hqs") else "step_size"
    y, solver = torch.zeros(2, 1, 6, 6), SOLVERS[name]
    with pytest.raises(ValueError, match=f"{option} must be positive, got {bad}"):
        solver(y, PHYSICS["circular"], CONVEX, **{option: bad})
    with pytest.raises(ValueError, match=rf"{option} must be a number or have shape \(2,\), got \(3,\)"):
        solver(y, PHYSICS["circular"], CONVEX, **{option: torch.ones(3)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("drs", {"relaxation": 0.0}, "relaxation must be positive, got 0.0"),
        ("admm", {"order": "132"}, "order must be one of data-dual-prior, .*, got '132'"),
        ("admm", {"returned": "z"}, "returned must be 'prior' or 'data', got 'z'"),
        ("admm", {"box": (1.0, 0.0)}, r"box must be \(least, largest\) intensity, got \(1.0, 0.0\)"),
    ],
)
def test_a_solvers_own_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        SOLVERS[name](torch.zeros(2, 1, 6, 6), PHYSICS["circular"], CONVEX, **options)


@EVERY_SOLVER
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


@EVERY_SOLVER
def test_measurements_of_another_operator_are_named(solver):
    class Halves:
        """Measures the upper half; its adjoint does not look at what it is given."""

        def A(self, x):
            return x[:, :, :3]

        def A_adjoint(self, y):
            return torch.zeros(len(y), 1, 6, 6)

    with pytest.raises(ValueError, match=r"y must have the shape that the operator measures, \(2, 1, 3, 6\), got"):
        solver(torch.zeros(2, 1, 4, 6), Halves(), CONVEX)
