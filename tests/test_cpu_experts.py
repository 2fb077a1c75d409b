"""Experts that compete in contexts on the CPU, in two passes: against float64, at every border of their tiles."""

import pytest
import torch
from cases import on_threads, perturbed, relative

import lpn_fast as lf
from lpn_fast import _cpu
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout, parameter_count
from lpn_fast.algebra.patches import Patches
from lpn_fast.algebra.spec import BORDERS, Spec
from lpn_fast.algebra.windows import Windows
from lpn_fast.ops import registry
from lpn_fast.ops.backends.cpu import experts

# (channels, kernel, filters, experts, contexts, window, (H, W)): tiles of 64 positions, blocks of 8 rows, 4 to 16 lanes
CASES = [
    (1, 3, 10, 7, 4, 5, (19, 37)),
    (2, 3, 20, 13, 17, 9, (12, 131)),
    (1, 5, 31, 40, 3, 3, (33, 64)),
    (1, 7, 53, 130, 33, 17, (20, 61)),
    (1, 9, 82, 5, 2, 25, (1, 1)),
]
SPACED = [
    (1, 4, 20, 7, 4, 9, (19, 37)),
    (2, 4, 40, 13, 17, 9, (12, 131)),
    (1, 8, 70, 40, 3, 17, (33, 64)),
    (1, 10, 105, 130, 33, 25, (20, 61)),
    (1, 6, 40, 5, 2, 5, (3, 1)),
]
ALL = [(*case, border, 1) for case in CASES for border in BORDERS] + [(*case, "mirror", 2) for case in SPACED]


@pytest.fixture(autouse=True)
def cpu():
    with lf.use_backend("cpu"):
        yield


@pytest.fixture(params=[(1 << 29, 1 << 27), (1 << 29, 1), (0, 1 << 27)], ids=["kept", "one by one", "again"])
def kept(request, monkeypatch):
    """What the first pass finds is read in the second, in memory that images share or not, or computed once more."""
    for name, value in zip(("KEPT_BYTES", "TOGETHER_BYTES"), request.param, strict=True):
        monkeypatch.setattr(experts, name, value)


def network(
    channels=1, kernel=3, filters=14, count=7, contexts=4, window=5, border="mirror", spacing=1, size=0.3
) -> lf.LPN:
    """Far from the start: no two filters, experts, contexts or noise levels alike."""
    options = {"filters": filters, "contexts": contexts, "window": window, "border": border, "spacing": spacing}
    return perturbed(lf.MixtureLPN(channels, kernel, count, alpha=0.01, **options).eval(), size)


def problem(model, size, images=3):
    """(x, P, features), (p, v): every image at another noise level, and in units of it."""
    generator = torch.Generator().manual_seed(size[0])
    shape = images, model.spec.channels, *size
    x = torch.rand(shape, generator=generator) + 0.1 * torch.randn(shape, generator=generator)
    x, features, _ = model._checked(x / 0.5, torch.tensor([0.02, 0.1, 0.25])[:images])
    v = torch.randn(shape, generator=generator)
    return (x, model.packed().detach(), features), (torch.randn(images, generator=generator), v)


