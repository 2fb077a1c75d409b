"""Squared first stages under gates of single pixels, in one pass: against float64, at every border of its tiles."""

import pytest
import torch
from cases import on_threads, perturbed, relative

import lpn_fast as lf
from lpn_fast import _cpu
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout
from lpn_fast.algebra.spec import BORDERS, Spec, Stage
from lpn_fast.ops.backends.cpu import frame

# (channels, kernel, gates, (H, W)): tiles of 64 pixels, blocks of 8 rows, 4 to 16 lanes; no gates, two stages of them,
# a number of experts, which compete, and these over so many filters
CASES = [
    (1, 7, ((1, 1, 96),), (19, 37)),
    (3, 5, ((1, 1, 30),), (12, 70)),
    (1, 2, (), (8, 9)),
    (2, 3, ((1, 1, 7), (1, 1, 4)), (33, 64)),
    (1, 9, ((1, 1, 1),), (1, 1)),
    (4, 3, ((1, 1, 17),), (7, 131)),
    (1, 8, ((1, 1, 13),), (300, 5)),
    (1, 7, 128, (19, 37)),
    (3, 3, 17, (12, 70)),
    (1, 9, 2, (1, 1)),
    (2, 4, 7, (33, 131)),
    (1, 7, {"experts": 130, "filters": 257}, (19, 37)),
    (3, 3, {"experts": 5, "filters": 31}, (12, 70)),
]


@pytest.fixture(autouse=True)
def cpu():
    with lf.use_backend("cpu"):
        yield


def network(channels=1, kernel=5, gates=((1, 1, 12),), size=0.3, beta=1.0, border="zero") -> lf.LPN:
    """Far from the start: no two filters, gates or experts, or noise levels alike."""
    if isinstance(gates, int | dict):
        experts = gates if isinstance(gates, dict) else {"experts": gates}
        model = lf.MixtureLPN(channels, kernel, alpha=0.01, border=border, **experts).eval()
    else:
        model = lf.FrameLPN(channels, kernel, gates, beta=beta, alpha=0.01, border=border).eval()
    assert frame.supports(model.spec) and "one pass" in lf.explain(model, torch.zeros(1, channels, 9, 9))
    return perturbed(model, size)


def images(channels, size, count=3):
    torch.manual_seed(size[0])
    return torch.rand(count, channels, *size) + 0.1 * torch.randn(count, channels, *size)


def truth(model, x, sigma):
    """(psi, f) of the executable specification, in float64: psi_sigma(x) = sigma^2 psi(x / sigma)."""
    x, features, unit = model.double()._checked(
        x.double(), sigma.double() if isinstance(sigma, torch.Tensor) else sigma
    )
    arguments = model.spec, x / unit, model.packed().detach(), features
    return unit.flatten() ** 2 * reference.potential(*arguments), unit * reference.prox(*arguments)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_potential_and_prox_agree_with_float64(isa, case, border):
    *architecture, size = case
    model, x, sigma = network(*architecture, border=border), images(case[0], size), torch.tensor([0.02, 0.1, 0.25])
    psi, f = model.potential_and_prox(x, sigma)
    alone = model(x, sigma)
    true_psi, true_f = truth(model, x, sigma)
    assert relative(psi, true_psi) < 1e-6
    assert relative(f, true_f) < 1e-6
    assert torch.equal(f, alone), "the value is counted beside f"


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@torch.no_grad()
def test_closed_gates_and_open_ones_keep_the_digits_of_their_potential(isa, scale, border):
    """Closed: E of order 1e-9 each, lost if added to one. Open: u beyond what exp takes."""
    model, x = network(beta=3.0, border=border), images(1, (40, 33))
    model.stages[0].head.zero_()  # what is left of psi, but alpha, is the gates'
    model.stages[1].bias.sub_(5.0)
    psi, f = model.potential_and_prox(scale * x, 0.1)
    true_psi, true_f = truth(model, scale * x, 0.1)
    assert relative(psi, true_psi) < 1e-6
    assert relative(f, true_f) < 1e-6


@pytest.mark.parametrize("border", BORDERS)
@torch.no_grad()
def test_rows_of_more_factors_than_a_product_holds(isa, border):
    """2,100 pixels are 132 vectors of 16 lanes: half open gates everywhere multiply to 2^132 and more."""
    model, x = network(gates=((1, 1, 3),), border=border), 1e-4 * images(1, (2, 2100), count=1)
    for parameter in (model.stages[1].bias, model.stages[1].noise):
        parameter.zero_()
    psi = model.potential(x, 0.1)
    assert relative(psi, truth(model, x, 0.1)[0]) < 1e-6


