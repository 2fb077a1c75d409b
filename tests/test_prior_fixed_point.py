"""The fixed-point iteration: where the Lipschitz constant allows a unit step, where it does not, and outside."""

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.ops.solve import Equation, Verdict
from lpn_fast.ops.solve.fixed_point import FixedPoint

pytestmark = pytest.mark.usefixtures("seed_zero")


def make_quadratic(slopes):
    """psi = 1/2 |K x|^2 with K diagonal: f(x) = slopes x exactly, by way of a spec with no other term."""
    dim = len(slopes)
    spec = Spec("dense", dim, (Stage(1, heads=("linear",)),), 10.0, 0.0, quadratic=dim)
    model = lf.LPN(spec).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.quadratic.copy_(torch.diag(torch.tensor(slopes, dtype=torch.float64).sqrt()))
    return model.requires_grad_(False)


def steps_of(model, x, monkeypatch):
    """(Inversion, least step s that any sample was left with)."""
    seen = []
    step = FixedPoint.step

    def watched(self, *arguments):
        result = step(self, *arguments)
        seen.append(self.s.min().item())
        return result

    monkeypatch.setattr(FixedPoint, "step", watched)
    return lf.invert(model, x, method="fixed-point", tol=1e-9, homotopy=False), min(seen)


def test_the_unit_step_is_kept_where_the_constant_is_below_two(monkeypatch):
    x = torch.randn(5, 3, dtype=torch.float64)
    result, least = steps_of(make_quadratic([0.3, 1.0, 1.9]), x, monkeypatch)
    assert result.converged.all() and least == 1.0
    truth = x / torch.tensor([0.3, 1.0, 1.9], dtype=torch.float64)
    assert torch.allclose(result.preimage, truth, atol=1e-7)


def test_a_larger_constant_is_found_out_by_proof(monkeypatch):
    x = torch.randn(5, 2, dtype=torch.float64)
    result, least = steps_of(make_quadratic([1.0, 9.0]), x, monkeypatch)
    assert result.converged.all()
    assert least in (0.125, 0.25)  # at most 2 / 9 suffices, and a quarter is refused only if it was seen to fail


def test_it_agrees_with_the_other_methods_on_a_network():
    model = lf.MLPLPN(3, hidden=12, layers=2, alpha=0.2).double().requires_grad_(False)
    x = torch.randn(20, 3, dtype=torch.float64)
    ours = lf.invert(model, x, method="fixed-point", tol=1e-9)
    assert ours.converged.all()
    assert torch.allclose(ours.preimage, lf.invert(model, x, tol=1e-9).preimage, atol=1e-6)


def test_companions_do_not_change_a_sample():
    model = lf.MLPLPN(3, hidden=12, layers=2, alpha=0.2).double().requires_grad_(False)
    x = torch.randn(4, 3, dtype=torch.float64) * torch.tensor([[1.0], [1.0], [50.0], [1.0]])
    together = lf.invert(model, x, method="fixed-point", tol=1e-10).preimage
    alone = torch.cat([lf.invert(model, x[i : i + 1], method="fixed-point", tol=1e-10).preimage for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-6)


def test_outside_the_range_and_nan_end_with_their_verdicts():
    model = lf.LPN(Spec("dense", 1, (Stage(1, heads=("linear",)),), 10.0)).double().requires_grad_(False)
    with torch.no_grad():
        model.stages[0].skip.fill_(1.0)
        model.stages[0].bias.zero_()
        model.stages[0].head.fill_(1.0)  # f = sigmoid(10 u): the range is (0, 1)
    x = torch.tensor([[0.4], [1.5], [float("nan")]], dtype=torch.float64)
    result = lf.invert(model, x, method="fixed-point", homotopy=False)
    assert result.verdict[[0, 2]].tolist() == [Verdict.CONVERGED, Verdict.INVALID]
    assert result.verdict[1] in (Verdict.STALLED, Verdict.OUTSIDE)
    assert result.iterations[1] < FixedPoint.max_iter


def test_it_evaluates_once_per_step(monkeypatch):
    evaluated = []
    at = Equation.at
    monkeypatch.setattr(Equation, "at", lambda self, u: evaluated.append(len(u)) or at(self, u))
    result = lf.invert(make_quadratic([0.5]), torch.ones(7, 1, dtype=torch.float64), method="fixed-point")
    assert sum(evaluated) == int((result.iterations + 1).sum())
