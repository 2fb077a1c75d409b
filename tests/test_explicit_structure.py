"""What the CPU's kernel of explicit priors makes of filters in fours and of zeros in U: the digits of float64."""

import pytest
import torch
from cases import on_threads

from lpn_fast.algebra.patches import Patches
from lpn_fast.networks.explicit_filters import mirrored
from lpn_fast.ops.explicit import Potentials, cpu, plain

pytestmark = pytest.mark.skipif(cpu._cpu is None, reason="the compiled module is not built")


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_fours(channels, k, seeds=5, groups=13, sets=1) -> Potentials:
    """Potentials in float64 whose numbers float32 has, too."""
    filters = mirrored(normal(seeds, channels, k, k) / channels**0.5).flatten(1)
    energies = normal(sets, groups, len(filters), seed=1).abs() / len(filters)
    numbers = [normal(sets, groups, seed=seed).abs() + 0.5 for seed in (2, 3, 4)]
    return Potentials(*(t.float().double() for t in (filters, energies, *numbers)))


def single(*tensors) -> list[torch.Tensor]:
    return [t.float() for t in tensors]


def kernels(pot, x, v, weights, k) -> list[torch.Tensor]:
    """R, its gradient, a Hessian product, and parameter gradients of <v, grad R(x)> and of a sum of R."""
    pot, (x, v, weights) = Potentials(*single(*pot.tensors())), single(x, v, weights)
    value, gradient = cpu.run(pot.repeated(len(x) // len(pot.slope)), x, None, k, True)
    assert torch.equal(cpu.run(pot, x, None, k, False)[1], gradient)
    product = cpu.run(pot, x, v, k, False)[1]
    return [value, gradient, product, *cpu.gradients(pot, x, v, None, k), *cpu.gradients(pot, x, None, weights, k)]


def exact(pot, x, v, weights, k) -> list[torch.Tensor]:
    sets, images = len(pot.slope), len(x)
    each = pot.repeated(images // sets)
    found = [*plain.run(each, x, None, k, True), plain.run(each, x, v, k, False)[1]]
    for given in ((v, None), (None, weights)):
        atoms, *others = plain.gradients(each, x, *given, k)
        found += [atoms, *(t if sets == 1 else t.unflatten(0, (sets, -1)).sum(1) for t in others)]
    return found


def assert_digits(pot, x, k):
    v, weights = normal(*x.shape, seed=6), normal(len(x), seed=7).abs() + 0.5
    names = ["value", "gradient", "product"] + [f"{of} of {name}" for of in ("gradient", "value")
             for name in ("atoms", "energies", "slope", "near", "far")]  # fmt: skip
    constants = (pot.slope * pot.near.sqrt()).sum(1) * Patches(x.shape[2:], k, x).weights.sum() / k**2
    scale = float(constants.repeat_interleave(len(x) // len(constants)).norm())  # the kernel's R has them at first
    for name, found, wanted in zip(names, kernels(pot, x, v, weights, k), exact(pot, x, v, weights, k), strict=True):
        size = float(wanted.norm()) + (scale if name == "value" else 0.0)
        assert found.shape == wanted.shape and float((found - wanted).norm()) < 3e-6 * size, name


@pytest.mark.parametrize("k", range(1, 16))
def test_mirrored_filters_of_every_size(isa, k):
    assert_digits(in_fours(1, k), normal(2, 1, 21, 30, seed=5), k)


@pytest.mark.parametrize(("shape", "k"), [
    ((1, 1, 3, 2), 7),  # smaller than patches
    ((2, 1, 1, 1), 4),
    ((1, 1, 9, 150), 13),  # several tiles, not all of one size
    ((1, 1, 40, 66), 2),
    ((1, 1, 12, 64), 15),
    ((1, 3, 20, 71), 6),
    ((1, 3, 5, 4), 9),
    ((2, 3, 33, 16), 3),
])  # fmt: skip
def test_mirrored_filters_on_images_of_every_shape(isa, shape, k):
    assert_digits(in_fours(shape[1], k, seeds=7), normal(*shape, seed=5), k)


@pytest.mark.parametrize("sets", [1, 2, 6])
def test_mirrored_filters_and_several_sets_of_potentials(isa, sets):
    assert_digits(in_fours(2, 5, groups=9, sets=sets), normal(6, 2, 9, 70, seed=5), 5)


@pytest.mark.parametrize("broken", [0, 1, 2, 3])
@pytest.mark.parametrize("four", [0, 4])
def test_filters_that_are_nearly_mirror_images_are_none(four, broken):
    pot = in_fours(1, 4)
    pot.atoms[four + broken, 5] *= 1.001
    assert_digits(Potentials(*(t.float().double() for t in pot.tensors())), normal(1, 1, 9, 11, seed=5), 4)


def test_fours_and_what_is_left_over():
    pot = in_fours(1, 4)
    assert_digits(
        Potentials(pot.atoms[:-1], pot.energies[..., :-1], pot.slope, pot.near, pot.far), normal(1, 1, 9, 11), 4
    )


def in_blocks(pot, groups, filters, dense) -> Potentials:
    """So many groups after another see so many filters and no others, `dense` ones at the end all of them."""
    m, n = pot.energies.shape[1:]
    group, filter_ = torch.arange(m)[:, None], torch.arange(n)
    seen = (group // groups == filter_ // filters) | (group >= m - dense)
    return Potentials(pot.atoms, pot.energies * seen, pot.slope, pot.near, pot.far)


@pytest.mark.parametrize(("groups", "filters", "dense"), [(8, 8, 5), (3, 8, 1), (13, 4, 0), (7, 10, 2), (1, 1, 0)])
@pytest.mark.parametrize("k", [3, 4])
def test_groups_that_see_blocks_of_filters(isa, k, groups, filters, dense):
    pot = in_blocks(in_fours(1, k, seeds=10, groups=47), groups, filters, dense)
    assert_digits(pot, normal(2, 1, 12, 70, seed=5), k)
    pot.atoms[1] += pot.atoms[2]  # in fours no more
    assert_digits(Potentials(*(t.float().double() for t in pot.tensors())), normal(2, 1, 12, 20, seed=5), k)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_zeros_anywhere_and_sets_that_have_them_elsewhere(isa, share):
    pot = in_fours(1, 3, seeds=10, groups=29, sets=3)
    pot.energies[torch.rand(pot.energies.shape, generator=torch.Generator().manual_seed(8)) >= share] = 0.0
    pot.energies[0, :, 7], pot.energies[1, 5] = 0.5, 0.5
    assert_digits(pot, normal(6, 1, 9, 20, seed=5), 3)


def test_zeros_in_u_are_skipped(isa):
    """What is multiplied by zero is NaN where it is infinite."""
    pot = Potentials(*single(*in_blocks(in_fours(1, 4, seeds=10, groups=20), 4, 8, 0).tensors()))
    pot.atoms[8:16] *= 1e25
    of_slope = cpu.gradients(pot, normal(1, 1, 9, 20).float(), None, torch.ones(1), 4)[2][0]
    assert of_slope.isfinite().tolist() == [group // 4 != 1 for group in range(20)]


@pytest.mark.parametrize(("channels", "k"), [(1, 13), (3, 4)])
def test_the_same_bits_on_any_number_of_threads(isa, channels, k):
    pot, x = in_blocks(in_fours(channels, k, sets=2), 4, 8, 3), normal(2, channels, 70, 45, seed=5)
    results = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            results.append(kernels(pot, x, x.flip(-1), normal(2), k))
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


def test_images_that_are_not_numbers_leave_the_others_alone(isa):
    pot, x = Potentials(*single(*in_fours(1, 5).tensors())), normal(3, 1, 20, 100, seed=5).float()
    x[1] = float("nan")
    with on_threads(1):
        gradient = cpu.run(pot, x, None, 5, False)[1]
        assert gradient[1].isnan().all() and torch.equal(gradient[::2], cpu.run(pot, x[::2], None, 5, False)[1])


def all_in_fours(channels, k, groups=12, sets=1) -> Potentials:
    """Groups in fours as well: image r sees image q of a seed as the group itself sees image q xor r."""
    pot, image = in_fours(channels, k, groups=groups, sets=sets), torch.arange(4)
    by_seed = pot.energies[:, ::4].unflatten(2, (-1, 4))  # [sets, groups / 4, seeds, 4]
    energies = by_seed[..., image[:, None] ^ image].movedim(3, 2).flatten(3).flatten(1, 2)
    return Potentials(pot.atoms, energies, *(t[:, ::4].repeat_interleave(4, 1) for t in (pot.slope, pot.near, pot.far)))


@pytest.mark.parametrize(("shape", "k"), [
    ((2, 1, 21, 30), 3),
    ((1, 1, 3, 2), 7),  # smaller than patches, mirrored again and again
    ((2, 1, 1, 1), 5),
    ((1, 1, 1, 17), 3),
    ((1, 1, 6, 5), 13),
    ((1, 1, 9, 150), 13),
    ((1, 1, 7, 64), 3),
    ((1, 1, 70, 65), 5),
    ((2, 3, 33, 49), 3),
    ((1, 1, 20, 30), 4),  # no position has its middle on a pixel
])  # fmt: skip
def test_priors_that_are_their_own_mirror_images(isa, shape, k):
    assert_digits(all_in_fours(shape[1], k), normal(*shape, seed=5), k)


def test_priors_that_are_their_own_mirror_images_in_several_sets(isa):
    assert_digits(all_in_fours(1, 5, groups=8, sets=3), normal(6, 1, 9, 70, seed=5), 5)


@pytest.mark.parametrize("name", ["energies", "slope", "near", "far"])
@pytest.mark.parametrize("last", [False, True])
def test_priors_that_are_nearly_their_own_mirror_images(name, last):
    pot = all_in_fours(1, 5, sets=2)
    getattr(pot, name)[-last][(-2 if last else 1, ...)] *= 1.5
    assert_digits(pot, normal(2, 1, 11, 13, seed=5), 5)


def test_their_bits_do_not_depend_on_threads(isa):
    pot, x = all_in_fours(1, 5), normal(2, 1, 70, 45, seed=5)
    results = []
    for threads in (1, 3):
        with on_threads(threads):
            results.append(kernels(pot, x, x.flip(-1), normal(2), 5))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