@torch.no_grad()
def test_the_potential_is_summed_in_float64():
    """Half a million pixels of gates: a float32 sum in order would be off by 1e-4."""
    model, x = network(kernel=2, gates=((1, 1, 2),)), images(1, (700, 700), count=1)
    psi = model.potential(x, 0.1)
    assert relative(psi, truth(model, x, 0.1)[0]) < 3e-7


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("which", ["p", "v", "pv"])
@pytest.mark.parametrize("case", CASES)
def test_second_order_agrees_with_float64(isa, case, which, border):
    """The gradient of sum p psi + <v, f> in x and in all of P, the noise features' part included."""
    *architecture, size = case
    model, x = network(*architecture, border=border), images(case[0], size)
    # shares are exponentials of the energies, whose roundings are their errors: see the test after this
    noise = 0.5 if model.spec.stages[-1].competing else 0.1
    x, features, _ = model._checked(x / noise, torch.tensor([0.02, 0.1, 0.25]))
    packed = model.packed().detach()
    p, v = torch.randn(3) if "p" in which else None, torch.randn_like(x) if "v" in which else None
    gx, gP = frame.vjp(model.spec, x, packed, features, p, v)
    double = [t if t is None else t.double() for t in (x, packed, features, p, v)]
    true_gx, true_gP = reference.vjp(model.spec, *double)
    assert relative(gx, true_gx) < 2e-6
    bound = 2e-6
    if border == "mirror" and size == (1, 1):  # filters see 81 times one pixel, and samples nearly cancel
        bound = max(bound, relative(reference.vjp(model.spec, x, packed, features, p, v)[1], true_gP))
    assert relative(gP, true_gP) < bound
    for slot in layout(model.spec):
        part = slice(slot.offset, slot.end)
        if (
            true_gP[part].norm() < 1e-12 * true_gP.norm()
        ):  # patches of one mirrored pixel are means, which have no gates
            assert size == (1, 1) and border == "mirror" and gP[part].norm() < 1e-12 * true_gP.norm()
            continue
        assert relative(gP[part], true_gP[part]) < 2e-5, f"{slot.name}, in which samples nearly cancel"
    if which == "v":
        assert torch.equal(frame.hvp(model.spec, x, packed, features, v), gx)


@pytest.mark.parametrize("noise", [0.1, 0.02])
def test_experts_of_high_energies_lose_no_more_digits_than_plain_torch(isa, noise):
    """u in the hundreds or thousands: shares differ by eps u from what they should be, however they are computed."""
    model, x = network(kernel=7, gates=32), images(1, (30, 41))
    x, features, _ = model._checked(x / noise, torch.tensor([0.02, 0.1, 0.25]))
    single = x, model.packed().detach(), features, torch.randn(3), torch.randn_like(x)
    double = [t.double() for t in single]
    psi, f = frame.value_prox(model.spec, *single[:3], True)
    assert relative(psi, reference.potential(model.spec, *double[:3])) < 1e-7
    true_f, plain_f = (reference.prox(model.spec, *t[:3]) for t in (double, single))
    assert relative(f, true_f) < relative(plain_f, true_f)
    truth, plain = (reference.vjp(model.spec, *t) for t in (double, single))
    for ours, theirs, true in zip(frame.vjp(model.spec, *single), plain, truth, strict=True):
        assert relative(ours, true) < 1.5 * relative(theirs, true)


@pytest.mark.parametrize("spread", [0.5, 300.0])
@torch.no_grad()
def test_experts_of_any_sharpness_near_and_far_and_a_single_one(isa, spread):
    """Far: exp(beta u) beyond float32 on both sides. One unit alone is its own soft maximum, z = u."""
    first = Stage(4, skip_kernel=2, skip_padding=1, bias=False, heads=("linear",))
    gate = Stage(3, kernel=1, skip_kernel=0, heads=("linear",))
    for experts in (1, 5):
        last = Stage(experts, kernel=1, skip_kernel=0, heads=("linear",), competing=True)
        torch.manual_seed(experts)
        model = lf.LPN(Spec("conv", 1, (first, gate, last), 3.0, 0.01, noise_levels=(0.1,), square_first=True))
        model.stages[2].bias.copy_(torch.linspace(-spread, spread, experts))
        x, v, p = torch.randn(2, 1, 9, 10), torch.randn(2, 1, 9, 10), torch.randn(2)
        assert frame.supports(model.spec)
        _, features, _ = model._checked(x, 0.1)
        single = x, model.packed(), features
        double = [t.double() for t in single]
        psi, f = frame.value_prox(model.spec, *single, True)
        assert relative(psi, reference.potential(model.spec, *double)) < 1e-7
        assert relative(f, reference.prox(model.spec, *double)) < 1e-6
        truth = reference.vjp(model.spec, *double, p.double(), v.double())
        for ours, true in zip(frame.vjp(model.spec, *single, p, v), truth, strict=True):
            assert relative(ours, true) < 2e-6


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("gates", [((1, 1, 12),), 12])
@pytest.mark.parametrize("threads", [1, 2, 8])
@torch.no_grad()
def test_threads_do_not_change_a_bit(threads, gates, border):
    model, x = network(gates=gates, border=border), images(1, (61, 47))
    x, features, _ = model._checked(x, 0.1)

    def all_of_them():
        arguments = model.spec, x, model.packed(), features
        return *model.potential_and_prox(x, 0.1), *frame.vjp(*arguments, torch.ones(3), x.flip(0))

    with on_threads(1):
        expected = all_of_them()
    with on_threads(threads):
        found = all_of_them()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("gates", [((1, 1, 12),), 12])
