"""ProjectedAdam walks where torch.optim.Adam and project_() walk."""

import copy

import pytest
import torch
from cases import Case, on_threads

import lpn_fast as lf
from lpn_fast.optim import ProjectedAdam
from lpn_fast.optim.projected_adam import SERIAL
from lpn_fast.training import state


def drawn(name="dense-heads", dtype=torch.float32) -> lf.LPN:
    """A network with weights small enough that steps of 0.05 meet the constraint."""
    model = Case(name, dtype).model
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    return model


def give_gradients(models, generator):
    for group in zip(*(m.parameters() for m in models), strict=True):
        gradient = torch.randn(group[0].shape, generator=generator, dtype=group[0].dtype)
        for p in group:
            p.grad = gradient.clone()


def assert_equal(ours, theirs):
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["dense-heads", "conv-mixed"])
def test_every_step_is_adams_and_the_projection(betas, dtype, name):
    ours, theirs = drawn(name, dtype), drawn(name, dtype)
    mine = ProjectedAdam(ours, lr=0.05, betas=betas)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05, betas=betas, fused=True)
    generator, projected = torch.Generator().manual_seed(1), 0
    for _ in range(30):
        give_gradients((ours, theirs), generator)
        mine.step()
        adam.step()
        projected += sum(int((p < 0).sum()) for n, p in theirs.named_parameters() if "head" in n or "core" in n)
        theirs.project_()
        assert_equal(ours, theirs)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(mine.state[p][key], adam.state[q][key])
    assert projected > 0


@pytest.mark.parametrize("stored", ["contiguous", "channels-last", "with gaps"])
@pytest.mark.parametrize("arrives", ["alike", "transposed"])
def test_a_step_does_not_depend_on_how_tensors_lie_in_memory(stored, arrives):
    """torch's fused step indexes parameter, gradient and moments alike, whatever their strides."""
    start, gradients = torch.rand(4, 3, 5, 5), torch.randn(4, 4, 3, 5, 5)
    plain, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    if stored == "channels-last":
        other.data = start.to(memory_format=torch.channels_last)
    elif stored == "with gaps":
        other.data = torch.stack((start, start), -1)[..., 0]
    adam, optimizer = torch.optim.Adam([plain], lr=0.05), ProjectedAdam([other], [True], lr=0.05)
    for step, gradient in enumerate(gradients):
        if step == 2:  # and not on how the moments lie that another optimizer left
            optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
        plain.grad = gradient.clone()
        like = gradient.mT.contiguous().mT if arrives == "transposed" else other
        other.grad = torch.empty_strided(like.shape, like.stride()).copy_(gradient)
        adam.step()
        optimizer.step()
        torch._foreach_clamp_min_([plain.data], 0.0)
        assert torch.allclose(plain, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("entries, threads", [(SERIAL, 1), (SERIAL + 1, 2)])
def test_threads_meet_only_where_there_is_enough_to_do(monkeypatch, entries, threads):
    seen, kernel = [], torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **k: seen.append(torch.get_num_threads()) or kernel(*a, **k))
    p = torch.nn.Parameter(torch.zeros(entries))
    p.grad = torch.ones(entries)
    with on_threads(2):
        ProjectedAdam([p], [True]).step()
        assert seen == [threads] and torch.get_num_threads() == 2


def test_nan_is_seen_and_a_parameter_without_gradient_stays():
    p, q = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = ProjectedAdam([p, q], [True, True], lr=0.1)
    p.grad = torch.tensor([1.0, float("nan"), -1.0, 0.0, 1.0])
    optimizer.step()
    assert p.isnan().tolist() == [False, True, False, False, False]
    assert torch.equal(q, torch.ones(5)) and q not in optimizer.state


def test_state_is_adams_both_ways():
    ours, theirs = drawn(), drawn()
    mine, adam = ProjectedAdam(ours, lr=0.05), torch.optim.Adam(theirs.parameters(), lr=0.05, fused=True)
    generator = torch.Generator().manual_seed(6)
    give_gradients((ours, theirs), generator)
    mine.step()
    adam.step()
    theirs.project_()
    assert set(mine.state_dict()["state"][0]) == set(adam.state_dict()["state"][0])
    swapped, adam_swapped = ProjectedAdam(ours), torch.optim.Adam(theirs.parameters())
    swapped.load_state_dict(copy.deepcopy(adam.state_dict()))
    adam_swapped.load_state_dict(copy.deepcopy(mine.state_dict()))
    give_gradients((ours, theirs), generator)
    swapped.step()
    adam_swapped.step()
    theirs.project_()
    assert_equal(ours, theirs)


def test_resume_file_restores_it(tmp_path):
    model = drawn()
    optimizer, generator = ProjectedAdam(model, lr=0.05), torch.Generator().manual_seed(7)
    give_gradients((model,), generator)
    optimizer.step()
    state.write(tmp_path / "resume", state.take(model, optimizer, generator, {"step": 1}))
    again = drawn()
    restored, other = ProjectedAdam(again, lr=0.05), torch.Generator()
    state.restore(state.read(tmp_path / "resume"), again, restored, other)
    for m, o, g in ((model, optimizer, generator), (again, restored, other)):
        give_gradients((m,), g)
        o.step()
    assert_equal(model, again)


def test_autograd_notices_the_step():
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    ProjectedAdam([p], [True]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closures_and_hooks_run_once():
    p = torch.nn.Parameter(torch.ones(3))
    torch.optim.Adam([p])  # torch wraps the step of a class that has been used
    optimizer, calls = ProjectedAdam([p], [True]), []
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))

    def closure():
        optimizer.zero_grad()
        loss = p.sum()
        loss.backward()
        calls.append("closure")
        return loss

    assert optimizer.step(closure).item() == 3 and calls == ["closure", "hook"]


def test_bad_arguments_say_what_is_wanted():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="one flag for each of 1 parameters, got 2"):
        ProjectedAdam([p], [True, False])
    with pytest.raises(ValueError, match="got none"):
        ProjectedAdam([p])
    with pytest.raises(ValueError, match="give an LPN alone"):
        ProjectedAdam(torch.nn.Linear(2, 2))
    optimizer = ProjectedAdam([p], [True])
    with pytest.raises(ValueError, match="one parameter group"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