def doubled(tensors):
    return [t if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("case", ALL)
def test_potential_and_prox_agree_with_float64(isa, kept, case):
    *architecture, size, border, spacing = case
    model = network(*architecture, border, spacing)
    at, _ = problem(model, size)
    psi, f = experts.value_prox(model.spec, *at, True)
    true_psi, plain_psi = (reference.potential(model.spec, *t) for t in (doubled(at), at))
    assert relative(psi, true_psi) < max(1e-6, relative(plain_psi, true_psi)), "but where its terms nearly cancel"
    assert relative(f, reference.prox(model.spec, *doubled(at))) < 1e-6
    assert torch.equal(experts.value_prox(model.spec, *at, False)[1], f), "the value is counted beside f"


@pytest.mark.parametrize("which", ["p", "v", "pv"])
@pytest.mark.parametrize("case", ALL)
def test_second_order_agrees_with_float64(isa, kept, case, which):
    """The gradient of sum p psi + <v, f> in x and in all of P: of each parameter as exact as plain float32 has it."""
    *architecture, size, border, spacing = case
    model = network(*architecture, border, spacing)
    at, (p, v) = problem(model, size)
    given = p if "p" in which else None, v if "v" in which else None
    gx, gP = experts.vjp(model.spec, *at, *given)
    true_gx, true_gP = reference.vjp(model.spec, *doubled(at), *doubled(given))
    plain_gx, plain = reference.vjp(model.spec, *at, *given)
    for mine, theirs, true in zip((gx, gP), (plain_gx, plain), (true_gx, true_gP), strict=True):
        assert relative(mine, true) < max(2e-6, 1.5 * relative(theirs, true))
    for slot in layout(model.spec):
        part = slice(slot.offset, slot.end)
        error, scale = (gP[part] - true_gP[part]).norm(), true_gP[part].norm()
        bound = max(2e-5 * scale, 3 * (plain[part] - true_gP[part]).norm(), 1e-7 * true_gP.norm())
        assert error <= bound, f"{slot.name}: {error} of {scale}"
    if which == "v":
        assert torch.equal(experts.hvp(model.spec, *at, v), gx)


@pytest.mark.parametrize("weights", ["none", "mirrored"])
@pytest.mark.parametrize("side, height, width", [(5, 9, 12), (17, 6, 4), (3, 1, 30), (25, 40, 150), (1, 3, 64)])
def test_averages_are_those_of_the_specification(isa, weights, side, height, width):
    rows, columns = torch.ones(height), torch.ones(width)
    if weights == "mirrored":
        rows, columns = (Patches((n, n), 4, torch.rand(0)).axis_weights[0] for n in (height, width))
    found, right = experts._Averages(side, rows, columns), Windows(side, rows.double(), columns.double())
    maps = torch.randn(2, 3, len(rows), len(columns))
    assert relative(found(maps), right(maps.double())) < 1e-6
    assert relative(found.adjoint(maps), right.adjoint(maps.double())) < 1e-6


@pytest.mark.parametrize("options", [{"border": "zero"}, {}, {"kernel": 4, "filters": 20, "spacing": 2}])
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_do_not_change_a_bit(threads, options):
    model = network(**options)
    at, (p, v) = problem(model, (61, 147))

    def all_of_them():
        return *experts.value_prox(model.spec, *at, True), *experts.vjp(model.spec, *at, p, v)

    with on_threads(1):
        expected = all_of_them()
    with on_threads(threads):
        found = all_of_them()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("border", BORDERS)
@torch.no_grad()
def test_a_batch_is_its_samples_and_may_be_empty(kept, border):
    model, sigma = network(2, filters=20, border=border), torch.tensor([0.02, 0.1, 0.25])
    x = torch.rand(3, 2, 21, 30, generator=torch.Generator().manual_seed(0))
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


def test_networks_without_noise_levels_share_biases_and_odds():
    first, *gates = network().spec.stages
    spec = Spec("conv", 1, (first, *gates), 1.0, 0.01, square_first=True, border="mirror")
    generator = torch.Generator().manual_seed(0)
    packed = 0.3 * torch.rand(parameter_count(spec), generator=generator)
    x, v = torch.randn(2, 3, 1, 12, 20, generator=generator)
    psi, f = experts.value_prox(spec, x, packed, None, True)
    single = spec, x.double(), packed.double(), None
    assert relative(psi, reference.potential(*single)) < 1e-6
    assert relative(f, reference.prox(*single)) < 1e-6
    truth = reference.vjp(*single, None, v.double())
    for ours, true in zip(experts.vjp(spec, x, packed, None, None, v), truth, strict=True):
        assert relative(ours, true) < 2e-6


@torch.no_grad()
def test_nan_stays_in_its_sample_and_in_reach(isa):
    model = network()
    x = torch.rand(3, 1, 20, 70, generator=torch.Generator().manual_seed(0))
    x[1, 0, 9, 33] = torch.nan
    psi, f = model.potential_and_prox(x, 0.1)
    assert psi[1].isnan() and f[1].isnan().any() and f[[0, 2]].isfinite().all() and psi[[0, 2]].isfinite().all()
    assert f[1, 0, :, :10].isfinite().all(), "of filters and windows"


def test_sixteen_bits_are_refused_and_two_passes_are_told():
    model = network()
    assert "two passes" in lf.explain(model, torch.zeros(1, 1, 9, 9))
    reason = registry.reasons(model.spec, torch.zeros(1, 1, 9, 9), "bf16")["cpu"]
    assert reason == "precision 'bf16' is not covered in contexts"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"contexts": 0}, "contexts must be at least 1, got 0"),
        ({"spacing": 2}, "spacing must be 1, or divide kernel and have a mirrored border, got 2 for a kernel of 2"),
        ({"P": 0}, "P must be an address, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"slopes": 0}, "slopes must be an address, got 0"),
        ({"changes": 64}, "v or p must be an address where changes is, got neither"),
        ({"table": [3, -1, 0, 0, 0, -1, -1, -1]}, "the experts as the only stage, with a bias and without a head"),
        (
            {"v": 64, "changes": 64, "gP": 64, "numel": 9, "bias_gradient": 64, "odds_gradient": 64},
            "room for 16 values",
        ),
    ],
)
def test_what_would_crash_is_refused(change, message):
    table = torch.tensor(change.pop("table", [3, -1, 0, 0, -1, -1, -1, -1]))
    arguments = {
        "P": 64, "table": table.data_ptr(), "filters_at": 0, "filters": 0, "biases": 64, "odds": 64, "contexts": 2,
        "shared": True, "images": 1, "channels": 1, "height": 5, "width": 5, "units": 4, "kernel": 2, "spacing": 1,
        "alpha": 0.0,
    }  # fmt: skip
    results = {
        "x": 64, "v": 0, "p": 0, "slopes": 64, "changes": 0, "kept": 0, "out": 64, "gP": 0, "numel": 0,
        "bias_gradient": 0, "odds_gradient": 0, "threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        problem = _cpu.Experts(**{name: change.get(name, value) for name, value in arguments.items()})
        problem.second(**{name: change.get(name, value) for name, value in results.items()})


@pytest.mark.parametrize("change, message", [({"side": 4}, "side must be odd and at least 1, got 4"),
                                             ({"taps": 0}, "taps must be an address, got 0")])  # fmt: skip
def test_what_would_crash_averages_is_refused(change, message):
    arguments = {
        "from": 64, "to": 64, "maps": 1, "height": 5, "width": 5, "taps": 64, "side": 3, "rows_before": 0,
        "columns_before": 0, "rows_after": 0, "columns_after": 0, "threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _cpu.average_maps(**(arguments | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"contexts": 0}, "contexts must be at least 1, got 0"),
        ({"y": 0}, "y must be an address, got 0"),
        ({"dy": 64}, "changes must be an address, got 0"),
        ({"dy": 64, "changes": 64}, "dzeta must be an address, got 0"),
    ],
)
def test_what_would_crash_the_competition_is_refused(change, message):
    arguments = {
        "y": 64, "dy": 0, "p": 0, "contexts": 2, "height": 5, "width": 5, "bias": 64, "sharpness": 1.0, "rows": 64,
        "columns": 64, "slopes": 64, "changes": 0, "zeta": 0, "dzeta": 0, "threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _cpu.compete(**(arguments | change))