@torch.no_grad()
def test_a_batch_is_its_samples_and_may_be_empty(gates, border):
    model, x, sigma = network(2, gates=gates, border=border), images(2, (21, 30)), torch.tensor([0.02, 0.1, 0.25])
    psi, f = model.potential_and_prox(x, sigma)
    for n in range(3):
        alone = model.potential_and_prox(x[n : n + 1], sigma[n : n + 1])
        assert torch.equal(alone[0][0], psi[n]) and torch.equal(alone[1][0], f[n])
    psi, f = model.potential_and_prox(x[:0], sigma[:0])
    assert psi.shape == (0,) and f.shape == (0, 2, 21, 30)
    assert model.hvp(x[:0], x[:0], sigma[:0]).shape == (0, 2, 21, 30)
    with torch.enable_grad():
        model(x[:0], sigma[:0]).sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
def test_images_that_are_views_are_read_as_they_are_meant():
    model, x = network(2), images(2, (20, 21))
    expected = model(x, 0.1)
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last), 0.1), expected)
    assert torch.equal(model(x.transpose(2, 3).contiguous().transpose(2, 3), 0.1), expected)
    assert torch.equal(model(torch.cat([x, x], dim=3)[..., :21], 0.1), expected)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("gates", [((1, 1, 12),), 12])
@torch.no_grad()
def test_nan_stays_in_its_sample(isa, gates, border):
    model, x = network(gates=gates, border=border), images(1, (20, 70))
    x[1, 0, 9, 33] = torch.nan
    psi, f = model.potential_and_prox(x, 0.1)
    assert (
        psi[1].isnan() and f[1].isnan().any() and torch.isfinite(f[[0, 2]]).all() and torch.isfinite(psi[[0, 2]]).all()
    )
    assert torch.isfinite(f[1, 0, :, :10]).all(), "and in reach of its filters"


@pytest.mark.parametrize("gates", [((1, 1, 12),), 12])
def test_no_activation_is_kept_for_the_way_back(gates):
    model, x = network(gates=gates), images(1, (16, 16))
    assert not model.stores_activations(x)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        model(x, 0.1)
    units = sum(stage.width for stage in model.spec.stages) * 20 * 20
    assert max(saved) <= max(x.numel(), model.packed().numel()) < units


@pytest.mark.parametrize("gates", [((3, 1, 4),), ((1, 2, 4),), ((1, 1, 4), (3, 1, 4))])
def test_gates_that_look_around_go_stage_by_stage(gates):
    model = lf.FrameLPN(1, 3, gates)
    assert not frame.supports(model.spec)
    assert "one pass" not in lf.explain(model, torch.zeros(1, 1, 9, 9))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"beta": 0.0}, "beta must be positive and finite, got 0"),
        ({"P": 0}, "P must be an address, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"f": 2}, "f must be aligned to 4 bytes, got address 2"),
        ({"table": [3, 0, -1, 0, 0, -1, -1, -1]}, "stage 0 no core"),
        ({"table": [3, -1, 0, -1, 0, -1, -1, -1]}, "stage of gates what reads the stage below, a bias, no squared"),
        ({"table": [3, -1, 0, 0, -1, -1, -1, -1]}, "and the last one a head; stage 0 has others"),
    ],
)
def test_what_would_crash_is_refused(change, message):
    table = torch.tensor(change.pop("table", [3, -1, 0, 0, 0, -1, -1, -1]))
    arguments = {
        "P": 64, "table": table.data_ptr(), "stages": 1, "filters_at": 0, "biases": 64, "shared": True,
        "images": 1, "channels": 1, "height": 5, "width": 5, "units": 4, "kernel": 2, "competing": False,
        "beta": 1.0, "alpha": 0.0,
    }  # fmt: skip
    results = {"x": 64, "psi": 0, "f": 64, "threads": 1}
    with pytest.raises(ValueError, match=message):
        problem = _cpu.Frame(**{name: change.get(name, value) for name, value in arguments.items()})
        problem.value_prox(**{name: change.get(name, value) for name, value in results.items()})


def test_gradients_must_fit_into_what_is_given():
    model, x = network(2, 3), images(2, (9, 9))
    problem, _ = frame._problem(model.spec, x, model.packed().detach(), torch.zeros(1, 12))
    with pytest.raises(ValueError, match="filters_at must leave room for 324 values in numel = 100"):
        problem.vjp(x.data_ptr(), 0, 0, x.data_ptr(), x.data_ptr(), 100, x.data_ptr(), 1)
