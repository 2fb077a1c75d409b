"""Explicit priors whose groups come in blocks and in fours: the certificate, symmetry, training, files."""

import copy

import pytest
import torch
from test_explicit_filters import images

import lpn_fast as lf
from lpn_fast.networks.explicit_blocks import of_all_groups, shared_out


def drawn(channels=1, kernel=5, filters=24, blocks=3, groups=28, joint=4, spread=0.5) -> lf.ExplicitLPN:
    torch.manual_seed(0)
    model = lf.ExplicitLPN(channels, kernel, groups, filters=filters, blocks=blocks, joint=joint).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * p.std().clamp(min=0.1) * torch.randn_like(p))
    return model.project_()


def test_groups_see_their_block_and_the_joint_ones_all():
    energies = drawn().potentials(torch.tensor([0.03, 0.2], dtype=torch.float64)).energies
    assert energies.shape == (2, 28, 24)
    inside = torch.zeros(28, 24, dtype=torch.bool)
    for block in range(3):
        inside[8 * block : 8 * block + 8, 8 * block : 8 * block + 8] = True
    inside[24:] = True
    assert (energies[:, inside] > 0).all() and (energies[:, ~inside] == 0).all()
    assert energies.sum(1).max() <= 0.98 + 1e-12


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-2, -1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_mirror_images_have_the_same_prior(channels, axes):
    model, x = drawn(channels), images(2, channels, 9, 14)
    assert torch.allclose(model.prior(x.flip(axes), 0.1), model.prior(x, 0.1), rtol=1e-12)
    assert torch.allclose(model.grad_prior(x.flip(axes), 0.1), model.grad_prior(x, 0.1).flip(axes), atol=1e-12)
    alone = drawn(channels, blocks=0, joint=0)
    assert not torch.allclose(alone.prior(x.flip(axes), 0.1), alone.prior(x, 0.1), rtol=1e-4)


def test_images_of_groups_see_images_of_filters():
    logits = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    shares = shared_out(logits)[0]  # [8, 8]
    order = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    for group in (0, 4):
        for image, seen in enumerate(order):
            for seed in (0, 4):
                columns = [seed + i for i in seen]
                assert torch.equal(shares[group + image, seed : seed + 4], shares[group, columns])
    wanted = torch.cat([logits[0, :, :4].flatten(), torch.zeros(1)]).softmax(0)[:-1].view(2, 4)
    assert torch.allclose(shares[::4, :4], wanted)


def test_energies_of_blocks_lie_on_the_diagonal():
    given = torch.arange(1.0, 13.0).view(1, 3, 4)
    assert of_all_groups(given, 2, 1)[0].tolist() == [[1, 2, 0, 0], [0, 0, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.mark.parametrize(("channels", "size"), [(1, (7, 9)), (3, (4, 6))])
def test_f_is_the_prox_and_its_bound_holds(channels, size):
    model, y = drawn(channels, 3), images(2, channels, *size)
    f = model(y, 0.1)
    assert model.error_bound(f, y, 0.1).max() < 1e-9
    n = y[0].numel()
    rows = [model.hessian_product(y[:1], v.view(1, *y.shape[1:]), 0.1).flatten() for v in torch.eye(n).double()]
    assert torch.linalg.eigvalsh(torch.stack(rows)).min() >= -model.spec.concavity
    assert lf.verify(model, y, 0.1).all_hold


@pytest.mark.parametrize("name", ["seeds", "shares", "far", "bends", "tails"])
def test_gradients_reach_all_parameters(name):
    model, y = drawn(kernel=3, filters=8, blocks=1, groups=8), images(1, 1, 6, 5)

    def of(parameter):
        other = copy.deepcopy(model)
        del other._parameters[name]
        setattr(other, name, parameter)
        return other(y, 0.1, tol=1e-13)

    assert torch.autograd.gradcheck(of, getattr(model, name).detach().clone().requires_grad_(), atol=1e-5)


def test_one_knot_of_noise_and_no_joint_groups(tmp_path):
    model = lf.ExplicitLPN(1, 3, 8, sigma_conditional=(0.1,), filters=8, blocks=2).float()
    x = images(1, 1, 8, 8).float()
    lf.save(model, tmp_path / "m.safetensors")
    loaded = lf.load(tmp_path / "m.safetensors")
    assert loaded.spec == model.spec and torch.equal(loaded(x, 0.1), model(x, 0.1))


def test_the_start_sees_every_filter_alike():
    model = lf.ExplicitLPN(1, 7, 44, filters=32, blocks=4, joint=12)
    shares = model.potentials(torch.tensor([0.1])).energies[0].sum(0)
    assert torch.allclose(shares, shares[:1], rtol=1e-4)


@pytest.mark.parametrize(("given", "message"), [
    ({"blocks": 2}, "blocks must be positive and divide filters, 0"),
    ({"filters": 24, "blocks": 4}, "into multiples of 4, got 4 blocks"),
    ({"filters": 24, "blocks": 3, "joint": 2}, "joint must be a multiple of 4"),
    ({"filters": 24, "joint": 4}, "blocks must be positive"),
    ({"filters": 24, "blocks": 3, "groups": 30}, "a multiple of 4 for each of 3 blocks, got 30"),
])  # fmt: skip
def test_wrong_blocks_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        lf.ExplicitLPN(1, 5, **{"groups": 24} | given)
