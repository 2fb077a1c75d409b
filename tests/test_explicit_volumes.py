"""Explicit priors of volumes: the definition by loops, certificate, exact prox, files; and no axis is special."""

import itertools

import numpy as np
import pytest
import torch
from cases import relative
from test_explicit import SIGMA, drawn, images

import lpn_fast as lf
from lpn_fast.ops.explicit import Patches
from lpn_fast.ops.explicit.coarse import Tilings, means, means_adjoint
from lpn_fast.per_sample import norm


def volume_prior(channels=1, k=3, groups=5, **options) -> lf.ExplicitLPN:
    return drawn(channels, k, groups, ndim=3, **options)


def by_loops(pot, x: np.ndarray, k: int) -> float:
    """R of the fine level at one volume (C, D, H, W) with sides of at least k - 1, patch by patch."""
    atoms, energies = pot.atoms.detach().numpy(), pot.energies[0].numpy()
    a, b, e = (t[0].numpy() for t in (pot.slope, pot.near, pot.far))
    continued = np.pad(x, [(0, 0)] + [(k - 1, k - 1)] * 3, mode="symmetric")
    total = 0.0
    for place in itertools.product(*(range(side + k - 1) for side in x.shape[1:])):
        patch = continued[(slice(None), *(slice(i, i + k) for i in place))]
        inside = [k - 1 <= i < side for i, side in zip(place, x.shape[1:], strict=True)]
        u = energies @ (atoms @ patch.ravel()) ** 2
        huber = np.where(u > e**2, e * np.sqrt(u) - e**2 / 2, u / 2)
        total += np.prod(np.where(inside, 1.0, 0.5)) * (a * (np.sqrt(b + u) - np.sqrt(b)) - huber).sum()
    return total / k**3


