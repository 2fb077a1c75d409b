"""deepinv: its own denoiser matrix, its optimizers with our prior unmodified, operators both ways."""

import warnings

import pytest
import torch
from deepinv_cases import SIGMA, deepinv, images, network, problem

import lpn_fast as lf
from lpn_fast.interop.deepinv import LPNDenoiser, LPNPrior, from_deepinv_physics, to_deepinv_physics

L2 = deepinv.optim.L2
STRENGTHS = (1.0, 0.5, 0.2, 0.05)


@pytest.fixture(scope="module")
def conditional():
    return network(sigma_conditional=True)


# ---- the matrix of deepinv's tests/test_models.py for denoisers


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (15, 17), (1, 9)])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("kind", ["float", "0-d", "per image", "column", "list", "none"])
@pytest.mark.parametrize("of", ["gray", "own"])
def test_denoisers_keep_the_shape_for_every_kind_of_sigma(conditional, channels, size, batch, kind, of):
    model = conditional if of == "gray" else network(channels, sigma_conditional=True)
    denoiser = LPNDenoiser(model)
    levels = torch.linspace(0.03, 0.1, batch)
    sigma = {
        "float": 0.05,
        "0-d": torch.tensor(0.05),
        "per image": levels,
        "column": levels.view(-1, 1, 1, 1),
        "list": levels.tolist(),
        "none": None,
    }[kind]
    x = images(batch, channels, size)
    out = denoiser(x, sigma)
    assert out.shape == x.shape and bool(out.isfinite().all())
    planes = x.flatten(0, 1)[:, None] if of == "gray" else x
    if kind in ("per image", "column", "list"):
        want = model(planes, levels.repeat_interleave(len(planes) // batch)).view(x.shape)
    else:
        want = model(planes, denoiser.sigma if sigma is None else 0.05).view(x.shape)
    assert torch.allclose(out, want, atol=1e-6)


def test_networks_of_one_level_take_any_sigma_and_give_one_answer():
    denoiser, x = LPNDenoiser(network()), images(2)
    assert torch.equal(denoiser(x, 0.1), denoiser(x))
    with pytest.raises(ValueError, match="sigma must be None"):
        LPNDenoiser(network(), sigma=0.1)
    with pytest.raises(ValueError, match="convolutional, of images, got a dense one"):
        LPNDenoiser(lf.MLPLPN(3))
    with pytest.raises(ValueError, match="of images, got one of volumes"):
        LPNDenoiser(lf.ConvLPN(1, hidden=2, strides=(1,), ndim=3))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        LPNDenoiser(network(3))(x)


def test_the_denoiser_is_trained_by_their_loss_and_its_input_left_alone(conditional):
    denoiser, x = LPNDenoiser(network(sigma_conditional=True).requires_grad_(True)), images(2)
    loss = deepinv.loss.SupLoss()(x, denoiser(x, SIGMA)).mean()
    loss.backward()
    assert not x.requires_grad and all(p.grad is not None for p in denoiser.network.parameters())
    assert isinstance(deepinv.models.ArtifactRemoval(denoiser), deepinv.models.Reconstructor)


# ---- the prior


@pytest.mark.parametrize("channels", [1, 3])
def test_value_and_gradient_are_free_after_a_prox_and_equal_those_of_inversion(conditional, channels):
    prior, x = LPNPrior(conditional, sigma=SIGMA), images(3, channels)
    out = prior.prox(x, gamma=0.4)
    value, gradient = prior(out), prior.grad(out)
    prior._last = None
    assert torch.allclose(prior(out), value, rtol=1e-4, atol=1e-5)
    assert torch.allclose(prior.grad(out), gradient, atol=2e-3)
    assert value.shape == (3,) and value.dtype == torch.float64


def test_the_cache_is_for_one_point_and_one_level_only(conditional):
    prior, x = LPNPrior(conditional), images(2)
    out = prior.prox(x, 0.05)
    assert prior._known(out.clone(), 0.05) is not None
    assert prior._known(out, 0.06) is None
    assert prior._known(out + 1e-6, 0.05) is None
    kept = prior(out, 0.05)
    out.add_(1)  # the optimizer owns what it was given
    assert torch.equal(prior._last.value, kept) and prior._known(out, 0.05) is None


def test_prox_minimises_its_definition(conditional):
    """Nothing near the prox has a lower 1/2 |x - z|^2 + gamma R(x); all points are images of f, where R is known."""
    prior, z, gamma = LPNPrior(conditional, sigma=SIGMA), images(1).double(), 0.3
    prior.denoiser.double()
    out = prior.prox(z, gamma=gamma)
    best = 0.5 * (out - z).square().sum() + gamma * prior(out).sum()
    u = prior._last.preimage
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        other = prior.prox(u + 0.1 * torch.randn(u.shape, generator=generator, dtype=u.dtype))
        assert 0.5 * (other - z).square().sum() + gamma * prior(other).sum() >= best - 1e-9
    prior.denoiser.float()


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.5, torch.tensor([0.5, 2.0])])
def test_strengths_outside_the_theory_are_refused(conditional, gamma):
    with pytest.raises(ValueError, match=r"lambda_reg \* stepsize must be in \(0, 1\]"):
        LPNPrior(conditional).prox(images(2), gamma=gamma)


