"""Whoever looks inside a call (tracers, compilers, modes, hooks) gets what eager evaluation gives."""

import io

import pytest
import torch
from cases import Case, relative
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

import lpn_fast as lf

NETWORKS = ["dense", "conv", "conv-conditional", "frame", "mixture", "ridge", "volume"]
ROUNDING = 1e-6  # compilers may order sums anew


class Called(torch.nn.Module):
    """A network at its noise level, as a function of x alone."""

    def __init__(self, case: Case):
        super().__init__()
        self.model = case.model
        self.sigma = None if case.sigma is None else 0.1

    def forward(self, x):
        return self.model(x, self.sigma)


@pytest.fixture(params=NETWORKS)
def called(request):
    """(the network, an input, another one), float32."""
    case = Case(request.param, torch.float32)
    return Called(case), case.x, case.v


def traced(function, x):
    return torch.jit.trace(function, (x,), check_trace=False)


def exported(function, x):
    return torch.export.export(function, (x,)).module()


def leaf(function, x):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, lf.LPN)

    return torch.fx.GraphModule(function, Tracer().trace(function))


def recorded(mode):
    """`mode` as a tracer: keeps every call it sees, and calls them anew with another x."""

    class Recorder(mode):
        def record(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            self.calls.append((function, arguments, keywords or {}, out))
            return out

        __torch_function__ = __torch_dispatch__ = record

    def trace(function, x):
        with Recorder() as recorder:
            recorder.calls = []
            result = function(x)

        def replay(other):
            made = {id(x): other}
            for call, arguments, keywords, out in recorder.calls:
                new = tree_map_only(torch.Tensor, lambda t, made=made: made.get(id(t), t), (arguments, keywords))
                again = call(*new[0], **new[1])
                made |= {id(a): b for a, b in zip(tree_leaves(out), tree_leaves(again), strict=True)}
            return made[id(result)]

        return replay

    return trace


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize(
    "trace",
    [traced, exported, lambda f, x: make_fx(f)(x), leaf, recorded(TorchFunctionMode), recorded(TorchDispatchMode)],
    ids=["jit", "export", "make_fx", "fx", "function-mode", "dispatch-mode"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_what_was_traced_computes_what_eager_evaluation_does(called, trace, recording, frozen):
    function, x, other = called
    function.requires_grad_(not frozen)
    with torch.set_grad_enabled(recording):
        again = trace(function, x)
        assert relative(again(other), function(other)) <= ROUNDING


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@torch.no_grad()
def test_a_trace_can_be_saved_and_follows_its_parameters(called):
    function, x, other = called
    file = io.BytesIO()
    torch.jit.save(traced(function, x), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert relative(loaded(other), function(other)) <= ROUNDING
    negative = {name: -t for name, t in function.state_dict().items()}
    function.load_state_dict(negative)
    loaded.load_state_dict(negative, strict=False)  # to a trace buffers that are not saved belong too
    assert relative(loaded(other), function(other)) <= ROUNDING, "weights are projected in the trace too"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_gradients_pass_through_a_trace(called):
    function, x, other = called
    other.requires_grad_()
    variables = [other, *function.parameters()]
    want = torch.autograd.grad(function(other).square().sum(), variables)
    got = torch.autograd.grad(traced(function, x)(other).square().sum(), variables)
    assert all(relative(a, b) <= 10 * ROUNDING for a, b in zip(got, want, strict=True) if b.any())


def test_transforms_of_torch_func_compute_what_eager_evaluation_does(called):
    function, x, direction = called
    with torch.no_grad():
        want = function(x)
    hv = function.model.hvp(x, direction, function.sigma)
    assert relative(torch.vmap(lambda t: function(t[None])[0])(x), want) <= ROUNDING
    f, pushed = torch.func.jvp(function, (x,), (direction,))
    assert relative(f, want) <= ROUNDING and relative(pushed, hv) <= 10 * ROUNDING
    f, pullback = torch.func.vjp(function, x)
    assert relative(f, want) <= ROUNDING and relative(pullback(direction)[0], hv) <= 10 * ROUNDING


def test_fake_tensors_give_shapes_and_read_nothing(called):
    function, x, _ = called
    for recording in (True, False):
        with torch.set_grad_enabled(recording), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            f = function(mode.from_tensor(x))
        assert (type(f).__name__, f.shape, f.dtype) == ("FakeTensor", x.shape, x.dtype)
    assert torch.isfinite(function(x)).all(), "nothing fake is left behind"


def test_inference_mode_leaves_nothing_behind_that_training_cannot_use(called):
    function, x, _ = called
    with torch.inference_mode():
        f = function(x)
    again = function(x)
    again.sum().backward()
    assert relative(f, again) <= ROUNDING


def test_what_is_saved_for_backward_goes_through_the_hooks(called):
    """Hooks that keep copies, as offloading does, and recomputation give the same gradients."""
    function, x, _ = called
    x.requires_grad_()
    variables = [x, *function.parameters()]
    want = torch.autograd.grad(function(x).square().sum(), variables)
    kept = []

    def keep(t):
        kept.append(t.clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(keep, kept.__getitem__):
        f = function(x)
    assert kept
    again = checkpoint(function, x, use_reentrant=False)
    for out in (f, again):
        got = torch.autograd.grad(out.square().sum(), variables)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5 * b.abs().max()) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda: lf.MLPLPN(2, hidden=9, layers=2), (3, 2)),
        (lambda: lf.ConvLPN(1, hidden=7), (2, 1, 9, 11)),
        (lambda: lf.FrameLPN(1, kernel=3, gates=((1, 1, 6),)), (2, 1, 9, 11)),
        (lambda: lf.MixtureLPN(1, kernel=3, experts=5), (2, 1, 9, 11)),
        (lambda: lf.RidgeLPN(1, pairs=5, kernel=3, sigma_conditional=False), (2, 1, 9, 11)),
    ],
)
def test_a_default_device_is_not_that_of_a_model(build, shape, recording):
    """Tables that are cached at the first call of an architecture belong to the CPU whatever the default device is."""
    model, x = build(), torch.rand(shape)
    sigma = 0.1 if model.is_noise_conditional else None
    with torch.set_grad_enabled(recording):
        with torch.device("meta"):
            psi, f = model.potential_and_prox(x, sigma)
            hv = model.hvp(x, x, sigma)
        if recording:
            with torch.device("meta"):
                (psi.sum() + f.sum()).backward()
        again = model.potential_and_prox(x, sigma)
    assert torch.equal(psi, again[0]) and torch.equal(f, again[1])
    assert torch.equal(hv, model.hvp(x, x, sigma))
