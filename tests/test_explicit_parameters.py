"""Parameter gradients of explicit priors by the CPU's kernel: those of float64, on every instruction set and size."""

import pytest
import torch
from cases import on_threads, relative
from test_explicit import SIGMA, drawn, images

import lpn_fast as lf
from lpn_fast.ops.explicit import Potentials, cpu, plain, potentials
from lpn_fast.ops.explicit.level import Level

pytestmark = pytest.mark.skipif(cpu._cpu is None, reason="the compiled module is not built")


def random(*shape, seed=3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_prior(model, x, weights, sigma) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((model.prior(x, sigma) * weights).sum(), list(model.parameters()))


def of_gradient(model, x, v, sigma) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((model.grad_prior(x, sigma) * v).sum(), list(model.parameters()))


@pytest.mark.parametrize(
    ("shape", "k"),
    [((2, 1, 64, 50), 7), ((3, 1, 3, 19), 5), ((3, 3, 21, 30), 3), ((1, 2, 90, 7), 5), ((2, 1, 1, 2), 2)],
)
def test_gradients_of_all_parameters_have_the_digits_of_torchs_operations(isa, shape, k):
    model, x, v = drawn(shape[1], k, groups=13, spread=0.5), images(*shape), random(*shape)
    sigma, weights = SIGMA[: shape[0]], random(shape[0]).abs() + 0.5
    exact = of_gradient(model, x, v, sigma) + of_prior(model, x, weights, sigma)
    model, x, v = model.float(), x.float(), v.float()
    fused = of_gradient(model, x, v, sigma) + of_prior(model, x, weights, sigma)
    with lf.use_backend("torch"):
        plain = of_gradient(model, x, v, sigma) + of_prior(model, x, weights, sigma)
    for a, b, wanted in zip(fused, plain, exact, strict=True):
        # what the coarse level sees of smooth images is a difference of numbers of many digits in common
        assert relative(a, wanted) < max(3e-6, min(1e-3, 2 * relative(b, wanted)))


@pytest.mark.parametrize("sets", [1, 2, 6])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_number_of_atoms_and_of_images_that_share_potentials(isa, sets, channels):
    generator, n = torch.Generator().manual_seed(0), channels * 9
    pot = Level(channels, 3, 19).trial((sets, channels, 9, 8), None, "fp32", torch.device("cpu"), generator).potentials
    pot = Potentials(*(t.double() for t in pot.tensors()))
    atoms = torch.cat([pot.atoms, random(5, n)])  # more than pixels
    pot = Potentials(atoms, torch.cat([pot.energies, pot.energies[..., :5]], 2), pot.slope, pot.near, pot.far)
    x, v, p = 4 * random(6, channels, 9, 70), random(6, channels, 9, 70, seed=4), random(6, seed=5)
    narrow = Potentials(*(t.float() for t in pot.tensors()))
    for direction, weights in ((v, None), (None, p)):
        exact = plain.gradients(pot.repeated(6 // sets), x, direction, weights, 3)
        if sets > 1:
            exact = [exact[0], *(t.unflatten(0, (sets, -1)).sum(1) for t in exact[1:])]
        single = (None if t is None else t.float() for t in (direction, weights))
        fused = cpu.gradients(narrow, x.float(), *single, 3)
        assert [t.shape for t in fused] == [t.shape for t in pot.tensors()]
        assert max(relative(a, b) for a, b in zip(fused, exact, strict=True)) < 1e-5
    repeated = narrow.repeated(6 // sets) if sets > 1 else narrow
    assert (
        relative(cpu.run(repeated, x.float(), None, 3, False)[1], potentials.gradient(pot.repeated(6 // sets), x, 3))
        < 1e-5
    )


def test_only_what_is_wanted_comes_back():
    model, x = drawn().float(), images(2, 1, 9, 11).float()
    model.far.requires_grad_(False)
    model.coarse_atoms.requires_grad_(False)
    model.grad_prior(x, 0.1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in ("far", "coarse_atoms"))


def test_no_images_have_no_gradient():
    model = drawn().float()
    model.prior(images(0, 1, 8, 8).float(), 0.1).sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_gradients_have_the_same_bits_on_any_number_of_threads():
    model, x, v = drawn(k=7, groups=20).float(), 10 * images(3, 1, 70, 45).float(), random(3, 1, 70, 45).float()
    with torch.no_grad():
        several, one = model.potentials(SIGMA.float()), model.potentials(torch.tensor([0.1]))
    results = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            found = [potentials.gradients(pot, x, v, None, 7) for pot in (several, one)]
            found.append(potentials.gradients(several, x, None, torch.ones(3), 7))
            results.append([t for gradients in found for t in gradients])
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))
