"""Explicit priors: the certificate, the exact prox and its bound, derivatives, and every size of image."""

import pytest
import torch
import torch.nn.functional as F
from cases import on_threads

import lpn_fast as lf
from lpn_fast.interop.feed_forward import FeedForward
from lpn_fast.networks.explicit import TOL
from lpn_fast.ops.explicit import Patches, cpu, potentials
from lpn_fast.ops.explicit.coarse import Tilings, means, means_adjoint
from lpn_fast.per_sample import norm

SIGMA = torch.tensor([0.04, 0.1, 0.3], dtype=torch.float64)


def drawn(channels=1, k=4, groups=9, spread=1.0, seed=0, **options) -> lf.ExplicitLPN:
    """A prior in float64 with every parameter drawn, two knots."""
    torch.manual_seed(seed)
    options = {"coarse_kernel": 2, "coarse_groups": 4} | options
    model = lf.ExplicitLPN(channels, k, groups, sigma_conditional=(0.05, 0.2), **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.project_()


def images(*shape, seed=1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("height", "width", "k"), [(9, 8, 4), (3, 5, 4), (1, 1, 2), (1, 2, 5), (2, 20, 7), (31, 6, 7), (5, 4, 1)]
)
def test_patches_are_a_tight_frame_up_to_the_borders(height, width, k):
    patches, x = Patches((height, width), k, SIGMA), images(2, 3, height, width)
    extended = patches.extended(x)
    squares = sum(
        (patches.gather(extended, block).square() * patches.weights_of(block)).sum((1, 2)) for block in patches.blocks()
    )
    exact, seen = k**2 * norm(x) ** 2, squares
    if min(height, width) >= k - 1:
        assert torch.allclose(seen, exact, rtol=1e-13)
    assert bool((seen <= exact * (1 + 1e-13)).all())


@pytest.mark.parametrize(("height", "width", "k"), [(9, 8, 4), (14, 21, 7), (7, 7, 7), (5, 30, 2)])
def test_tilings_of_patch_means_are_what_the_constant_atoms_leave(height, width, k):
    x = images(2, 3, height, width)
    z = means(x, k)
    tilings = Tilings(z.shape[2:], k)
    parts = list(tilings.split(z))
    assert torch.equal(tilings.joined(parts, z), z)
    blocks = F.unfold(x.flatten(0, 1)[:, None], k).sum(1).square().sum(1).view(2, 3).sum(1) / k**2
    assert torch.allclose(sum(p.square().flatten(1).sum(1).view(2, -1).sum(1) for p in parts), blocks)
    adjoint = means_adjoint(torch.ones_like(z), k)
    assert torch.allclose((adjoint * x).sum(), (means(x, k)).sum())


@pytest.mark.parametrize("part", ["fine", "coarse"])
def test_both_levels_take_part(part):
    model, x = drawn(), images(1, 1, 12, 12)
    with torch.no_grad():
        before = model.prior(x, 0.1)
        (model.far if part == "fine" else model.coarse_far).add_(1.0)
        assert float((model.prior(x, 0.1) - before).abs()) > 1e-6 * float(before)


def dense_hessian(model: lf.ExplicitLPN, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The Hessian of R at one image by products with all unit vectors, [entries, entries]."""
    units = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    return model.hessian_product(x.expand_as(units), units, sigma).flatten(1)


@pytest.mark.parametrize("spread", [0.3, 3.0, 10.0])
@pytest.mark.parametrize("sigma", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 7, 9), (3, 4, 5), (1, 2, 9)])
def test_no_direction_has_a_curvature_below_minus_mu(channels, height, width, sigma, spread):
    model = drawn(channels, k=3, spread=spread, seed=channels + height)
    for scale in (0.03, 1.0, 30.0):
        hessian = dense_hessian(model, scale * images(1, channels, height, width), sigma)
        assert torch.allclose(hessian, hessian.T, atol=1e-10 * hessian.abs().max())
        values = torch.linalg.eigvalsh(hessian)
        assert values[0] >= -model.spec.concavity - 1e-12
        assert values[-1] <= 1 / model.alpha - 1 + 1e-9


def test_the_certificate_is_not_met_by_slack():
    """An adversary: one group of one atom per coefficient, all of the concavity, an image past its bend."""
    model = lf.ExplicitLPN(1, 2, groups=3, bend=1e6, sigma_conditional=(0.1,)).double()
    with torch.no_grad():
        model.shares.fill_(-30.0)
        model.shares[0, torch.arange(3), torch.arange(3)] = 30.0
        model.far.fill_(8.0)
        model.bends.fill_(30.0)
        model.tails.fill_(-30.0)
    lowest = float("inf")
    for scale in (1.0, 10.0):
        hessian = dense_hessian(model, scale * images(1, 1, 14, 13), 0.1)
        lowest = min(lowest, float(torch.linalg.eigvalsh(hessian)[0]))
    assert -model.spec.concavity - 1e-12 <= lowest < -0.9


def test_atoms_that_are_not_orthonormal_are_projected_and_refused_in_files(tmp_path):
    model = drawn()
    with torch.no_grad():
        model.atoms.mul_(1.1)
    assert model.skewness() > 0.2
    with pytest.raises(ValueError, match="atoms must be orthonormal"):
        lf.load(lf.save(model, tmp_path / "skew.safetensors"))
    assert model.project_().skewness() < 1e-12


def test_r_is_not_negative_zero_on_constants_and_at_least_linear_in_its_tails():
    model, x = drawn(), images(3, 1, 9, 7)
    assert bool((model.prior(x, SIGMA) > 0).all())
    assert model.prior(torch.full_like(x, 0.7), SIGMA).abs().max() < 1e-12
    far, farther = model.prior(1e4 * x, SIGMA), model.prior(2e4 * x, SIGMA)
    assert bool((farther > far).all())


@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (3, 2, 3, 2), (3, 1, 1, 3)])
def test_gradient_is_that_of_r_and_both_differentiate_in_everything(shape):
    model = drawn(shape[1], k=2, groups=3)
    x, parameters = images(*shape).requires_grad_(), list(model.parameters())
    (by_autograd,) = torch.autograd.grad(model.prior(x, SIGMA).sum(), x)
    value, gradient = model.prior_and_grad(x, SIGMA)
    assert torch.allclose(by_autograd, gradient, rtol=1e-12, atol=1e-14)
    assert torch.allclose(value, model.prior(x, SIGMA), rtol=1e-13)
    assert torch.autograd.gradcheck(lambda x, *_: model.prior(x, SIGMA), (x, *parameters), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x, *_: model.grad_prior(x, SIGMA), (x, *parameters), fast_mode=True)


def test_prox_differentiates_in_image_strength_and_parameters():
    model = drawn(1, k=2, groups=3)
    z, strength = images(3, 1, 4, 3).requires_grad_(), torch.tensor([1.0, 0.4, 0.9]).double().requires_grad_()
    inputs = (z, strength, *model.parameters())
    assert torch.autograd.gradcheck(lambda z, t, *_: model.prox(z, t, SIGMA), inputs, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_error_bound_covers_the_distance_to_the_exact_prox(tol):
    model, y = drawn(), images(3, 1, 13, 11)
    exact = model(y, SIGMA, tol=1e-13)
    assert bool((model.error_bound(exact, y, SIGMA) < 1e-9).all())
    x = model(y, SIGMA, tol=tol)
    distance, bound = norm(x - exact), model.error_bound(x, y, SIGMA)
    assert bool((distance <= bound + 1e-9).all()) and bool((distance > 0).all())


def test_preimage_inverts_the_prox():
    model, x = drawn(), images(3, 1, 9, 12)
    assert torch.allclose(model(model.preimage(x, SIGMA), SIGMA), x, atol=1e-9)


def test_no_other_image_is_better():
    model, y = drawn(), images(3, 1, 8, 9)
    x, value = model.prox_and_prior(y, 0.7, SIGMA)
    objective = 0.5 * norm(x - y) ** 2 + 0.7 * value
    for scale in (1e-4, 1e-2, 1.0):
        other = x + scale * torch.randn_like(x)
        assert bool((objective <= 0.5 * norm(other - y) ** 2 + 0.7 * model.prior(other, SIGMA)).all())


def test_hessian_products_and_jacobian_are_inverse():
    model, y, v = drawn(), images(3, 1, 7, 6), images(3, 1, 7, 6, seed=5)
    q = model.hvp(y, v, SIGMA)
    assert torch.allclose(q + model.hessian_product(model(y, SIGMA), q, SIGMA), v, atol=1e-9)


def test_start_changes_the_work_and_not_the_result():
    model, y = drawn(), images(3, 1, 9, 9)
    x = model(y, SIGMA)
    assert torch.allclose(model(y, SIGMA, start=x + 0.01), x, atol=1e-9)


def test_each_image_comes_out_as_it_does_alone():
    model, y = drawn(2), images(3, 2, 9, 8)
    together = model(y, SIGMA)
    alone = torch.cat([model(y[n : n + 1], SIGMA[n : n + 1]) for n in range(3)])
    assert torch.allclose(together, alone, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 17), (1, 3, 40, 33), (0, 1, 8, 8)])
def test_float32_reaches_its_tolerance_at_every_size(shape):
    model = drawn(shape[1], k=5, groups=11).float()
    y = images(*shape).float()
    x = model(y, 0.1)
    assert x.shape == y.shape
    residual = norm(model.preimage(x, 0.1) - y)
    assert bool((residual <= 2 * TOL[torch.float32] * norm(y)).all())


@pytest.mark.skipif(cpu._cpu is None, reason="the compiled module is not built")
@pytest.mark.parametrize("shape", [(2, 1, 64, 50), (3, 1, 3, 19), (3, 3, 21, 30), (1, 2, 90, 7)])
@pytest.mark.parametrize("k", [2, 5, 7])
def test_kernel_agrees_with_the_torch_path_in_float64(shape, k):
    model = drawn(shape[1], k, groups=13, spread=0.5)
    sigma = SIGMA[: len(shape)][: shape[0]]
    x, v = images(*shape), images(*shape, seed=3)
    exact = (*model.prior_and_grad(x, sigma), model.hessian_product(x, v, sigma))
    model = model.float()
    fused = (*model.prior_and_grad(x.float(), sigma), model.hessian_product(x.float(), v.float(), sigma))
    for a, b in zip(fused, exact, strict=True):
        assert torch.linalg.vector_norm(a - b) <= 1e-5 * torch.linalg.vector_norm(b)


@pytest.mark.skipif(cpu._cpu is None, reason="the compiled module is not built")
def test_kernel_gives_the_same_bits_on_any_number_of_threads():
    model, x = drawn(k=7, groups=20).float(), images(2, 1, 70, 45).float()
    pot = model.potentials(torch.tensor([0.1]))
    results = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            results.append(potentials.value_and_gradient(pot, x / 0.1, 7))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1])


def test_blocks_of_positions_change_rounding_only(monkeypatch):
    model, x = drawn(), images(2, 1, 20, 15)
    whole = model.prior_and_grad(x, SIGMA[:2])
    monkeypatch.setattr("lpn_fast.algebra.patches.POSITIONS", 40)
    for a, b in zip(whole, model.prior_and_grad(x, SIGMA[:2]), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_a_file_gives_the_same_prior_back(tmp_path):
    model, x = drawn(2, concavity=0.9, bend=7.0), images(3, 2, 8, 9)
    model.card = {"sigma": [0.05, 0.2]}
    loaded = lf.load(lf.save(model, tmp_path / "prior.safetensors"))
    assert type(loaded) is lf.ExplicitLPN and loaded.spec == model.spec and loaded.card == model.card
    assert torch.equal(loaded(x, SIGMA), model(x, SIGMA))


def test_potentials_at_a_knot_are_those_of_the_knot():
    model = drawn()
    with torch.no_grad():
        pot = model.potentials(torch.tensor([0.05, 0.2, 0.01], dtype=torch.float64))
    assert torch.allclose(pot.far, model.far.exp()[[0, 1, 0]])
    assert float(pot.energies.sum(1).max()) <= model.spec.concavity
    assert pot.curvature().shape == (3, model.spec.atoms)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m(x), "sigma must be given"),
        (lambda m, x: m(x, -0.1), "sigma must be positive"),
        (lambda m, x: m(x[0], 0.1), "add a batch axis"),
        (lambda m, x: m.prox(x, 1.1, 0.1), "strength must be positive and below"),
        (lambda m, x: m.prox(x, 0.5, 0.1, start=x[:1]), "start must match"),
        (lambda m, x: lf.ExplicitLPN(1, concavity=1.0), "concavity must be in"),
        (lambda m, x: lf.ExplicitLPN(1, bend=1.0), "bend must be above 1"),
        (lambda m, x: lf.ExplicitLPN(1, groups=0), "groups must be at least 1"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn(), images(2, 1, 6, 6))


def test_preimages_and_values_are_one_pass_and_agree_with_the_inversion_of_the_prox():
    model, x = drawn(), images(3, 1, 9, 8)
    found = lf.invert(model, x, sigma=SIGMA)
    assert bool(found.converged.all()) and bool((found.iterations == 0).all())
    assert torch.allclose(model(found.preimage, SIGMA), x, atol=1e-9)
    result = lf.prior(model, x, sigma=SIGMA)
    psi = model.potential(found.preimage, SIGMA)
    dual = (found.preimage * x).flatten(1).sum(1) - 0.5 * norm(x) ** 2 - psi  # what the other families compute
    assert torch.allclose(result.value, dual, atol=1e-9)
    assert torch.equal(result.gradient, found.preimage - x)


def test_values_are_refined_in_double_precision_and_invalid_images_are_named():
    model, x = drawn().float(), images(2, 1, 9, 8).float()
    x[1, 0, 3, 3] = float("nan")
    result = lf.prior(model, x, sigma=0.1, dtype=torch.float64)
    assert result.value.dtype == result.preimage.dtype == torch.float64
    exact = drawn().float().double().prior(x[:1].double(), 0.1)
    assert torch.allclose(result.value[:1], exact, rtol=1e-12)
    assert result.converged.tolist() == [True, False] and bool(result.preimage[1].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_verify_holds(dtype):
    model = drawn(k=2, groups=3).to(dtype)
    report = lf.verify(model, images(1, 1, 5, 4).to(dtype), 0.1)
    assert report.all_hold, str(report)
    names = [p.name for p in report.properties]
    assert "certificate" in names and "lowest curvature" in names


def test_verify_finds_atoms_that_break_the_certificate():
    model = drawn(k=2, groups=3)
    with torch.no_grad():
        model.atoms.mul_(1.2)
    report = lf.verify(model, images(1, 1, 2, 2), 0.1)
    assert {"orthonormal atoms", "certificate"} <= {p.name for p in report.failed}


def test_training_lowers_the_loss_and_keeps_the_atoms_orthonormal():
    torch.manual_seed(0)
    model = lf.ExplicitLPN(1, 3, 6, sigma_conditional=(0.1,)).train()
    crops = lambda count, generator: torch.rand(count, 1, 1, 1, generator=generator).expand(count, 1, 12, 12)  # noqa: E731
    phases = [lf.training.Phase("log", 30, 4e-3)]
    trainer = lf.training.Trainer(model, crops, phases, sigma=0.1, batch_size=4, progress=False)
    losses = [float(trainer.advance()) for _ in range(30)]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2
    assert model.skewness() < 1e-5


def test_what_needs_one_pass_or_other_types_is_refused_by_name():
    model = drawn().float()
    for call in (lambda: lf.InTiles(model), lambda: FeedForward(model)):
        with pytest.raises(TypeError, match="f in one pass, got ExplicitLPN"):
            call()
    with pytest.raises(TypeError, match=r"must be float32 or float64 .* use model.float\(\)"):
        model.bfloat16()(images(1, 1, 6, 6).bfloat16(), 0.1)


def test_compiled_callers_leave_the_solve_as_it_is():
    model, x = drawn().float(), images(1, 1, 9, 8).float()
    compiled = torch.compile(lambda z: 2 * model(z, 0.1), backend="eager")
    assert torch.equal(compiled(x), 2 * model(x, 0.1))
