"""ProjectedAdam walks where torch.optim.Adam and project_() walk, in C++ and in the foreach path."""

import copy

import pytest
import torch
from cases import Case

import lpn_fast as lf
from lpn_fast.optim import ProjectedAdam, projected_adam
from lpn_fast.training import state

compiled = pytest.mark.skipif(
    not hasattr(projected_adam._cpu, "adam_step"), reason="the compiled module is absent or older than this file"
)
PATHS = [pytest.param("fused", marks=compiled), "foreach"]


@pytest.fixture
def path(request, monkeypatch):
    """The C++ call, or the foreach path as on a machine without the compiled module."""
    if request.param == "foreach":
        monkeypatch.setattr(projected_adam, "_cpu", None)
    return request.param


LARGEST_STEP = 4.0  # in units of lr: |m| / c1 over sqrt(v) / c2, for the gradients drawn here


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


def assert_steps_agree(ours, theirs, before, lr, exact):
    """Bit for bit, or to one unit in the last place: of the value, and 2 of the step, whose root may differ by one."""
    for p, q, start in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        if exact:
            assert torch.equal(p, q)
        else:
            scale = torch.maximum(start.abs(), q.abs()) + 2 * lr * LARGEST_STEP
            assert ((p - q).abs() <= torch.finfo(p.dtype).eps * scale).all()


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.7)])
@pytest.mark.parametrize("name", ["dense-heads", "conv-mixed"])
def test_every_step_is_adams_and_the_projection(path, betas, name):
    """From a common state each time, so that each step is judged by itself."""
    ours, theirs = drawn(name), drawn(name)
    mine = ProjectedAdam(ours, lr=0.05, betas=betas)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05, betas=betas)
    generator, projected = torch.Generator().manual_seed(1), 0
    for _ in range(30):
        before = [p.detach().clone() for p in theirs.parameters()]
        give_gradients((ours, theirs), generator)
        mine.step()
        adam.step()
        projected += sum(int((p < 0).sum()) for n, p in theirs.named_parameters() if "head" in n or "core" in n)
        theirs.project_()
        assert_steps_agree(ours, theirs, before, 0.05, exact=path == "foreach")
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(mine.state[p][key], adam.state[q][key])
        with torch.no_grad():
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                p.copy_(q)
    assert projected > 0


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_long_trajectories_stay_together(path):
    ours, theirs = drawn(), drawn()
    mine, adam = ProjectedAdam(ours, lr=1e-3), torch.optim.Adam(theirs.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        give_gradients((ours, theirs), generator)
        mine.step()
        adam.step()
        theirs.project_()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=200 * torch.finfo(p.dtype).eps * max(1e-3, q.abs().max().item()))


def test_float64_takes_the_foreach_path_and_is_adam_exactly():
    ours, theirs = drawn(dtype=torch.float64), drawn(dtype=torch.float64)
    mine, adam = ProjectedAdam(ours, lr=0.05), torch.optim.Adam(theirs.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        give_gradients((ours, theirs), generator)
        mine.step()
        adam.step()
        theirs.project_()
    assert_steps_agree(ours, theirs, list(theirs.parameters()), 0.05, exact=True)


@compiled
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 16384, 16385, 100_003])
def test_any_size_and_number_of_threads_gives_the_same_bits(size, threads):
    torch.manual_seed(size)
    start, gradient = torch.randn(size), torch.randn(size)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            p = torch.nn.Parameter(start.clone())
            optimizer = ProjectedAdam([p], [True], lr=0.1)
            for _ in range(3):
                p.grad = gradient.clone()
                optimizer.step()
            results.append(p.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results) and (results[0] >= 0).all()


@compiled
@pytest.mark.parametrize("isa", projected_adam._cpu.isas() if projected_adam._cpu else [])
def test_every_instruction_set_steps_alike(isa):
    active = projected_adam._cpu.isa()
    torch.manual_seed(4)
    start, gradients = torch.randn(1003), torch.randn(5, 1003)
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    mine, truth = ProjectedAdam([p], [False], lr=0.01), torch.optim.Adam([q], lr=0.01)
    try:
        projected_adam._cpu.set_isa(isa)
        for gradient in gradients:
            p.grad, q.grad = gradient.clone(), gradient.double()
            mine.step()
            truth.step()
    finally:
        projected_adam._cpu.set_isa(active)
    assert (p - q).abs().max() < 1e-6


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_nan_is_seen_and_a_parameter_without_gradient_stays(path):
    p, q = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = ProjectedAdam([p, q], [True, True], lr=0.1)
    p.grad = torch.tensor([1.0, float("nan"), -1.0, 0.0, 1.0])
    optimizer.step()
    assert p.isnan().tolist() == [False, True, False, False, False]
    assert torch.equal(q, torch.ones(5)) and q not in optimizer.state


@compiled
def test_layouts_that_differ_go_the_other_way_and_agree():
    torch.manual_seed(5)
    start, gradient = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter(start.clone())
        p.grad = gradient.contiguous(memory_format=layout)
        ProjectedAdam([p], [True], lr=0.1).step()
        results.append(p.detach())
    assert torch.allclose(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_state_is_adams_both_ways(path):
    ours, theirs = drawn(), drawn()
    mine, adam = ProjectedAdam(ours, lr=0.05), torch.optim.Adam(theirs.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(6)
    give_gradients((ours, theirs), generator)
    mine.step()
    adam.step()
    theirs.project_()
    assert set(mine.state_dict()["state"][0]) == set(adam.state_dict()["state"][0])
    swapped, adam_swapped = ProjectedAdam(ours), torch.optim.Adam(theirs.parameters())
    swapped.load_state_dict(copy.deepcopy(adam.state_dict()))
    adam_swapped.load_state_dict(copy.deepcopy(mine.state_dict()))
    before = [p.detach().clone() for p in theirs.parameters()]
    give_gradients((ours, theirs), generator)
    swapped.step()
    adam_swapped.step()
    theirs.project_()
    for p, q, start in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6 * (q - start).abs().max().item())


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
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_autograd_notices_the_step(path):
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    ProjectedAdam([p], [True]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closures_and_hooks_run_once():
    p = torch.nn.Parameter(torch.ones(3))
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
    optimizer.param_groups[0]["weight_decay"] = 0.1
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match="no weight_decay, got 0.1"):
        optimizer.step()
