"""`verify` accepts every intact network and refuses what is not a prox; so do its measurements, one by one."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.prior import measures, verification

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")


def make_conv(**options):
    return lf.ConvLPN(1, hidden=4, strides=(1, 2), squared_head=True, **options)


class PatchMean:
    """Mean of f over 8 x 8 patches at stride 4, as published code does it: counts 1, 2 and 4 from corner to interior.

    `even` pads by 4 on all sides first, so that every pixel of the image is covered four times.
    """

    def __init__(self, f, even):
        self.f, self.margin = f, 4 if even else 0

    def __call__(self, x):
        height, width, m = *x.shape[-2:], self.margin
        x = F.pad(x, (m, m + -width % 4, m, m + -height % 4))
        patches = F.unfold(x, 8, stride=4)  # [N, 64, places]
        flat = patches.mT.reshape(-1, 1, 8, 8)
        patches = self.f(flat).reshape(patches.mT.shape).mT
        total, counts = (F.fold(t, x.shape[-2:], 8, stride=4) for t in (patches, torch.ones_like(patches)))
        return (total / counts)[..., m : m + height, m : m + width]


NETWORKS = {
    "dense": lambda: (lf.MLPLPN(3), torch.randn(5, 3), None),
    "strongly convex": lambda: (lf.MLPLPN(2, alpha=0.5).double(), torch.randn(5, 2).double(), None),
    "conv": lambda: (make_conv(), torch.rand(5, 1, 12, 15), None),
    "volumes": lambda: (make_conv(ndim=3), torch.rand(2, 1, 6, 5, 7), None),
    "noise levels": lambda: (make_conv(sigma_conditional=True), torch.rand(5, 1, 12, 12), 0.05),
    "level per sample": lambda: (
        make_conv(sigma_conditional=True),
        torch.rand(5, 1, 12, 12),
        torch.tensor([0.02, 0.05, 0.1, 0.2, 0.03]),
    ),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_network_passes(make):
    model, sample, sigma = make()
    report = lf.verify(model, sample, sigma)
    assert report.all_hold, str(report)
    assert sum(p.holds is True for p in report.properties) >= 11
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["all_hold"] is True


@pytest.mark.parametrize("name", ["stages.1.core", "stages.1.head", "stages.0.head_squared"])
def test_one_negative_weight_fails(name):
    model = make_conv()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = -1e-3
    report = lf.verify(model, torch.rand(2, 1, 12, 12))
    assert [p.name for p in report.failed] == ["non-negative weights"]
    assert name in str(report) and "FAILS" in str(report)
    assert lf.verify(model.project_(), torch.rand(2, 1, 12, 12)).all_hold


def test_a_negative_weight_that_acts_is_seen_in_the_behaviour():
    """The same network without the projection: no longer convex."""
    model = lf.MLPLPN(2, hidden=6, layers=1)

    class Unprojected(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def potential(self, x):
            stages = self.inner.stages
            z = F.softplus(x @ stages[0].skip.T, 10.0)
            u = z @ stages[1].core.T + x @ stages[1].skip.T + stages[1].bias
            return F.softplus(u, 10.0) @ stages[1].head

        def forward(self, x):
            with torch.enable_grad():
                x = x if x.requires_grad else x.detach().requires_grad_()
                return torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)[0]

    with torch.no_grad():
        for stage in model.stages:
            stage.skip.normal_()
        model.stages[1].core.uniform_(0, 1)
        model.stages[1].head.uniform_(0, 1)
    sample = 0.3 * torch.randn(4, 2)
    assert lf.verify(Unprojected(), sample).all_hold
    with torch.no_grad():
        model.stages[1].head.neg_()
    failed = {p.name for p in lf.verify(Unprojected(), sample).failed}
    assert {"no negative curvature", "psi convex on segments", "prox inequality"} <= failed


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overlapping_patches_are_a_prox_only_with_even_counts(even, dtype):
    model = make_conv().to(dtype).requires_grad_(False)
    report = lf.verify(PatchMean(model, even), torch.rand(3, 1, 16, 20, dtype=dtype))
    assert report.all_hold == even, str(report)
    if not even:
        assert {"symmetric Jacobian", "path independent"} <= {p.name for p in report.failed}


def test_border_of_a_larger_image_gives_uneven_counts_away():
    """A sample of one patch hides the averaging: on it the mean is the network itself."""
    model = make_conv().double().requires_grad_(False)
    sample = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    assert [p.name for p in lf.verify(PatchMean(model, even=False), sample).failed] == ["exact at borders"]
    assert lf.verify(PatchMean(model, even=True), sample).all_hold


def test_uneven_weights_at_the_faces_of_a_volume_are_seen():
    model = make_conv(ndim=3).double().requires_grad_(False)

    def uneven(x):
        weight = torch.full_like(x[0], 0.5)
        weight[:, 1:-1, 1:-1, 1:-1] = 1
        return weight * model(x)

    report = lf.verify(uneven, torch.rand(2, 1, 6, 5, 7, dtype=torch.float64))
    assert "exact at borders" in {p.name for p in report.failed}, str(report)


def test_nan_is_not_lost_among_the_measurements():
    assert math.isnan(measures.worst([0.0, math.nan, 1.0])) and measures.worst([]) == 0
    corner = torch.ones(15, 15)
    corner[0, 0] = math.nan
    report = lf.verify(lambda x: x * corner[: x.shape[-2], : x.shape[-1]], torch.rand(2, 1, 8, 8))
    assert {"symmetric Jacobian", "monotone", "path independent", "exact at borders"} <= {p.name for p in report.failed}


def test_nan_weights_fail():
    model = lf.MLPLPN(2)
    with torch.no_grad():
        model.stages[0].skip[0, 0] = float("nan")
    report = lf.verify(model, torch.randn(3, 2))
    assert "finite weights" in [p.name for p in report.failed]
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name, value, failing", [("beta", 0.0, "smooth activation"), ("alpha", 1.0, "alpha")])
def test_a_structure_outside_the_theory_fails(name, value, failing):
    """`Spec` refuses such values; a report must not rely on that."""
    model = lf.MLPLPN(2)
    object.__setattr__(model.spec, name, value)
    assert [p.name for p in verification._structure(model) if not p.holds] == [failing]


def test_arithmetic_too_coarse_for_its_type_is_seen():
    class Coarse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = lf.MLPLPN(3)

        def forward(self, x):
            f = self.inner(x)
            return f.bfloat16().float() if f.dtype == torch.float32 else f

    assert [p.name for p in lf.verify(Coarse(), torch.randn(4, 3)).failed] == ["own arithmetic"]


def test_a_potential_of_another_map_is_seen():
    class Mismatched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = lf.MLPLPN(3)

        def forward(self, x):
            return self.inner(x)

        def potential(self, x):
            return self.inner.potential(x) + 0.1 * x.sum(1)

    assert "f is the gradient of psi" in {p.name for p in lf.verify(Mismatched(), torch.randn(4, 3)).failed}


def test_a_map_that_autograd_cannot_see_is_judged_by_its_values():
    def rotation(x):
        return torch.from_numpy(x.detach().numpy() @ [[0.8, 0.6], [-0.6, 0.8]]).to(x)

    report = lf.verify(rotation, torch.randn(4, 2))
    assert [p.name for p in report.failed] == ["path independent"]


@pytest.mark.parametrize(
    "model, sample, error",
    [
        (3, torch.rand(2, 2), TypeError),
        (torch.sin, [1.0], TypeError),
        (torch.sin, torch.ones(2, 2, dtype=torch.int64), TypeError),
        (torch.sin, torch.rand(0, 2), ValueError),
        (torch.sin, torch.tensor([[float("nan")]]), ValueError),
    ],
)
def test_wrong_arguments_are_named(model, sample, error):
    with pytest.raises(error, match="model" if model == 3 else "sample"):
        lf.verify(model, sample)


# ---- the measurements, on linear maps whose answer is known


def linear(matrix):
    return lambda x: x @ torch.tensor(matrix, dtype=torch.float64).T


def test_measures_of_linear_maps():
    x, v, w, u = torch.randn(4, 5, 2, dtype=torch.float64)
    symmetric, indefinite, skew = ([[2.0, 1.0], [1.0, 3.0]], [[1.0, 0.0], [0.0, -1.0]], [[1.0, 1.0], [-1.0, 1.0]])
    assert measures.asymmetry(linear(symmetric), x, v, w) < 1e-14 < 0.05 < measures.asymmetry(linear(skew), x, v, w)
    assert measures.negative_curvature(linear(symmetric), x, v) == 0
    assert measures.negative_curvature(linear(indefinite), x, v) > 0
    assert measures.non_monotony(linear(symmetric), x, v) == 0 < measures.non_monotony(linear(indefinite), x, v)
    assert measures.circulation(linear(symmetric), x, v, w)[0] < 1e-14
    around, quadrature = measures.circulation(linear(skew), x, v, w)
    assert around > 0.05 and quadrature < 1e-14
    slope = measures.steepest_slope(linear(symmetric), x, v)
    assert slope == pytest.approx(float(torch.linalg.eigvalsh(torch.tensor(symmetric)).max()), rel=1e-6)

    def psi(t):
        return 0.5 * (t * linear(symmetric)(t)).sum(1)

    assert measures.gradient_mismatch(linear(symmetric), psi, x, v, 1e-4) < 1e-8
    assert measures.gradient_mismatch(linear(indefinite), psi, x, v, 1e-4) > 0.1
    assert measures.non_convexity(psi, x, v) == 0 < measures.non_convexity(lambda t: -psi(t), x, v)
    assert measures.suboptimality(linear(symmetric), psi, x, [v, w, u]) < 1e-15
    assert measures.suboptimality(linear(symmetric), lambda t: 0.2 * psi(t), x, [v, w, u]) > 1e-3


# ---- command line


def test_the_command_says_what_fails(tmp_path, capsys):
    path = lf.save(make_conv(sigma_conditional=True), tmp_path / "model.safetensors")
    assert cli.main(["verify", str(path)]) == 0
    assert "all properties hold" in capsys.readouterr().out
    assert cli.main(["verify", str(path), "--json", "--sigma", "0.02"]) == 0
    assert json.loads(capsys.readouterr().out)["all_hold"] is True

    bad = lf.MLPLPN(2)
    lf.save(bad, path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["stages.2.core"][0, 0] = -1
    save_file(tensors, path, header)
    assert cli.main(["verify", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["all_hold"] is False and "stages.2.core" in report["properties"][0]["detail"]
    assert cli.main(["verify", str(tmp_path / "absent.safetensors")]) == 2
    assert "existing file" in capsys.readouterr().err