def test_strengths_may_differ_between_images(conditional):
    prior, x = LPNPrior(conditional), images(2, 3)
    both = prior.prox(x, gamma=torch.tensor([0.2, 0.8]).view(-1, 1, 1, 1))
    for i, gamma in enumerate((0.2, 0.8)):
        assert torch.allclose(both[i : i + 1], prior.prox(x[i : i + 1], gamma=gamma), atol=1e-5)


# ---- their optimizers, unmodified; what falls in every iteration: test_interop_deepinv_costs.py


def costs(optimizer, y, physics, init=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # R of the start is known from below only
        x, metrics = optimizer(y, physics, init=init, compute_metrics=True)
    assert bool(x.isfinite().all())
    return metrics["cost"]  # per image


@pytest.mark.parametrize("strength", [1.0, 0.2])
@pytest.mark.parametrize("name", ["PGD", "FISTA", "HQS", "ADMM", "DRS"])
def test_their_optimizers_run_unmodified_and_settle(conditional, name, strength):
    physics, y = problem()
    prior = LPNPrior(conditional, sigma=SIGMA)
    stepsize = 0.9
    options = {"stepsize": stepsize, "lambda_reg": strength / stepsize, "max_iter": 30}
    optimizer = getattr(deepinv.optim, name)(L2(), prior, **options)
    start = prior.prox(physics.A_adjoint(y))
    for history in costs(optimizer, y, physics, init=(start, start.clone())):
        slack = 1e-5 * abs(history[0])
        assert abs(history[-1] - history[-2]) <= 1e-2 * abs(history[1] - history[-1]) + slack


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_cost_they_track_is_the_function_our_solver_minimises(conditional, strength):
    physics, y = problem()
    stepsize = 0.9
    optimizer = deepinv.optim.PGD(
        L2(), LPNPrior(conditional, sigma=SIGMA), stepsize=stepsize, lambda_reg=strength / stepsize, max_iter=40
    )
    theirs = [history[-1] for history in costs(optimizer, y, physics)]
    ours = lf.solvers.pgd(
        y,
        from_deepinv_physics(physics),
        conditional,
        sigma=SIGMA,
        step_size=stepsize,
        strength=strength,
        max_iter=40,
        tol=0.0,
    )
    assert ours.objective[-1].tolist() == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("prior", ["PnP", "RED"])
def test_pnp_and_red_with_the_denoiser_run(conditional, prior):
    physics, y = problem()
    denoiser = LPNDenoiser(conditional)
    if prior == "PnP":
        optimizer = deepinv.optim.PGD(L2(), deepinv.optim.PnP(denoiser), stepsize=0.9, sigma_denoiser=SIGMA, max_iter=5)
    else:
        optimizer = deepinv.optim.GD(L2(), deepinv.optim.RED(denoiser), stepsize=0.5, sigma_denoiser=SIGMA, max_iter=5)
    x = optimizer(y, physics)
    assert x.shape == y.shape and bool(x.isfinite().all())


def test_an_unfolded_optimizer_is_trained_through_the_prior():
    model = network(sigma_conditional=True).requires_grad_(True)
    physics, y = problem()
    optimizer = deepinv.optim.PGD(
        L2(), LPNPrior(model, sigma=SIGMA), stepsize=0.9, lambda_reg=0.5, max_iter=2, unfold=True,
        trainable_params=["stepsize"], has_cost=False,
    )  # fmt: skip
    optimizer(y, physics).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


# ---- operators


def test_our_operators_pass_their_checks_and_give_the_same_data_prox():
    ours = lf.physics.Blur.gaussian(1.2)
    theirs = to_deepinv_physics(ours)
    x = images(2, size=(16, 16))
    y = theirs.A(x)
    assert float(theirs.adjointness_test(x)) == pytest.approx(0.0, abs=1e-4)
    assert float(theirs.compute_sqnorm(x[:1])) == pytest.approx(ours.norm() ** 2)
    z, generic = torch.zeros_like(x), deepinv.physics.LinearPhysics(A=ours.A, A_adjoint=ours.A_adjoint)
    wanted = generic.prox_l2(z, y, gamma=2.0, max_iter=200, tol=1e-7)
    assert torch.allclose(theirs.prox_l2(z, y, gamma=2.0), wanted, atol=1e-4)
    assert from_deepinv_physics(theirs) is ours
    with pytest.raises(TypeError, match="A_adjoint"):
        to_deepinv_physics(type("Half", (), {"A": len})())


def test_their_operators_run_in_our_solvers(conditional):
    physics, y = problem()
    ours = from_deepinv_physics(physics)
    for solver in (lf.solvers.pgd, lf.solvers.admm):
        result = solver(y, ours, conditional, sigma=SIGMA, max_iter=20)
        size = 0.5 * result.x.flatten(1).square().sum(1)  # size of the terms of R, in float32
        assert bool((result.objective.diff(dim=0)[1:] <= 1e-6 * size).all())
    gamma = torch.tensor([0.5, 2.0])
    both = ours.prox_l2(y, y, gamma)
    assert torch.allclose(both[1:], ours.prox_l2(y[1:], y[1:], 2.0), atol=1e-5)
    with pytest.raises(TypeError, match="LinearPhysics"):
        from_deepinv_physics(deepinv.physics.Physics())


OUR_NOISE = [
    lf.physics.GaussianNoise(0.1),
    lf.physics.PoissonNoise(0.02),
    lf.physics.PoissonNoise(0.02, 0.05),
    lf.physics.GaussianNoise(torch.tensor([0.1, 0.2])),
]


@pytest.mark.parametrize("noise", OUR_NOISE, ids=repr)
def test_noise_goes_along_both_ways(noise):
    """Of the same strength when deepinv draws it, and known to our solvers again."""
    ours = lf.physics.Denoising().with_noise(noise)
    theirs = to_deepinv_physics(ours)
    x = torch.full((2, 1, 200, 200), 0.5)
    drawn = (theirs(x) - x).flatten(1).std(dim=1).double()
    assert torch.allclose(drawn, noise.level(x), rtol=0.03)
    kernel = torch.ones(1, 1, 1, 1)
    back = from_deepinv_physics(deepinv.physics.BlurFFT((1, 8, 8), filter=kernel, noise_model=theirs.noise_model))
    y = x[..., :8, :8]
    assert torch.allclose(back.noise.level(y), noise.level(y))
    assert torch.allclose(back.A(y), y, atol=1e-6)


def test_noise_that_we_have_no_model_of_stays_behind():
    theirs = deepinv.physics.Denoising(deepinv.physics.UniformNoise(0.1))
    assert not hasattr(from_deepinv_physics(theirs), "noise")
    assert not hasattr(from_deepinv_physics(deepinv.physics.Denoising(deepinv.physics.ZeroNoise())), "noise")


def test_level_zero_is_the_identity():
    denoiser = LPNDenoiser(network(sigma_conditional=True))
    x = images(3)
    assert torch.equal(denoiser(x, sigma=0), x)
    mixed = denoiser(x, sigma=torch.tensor([0.0, 0.05, 0.0]))
    assert torch.equal(mixed[::2], x[::2]) and torch.equal(mixed[1:2], denoiser(x[1:2], sigma=0.05))