@pytest.mark.parametrize(("channels", "size", "k"), [(1, (4, 3, 5), 3), (2, (2, 1, 3), 2), (2, (5, 4, 6), 2)])
def test_r_is_what_its_definition_says(channels, size, k):
    model, x = volume_prior(channels, k), images(1, channels, *size)
    with torch.no_grad():
        pot = model.potentials(torch.tensor([0.1], dtype=torch.float64))
    z = x[0].numpy() / 0.1
    expected = by_loops(pot, z, k)
    for shift in itertools.product(range(k), repeat=3):
        blocks = [(side - s) // k for side, s in zip(size, shift, strict=True)]
        tiled = z[(slice(None), *(slice(s, s + n * k) for s, n in zip(shift, blocks, strict=True)))]
        sums = tiled.reshape(channels, blocks[0], k, blocks[1], k, blocks[2], k).sum((2, 4, 6)) / k**1.5
        expected += by_loops(pot.coarse, sums, 2) / k**3 if sums.size else 0.0
    assert model.prior(x, 0.1).item() == pytest.approx(0.1**2 * expected, rel=1e-12)


@pytest.mark.parametrize(("size", "k"), [((6, 5, 4), 3), ((2, 3, 9), 3), ((1, 1, 1), 2), ((1, 4, 2), 4)])
def test_patches_of_volumes_are_a_tight_frame_up_to_the_borders(size, k, monkeypatch):
    monkeypatch.setattr("lpn_fast.algebra.patches.POSITIONS", 100)
    patches, x = Patches(size, k, SIGMA), images(2, 2, *size)
    extended, back = patches.extended(x), torch.zeros(2, 2, *(side + 2 * k - 2 for side in size)).double()
    seen = torch.zeros(2, dtype=torch.float64)
    for block in patches.blocks():
        part = patches.gather(extended, block) * patches.weights_of(block)
        seen += (patches.gather(extended, block) * part).sum((1, 2))
        patches.scatter(part, back, block)
    exact = k**3 * norm(x) ** 2
    assert torch.allclose(seen, exact, rtol=1e-13) if min(size) >= k - 1 else bool((seen <= exact * (1 + 1e-13)).all())
    assert torch.allclose((patches.folded(back) * x).flatten(1).sum(1), seen, rtol=1e-13)  # E^T and the sum are adjoint


@pytest.mark.parametrize(("size", "k"), [((5, 4, 7), 2), ((3, 3, 3), 3), ((3, 8, 4), 3)])
def test_tilings_of_the_means_of_blocks_cover_each_block_once(size, k):
    x = images(2, 2, *size)
    z = means(x, k)
    blocks = x.unfold(2, k, 1).unfold(3, k, 1).unfold(4, k, 1).sum((-1, -2, -3)) / k**1.5
    assert torch.allclose(z, blocks, rtol=1e-13)
    tilings = Tilings(z.shape[2:], k)
    parts = list(tilings.split(z))
    assert torch.equal(tilings.joined(parts, z), z)
    assert sum(len(part) for part in parts) == 2 * min(k, z.shape[2]) * min(k, z.shape[3]) * min(k, z.shape[4])
    first = parts[0][:1]  # the tiling that starts at the first block
    assert torch.equal(first[0], z[0, :, ::k, ::k, ::k])
    assert torch.allclose((means_adjoint(z, k) * x).sum(), z.square().sum())


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("size", [(3, 4, 3), (1, 2, 5)])
def test_no_direction_has_a_curvature_below_minus_mu(size, spread):
    model = volume_prior(k=2, spread=spread)
    for scale in (0.03, 1.0, 30.0):
        x = scale * images(1, 1, *size)
        units = torch.eye(x.numel(), dtype=x.dtype).view(-1, 1, *size)
        hessian = model.hessian_product(x.expand_as(units), units, 0.1).flatten(1)
        assert torch.allclose(hessian, hessian.T, atol=1e-10 * hessian.abs().max())
        values = torch.linalg.eigvalsh(hessian)
        assert values[0] >= -model.spec.concavity - 1e-12
        assert values[-1] <= 1 / model.alpha - 1 + 1e-9


@pytest.mark.parametrize("shape", [(1, 1, 4, 5, 2), (3, 2, 1, 2, 3)])
def test_gradient_is_that_of_r_and_all_differentiate_in_everything(shape):
    model = volume_prior(shape[1], k=2, groups=3)
    x, parameters = images(*shape).requires_grad_(), list(model.parameters())
    for function in (model.prior, model.grad_prior, model.forward):
        inputs = (x, *parameters)
        assert torch.autograd.gradcheck(
            lambda x, *_, f=function: f(x, SIGMA[: len(x)]), inputs, atol=1e-6, fast_mode=True
        )


def test_the_prox_is_within_its_bound_inverts_the_preimage_and_no_other_volume_is_better():
    model, y = volume_prior(), images(3, 1, 5, 4, 6)
    exact, value = model.prox_and_prior(y, 0.7, SIGMA)
    assert bool((model.error_bound(exact, y, SIGMA, 0.7) < 1e-9).all())
    rough = model.prox(y, 0.7, SIGMA, tol=1e-2)
    distance = norm(rough - exact)
    assert bool((distance <= model.error_bound(rough, y, SIGMA, 0.7) + 1e-9).all()) and bool((distance > 0).all())
    objective = 0.5 * norm(exact - y) ** 2 + 0.7 * value
    for scale in (1e-4, 1e-2, 1.0):
        other = exact + scale * torch.randn_like(y)
        assert bool((objective <= 0.5 * norm(other - y) ** 2 + 0.7 * model.prior(other, SIGMA)).all())
    assert torch.allclose(model(model.preimage(y, SIGMA), SIGMA), y, atol=1e-9)
    v = images(3, 1, 5, 4, 6, seed=5)
    q = model.hvp(y, v, SIGMA)
    assert torch.allclose(q + model.hessian_product(model(y, SIGMA), q, SIGMA), v, atol=1e-9)


def test_turning_volume_and_atoms_together_turns_the_prox():
    model, turned, x = volume_prior(2), volume_prior(2), images(2, 2, 4, 6, 5)
    with torch.no_grad():
        for name in ("atoms", "coarse_atoms"):
            atoms = getattr(model, name)
            getattr(turned, name).copy_(atoms.permute(0, 1, 4, 2, 3))
    expected = model(x, 0.1).permute(0, 1, 4, 2, 3)
    assert torch.allclose(turned(x.permute(0, 1, 4, 2, 3), 0.1), expected, atol=1e-9)
    assert not torch.allclose(turned(x, 0.1), model(x, 0.1), atol=1e-3)


def test_files_and_inversions_know_volumes(tmp_path):
    model, x = volume_prior(k=2, groups=3), images(1, 1, 3, 4, 3)
    loaded = lf.load(lf.save(model, tmp_path / "prior.safetensors"))
    assert loaded.spec == model.spec and loaded.spec.axes == ("D", "H", "W")
    assert torch.equal(loaded(x, 0.1), model(x, 0.1))
    assert "ndim" not in drawn().spec.to_dict()
    found = lf.invert(model, x, sigma=0.1)
    assert bool(found.converged.all()) and torch.allclose(model(found.preimage, 0.1), x, atol=1e-9)
    assert "volumes (N, 1, D, H, W)" in repr(model)


def test_verify_holds():
    report = lf.verify(volume_prior(k=2, groups=3, coarse_kernel=0), images(1, 1, 2, 3, 2), 0.1)
    assert report.all_hold, str(report)
    assert {"certificate", "lowest curvature"} <= {p.name for p in report.properties}


def test_float32_takes_the_path_of_torch_and_kernels_say_why():
    model = volume_prior().float()
    x = images(2, 1, 5, 6, 4).float()
    assert relative(model.grad_prior(x, 0.1), model.double().grad_prior(x.double(), 0.1)) < 1e-5
    model = model.float()
    assert "cpu: volumes are not covered" in lf.explain(model, x)
    with lf.use_backend("cpu"), pytest.raises(RuntimeError, match="volumes are not covered"):
        model(x, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m(x[:, :, 0], 0.1), r"\(N, 1, D, H, W\)"),
        (lambda m, x: lf.ExplicitLPN(1, ndim=4), "ndim must be 2 for images or 3 for volumes, got 4"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(volume_prior(), images(1, 1, 4, 4, 4))
