"""Free filters of explicit priors: the certificate by their spectra, for images of any size, and what rests on it."""

import copy

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.patches import Patches
from lpn_fast.networks.explicit_filters import limit_, mirrored, peak


def drawn(channels=1, kernel=5, filters=12, groups=9, spread=0.3) -> lf.ExplicitLPN:
    torch.manual_seed(0)
    model = lf.ExplicitLPN(channels, kernel, groups, filters=filters).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * p.std().clamp(min=0.1) * torch.randn_like(p))
    return model.project_()


def images(*shape, seed=0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def energy_matrix(filters: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Of the quadratic form  1/k^2 sum_p w_p sum_j (h_j . patch_p(E x))^2,  by its columns."""
    channels, k = filters.shape[1:3]
    patches = Patches((height, width), k, filters)
    basis = torch.eye(channels * height * width, dtype=filters.dtype).view(-1, channels, height, width)
    whole = slice(0, height + k - 1)
    c = filters.flatten(1) @ patches.gather(patches.extended(basis), whole)  # [pixels, n, P]
    c = (c * (patches.weights.flatten() / k**2).sqrt()).flatten(1)
    return c @ c.T


@pytest.mark.parametrize(("channels", "k"), [(1, 5), (3, 3)])
@pytest.mark.parametrize("size", [(12, 9), (5, 5), (4, 7), (3, 2), (2, 6), (1, 1), (1, 8)])
def test_no_image_of_any_size_has_more_energy_than_the_spectra_say(channels, k, size):
    filters = mirrored(drawn(channels, k, filters=8 * channels).seeds.detach())
    largest = float(torch.linalg.eigvalsh(energy_matrix(filters, *size)).max())
    assert largest <= 1 + 1e-9


def test_filters_without_their_mirror_images_could_have_more():
    """What the certificate rests on: with seeds alone it does not hold at borders."""
    seed = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    seed[..., 0, 0] = 1.0  # it sees corners once inside and once more across the border
    seed /= peak(seed) ** 0.5
    assert float(torch.linalg.eigvalsh(energy_matrix(seed, 9, 9)).max()) > 1.4
    assert float(torch.linalg.eigvalsh(energy_matrix(mirrored(seed) / 2, 9, 9)).max()) <= 1 + 1e-9


def test_peak_bounds_the_spectrum_between_the_frequencies_of_its_grid():
    filters = mirrored(drawn(3, 3, filters=12).seeds.detach())
    frequencies = 6.3 * images(4000, 2)
    t = torch.arange(3, dtype=torch.float64)
    waves = torch.exp(-1j * (frequencies[:, :1, None] * t[:, None] + frequencies[:, 1:, None] * t))  # [F, k, k]
    transform = torch.einsum("jchw,fhw->fjc", filters.to(waves.dtype), waves) / 3
    largest = torch.linalg.eigvalsh(torch.einsum("fjc,fjd->fcd", transform, transform.conj())).max()
    assert 0.97 * peak(filters) < float(largest) <= peak(filters)


def test_an_orthonormal_basis_has_the_spectrum_one():
    basis = torch.linalg.qr(images(25, 25))[0].view(25, 1, 5, 5)
    assert 1 <= peak(basis) < 1.02


def test_spectra_stay_near_one_while_seeds_are_changed():
    torch.manual_seed(0)
    seeds = drawn(kernel=7, filters=48, spread=0.0).seeds.detach()
    for _ in range(20):
        seeds += 0.005 * torch.randn_like(seeds)
        limit_(seeds)
    assert peak(mirrored(seeds)) <= 1 and seeds.mean((-2, -1)).abs().max() < 1e-12
    spectrum = torch.fft.rfft2(mirrored(seeds), s=(40, 40)).abs().square().sum((0, 1)) / 49
    assert spectrum.median() > 0.93  # a bound alone leaves 0.81 of it


def test_limits_settle_whatever_the_scale():
    seeds = drawn(kernel=7, filters=48).seeds.detach()
    for _ in range(12):
        limit_(seeds)
    before = seeds.clone()
    limit_(seeds)
    assert (seeds - before).norm() < 0.003 * before.norm()
    limit_(seeds.mul_(3))
    assert (seeds - before).norm() < 0.006 * before.norm()


def test_frequencies_that_filters_leave_are_not_raised():
    """Raised to one, these seeds change by 15 %."""
    k, t = 9, torch.arange(9, dtype=torch.float64) + 0.5
    cosines = [torch.cos(torch.pi / k * i * t) for i in range(1, k)]  # no constant: no wave along one axis
    seeds = torch.stack([a[:, None] * b / (2 * a.norm() * b.norm()) for a in cosines for b in cosines])[:, None]
    before = seeds.clone()  # of four images each: S is one at most, and small along the axes
    limit_(seeds)
    assert (seeds - before).norm() < 0.02 * before.norm()


@pytest.mark.parametrize(("channels", "size"), [(1, (7, 9)), (3, (4, 6))])
def test_f_is_the_prox_and_its_bound_holds(channels, size):
    model, y = drawn(channels, 3, filters=8 * channels), images(2, channels, *size)
    f = model(y, 0.1)
    assert model.error_bound(f, y, 0.1).max() < 1e-9 and (model.preimage(f, 0.1) - y).norm() < 1e-9
    early = model(y, 0.1, tol=1e-2)
    assert (((early - f).flatten(1).norm(dim=1)) <= model.error_bound(early, y, 0.1)).all()
    n = y[0].numel()
    rows = [model.hessian_product(y[:1], v.view(1, *y.shape[1:]), 0.1).flatten() for v in torch.eye(n).double()]
    hessian = torch.stack(rows)
    assert (hessian - hessian.T).norm() < 1e-9 * hessian.norm()
    assert torch.linalg.eigvalsh(hessian).min() >= -model.spec.concavity


def test_gradients_reach_the_seeds():
    model, y = drawn(kernel=3, filters=8, groups=4), images(1, 1, 6, 5)

    def of_seeds(seeds):
        other = copy.deepcopy(model)
        del other._parameters["seeds"]
        other.seeds = seeds
        return other(y, 0.1, tol=1e-13)

    assert torch.autograd.gradcheck(of_seeds, model.seeds.detach().clone().requires_grad_(), atol=1e-5)


def test_kernels_take_any_number_of_filters():
    model, x = drawn(kernel=7, filters=20, groups=13).float(), images(2, 1, 33, 41).float()
    value, gradient = model.prior_and_grad(x, 0.1)
    product = model.hessian_product(x, x.flip(-1), 0.1)
    with lf.use_backend("torch"):
        other, wanted = model.prior_and_grad(x, 0.1)
        assert torch.allclose(product, model.hessian_product(x, x.flip(-1), 0.1), atol=1e-4)
    assert torch.allclose(gradient, wanted, atol=1e-5) and torch.allclose(value, other, rtol=1e-5)


def test_files_keep_filters_and_older_ones_have_none(tmp_path):
    model = drawn().float()
    lf.save(model, tmp_path / "free.safetensors")
    loaded = lf.load(tmp_path / "free.safetensors")
    assert loaded.spec == model.spec and torch.equal(loaded.seeds, model.seeds)
    older = {key: value for key, value in lf.ExplicitLPN(1, 3, 4).spec.to_dict().items() if key != "filters"}
    assert type(model.spec).from_dict(older).filters == 0
    assert "filters=12" in repr(model)


def test_verify_sees_filters_that_are_too_large():
    model, x = drawn(kernel=2, filters=4, groups=2), images(1, 1, 3, 2)
    report = lf.verify(model, x, 0.1)
    assert report.all_hold, str(report)
    with torch.no_grad():
        model.seeds.mul_(1.2)
    assert {"spectra of filters", "certificate"} <= {p.name for p in lf.verify(model, x, 0.1).failed}


@pytest.mark.parametrize(("given", "message"), [
    ({"filters": 6}, "multiple of 4"),
    ({"filters": -4}, "multiple of 4"),
    ({"filters": 8, "coarse_kernel": 3}, "coarse_kernel must be 0 with free filters"),
])  # fmt: skip
def test_wrong_filters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        lf.ExplicitLPN(1, 5, 4, **given)
