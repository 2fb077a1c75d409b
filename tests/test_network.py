"""A network as one node of the graph: the numbers of pack and evaluate one after the other, however it is asked."""

import pytest
import torch
from cases import FAMILIES, Case, on_threads, relative
from torch.nn.utils import parametrize

import lpn_fast as lf
from lpn_fast.ops import functions, network, packing

NAMES = ["dense-heads", "dense-1d", "conv-mixed", "conv-conditional"]


def gradients(outputs, cotangents, model, x):
    return torch.autograd.grad(outputs, [x, *model.parameters()], cotangents, allow_unused=True)


def composed(case, x):
    """psi and f by the functions one after the other."""
    model = case.model
    features = model._checked(x, case.sigma)[1]
    return functions.evaluate(model.spec, x, model.packed(), features, True)


def push_below_zero(model):
    """Half of the non-negative weights become negative, so that the rule has something to decide."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("core", "head", "head_squared"):
                p.sub_(p.median())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_pack_and_evaluate(name, dtype):
    case = Case(name, dtype)
    push_below_zero(case.model)
    x = case.x.requires_grad_()
    psi, f = case.model.potential_and_prox(x, case.sigma)
    assert type(f.grad_fn).__name__ == "_NetworkBackward"
    want_psi, want_f = composed(case, x)
    rounding = 8 * torch.finfo(dtype).eps  # libraries may choose another order of sums for other addresses
    assert relative(psi, want_psi) <= rounding and relative(f, want_f) <= rounding
    ours = gradients((psi, f), (case.p, case.v), case.model, x)
    theirs = gradients((want_psi, want_f), (case.p, case.v), case.model, x)
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        assert relative(ours_one, theirs_one) <= 10 * rounding
    flat = torch.cat([g.flatten() for g in ours[1:]])
    assert 0 < int((flat == 0).sum()) < flat.numel()


@pytest.mark.parametrize("needed", ["x", "parameters", "one parameter"])
def test_only_what_is_asked_for_gets_a_gradient(needed):
    case = Case("dense", torch.float32)
    model = case.model.requires_grad_(needed == "parameters")
    model.stages[1].core.requires_grad_(needed != "x")
    x = case.x.requires_grad_(needed == "x")
    model(x).square().sum().backward()
    assert (x.grad is not None) == (needed == "x")
    assert (model.stages[1].core.grad is not None) == (needed != "x")
    assert (model.stages[0].skip.grad is not None) == (needed == "parameters")
    assert not model.requires_grad_(False)(x.detach()).requires_grad


def test_gradients_are_differentiable_again():
    case = Case("dense-heads")
    push_below_zero(case.model)
    model, x = case.model, case.x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: model(t, case.sigma), x)

    def penalised(evaluate):
        psi, f = evaluate()
        first = torch.autograd.grad((psi, f), [x, *model.parameters()], (case.p, case.v), create_graph=True)
        return gradients(sum(g.square().sum() for g in first), None, model, x)

    ours = penalised(lambda: model.potential_and_prox(x, case.sigma))
    theirs = penalised(lambda: composed(case, x))
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        assert torch.allclose(ours_one, theirs_one, rtol=1e-12, atol=1e-12)


def test_a_graph_of_the_gradient_needs_the_parameters_of_the_forward_pass():
    case = Case("dense")
    f = case.model(case.x)
    with torch.no_grad():
        case.model.stages[1].core.add_(1)
    first = torch.autograd.grad(f.sum(), list(case.model.parameters()), retain_graph=True)
    assert all(torch.isfinite(g).all() for g in first), "P was kept, so the plain gradient is still there"
    with pytest.raises(RuntimeError, match="a parameter was changed after the forward pass"):
        torch.autograd.grad(f.sum(), list(case.model.parameters()), create_graph=True)


def test_hook_sees_the_gradient_of_the_packed_vector_before_the_rule():
    case = Case("dense", torch.float32)
    push_below_zero(case.model)
    model, seen = case.model, []
    core = model.stages[1].core

    def negate(gradient):
        seen.append(gradient.clone())
        return -gradient

    for evaluate in (model, lambda x: composed(case, x)[1]):
        model.packed_hook = None
        (plain,) = torch.autograd.grad(evaluate(case.x), core, case.v)
        model.packed_hook = negate
        (hooked,) = torch.autograd.grad(evaluate(case.x), core, case.v)
        clamped = core <= 0
        # the rule keeps negative gradients of clamped weights, and it saw the negated gradient
        assert (hooked[clamped] <= 0).all() and (hooked[clamped] < 0).any()
        assert torch.equal(hooked[~clamped], -plain[~clamped])
    # not bit for bit: one of them keeps the activations, the other computes them again
    assert len(seen) == 2 and torch.allclose(*seen, rtol=1e-5, atol=1e-6 * seen[0].abs().max().item())


def test_parametrized_weights_are_evaluated_as_they_read():
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    case = Case("dense", torch.float32)
    expected = Case("dense", torch.float32).model
    with torch.no_grad():
        expected.stages[1].core.mul_(2)
    parametrize.register_parametrization(case.model.stages[1], "core", Doubled())
    f = case.model(case.x)
    assert torch.equal(f, expected(case.x))
    f.sum().backward()
    assert case.model.stages[1].parametrizations.core.original.grad is not None
    with torch.no_grad():
        assert torch.equal(case.model(case.x), f)


def test_a_stage_may_be_exchanged():
    one, two = Case("dense", torch.float32).model, lf.MLPLPN(3, hidden=20, layers=3)
    x = torch.randn(4, 3)
    with torch.no_grad():
        one(x)
        one.stages[1] = two.stages[1]
        two.load_state_dict(one.state_dict())
        assert torch.equal(one(x), two(x))


@pytest.mark.skipif(packing._cpu is None, reason="the compiled module is absent")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wide", [False, True])
def test_packing_in_cpp_is_the_projection_bit_for_bit(wide, threads):
    model = lf.MLPLPN(5, hidden=400, layers=2) if wide else Case("dense-heads", torch.float32).model
    core, mask = model.stages[1].core, model._constrained
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        core[0, :4] = torch.tensor([0.0, -0.0, float("nan"), -float("inf")])
        with on_threads(threads):
            packed = model.packed()
            g = torch.randn_like(packed)
            g[:3] = torch.tensor([0.0, -0.0, float("nan")])
            flat = packing._flat(model._in_order())
            ours = packing.projected_gradient(model.spec, g.clone(), packed, mask)
        wanted = packing._projected(flat, mask)
    assert torch.equal(packed.view(torch.int32), wanted.view(torch.int32))
    rule = packing._gradient_by_the_rule(g, flat, mask)
    assert torch.equal(ours.view(torch.int32), rule.view(torch.int32))


def test_layouts_that_cpp_cannot_read_are_packed_all_the_same():
    model = lf.MLPLPN(3, hidden=6, layers=1)
    expected = model.packed().detach()
    with torch.no_grad():
        model.stages[1].core = torch.nn.Parameter(model.stages[1].core.t().contiguous().t())
        assert not model.stages[1].core.is_contiguous() and torch.equal(model.packed(), expected)
        fewer = network.evaluate(model.spec, torch.zeros(2, 3), model._in_order(), model._constrained, None, False)[1]
        assert torch.equal(fewer, model(torch.zeros(2, 3)))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_projection_leaves_nothing_negative_that_must_not_be(name):
    model = Case(name).model
    for parameter in model.parameters():
        parameter.copy_(-parameter.abs() - 1)
    model.project_()
    flat = torch.cat([parameter.flatten() for parameter in model._in_order()])
    assert (flat[model._constrained] >= 0).all()
