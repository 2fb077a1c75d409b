"""GPU backends on a device that is not there: what they allocate, where they launch, and that nothing waits.

Tensors have no data, so nothing is computed; kernels are stood in for by recorders. What these tests see would
otherwise show on a machine with a GPU or two only: a copy from the host inside a captured call, work for device 1
while device 0 is current, a workspace on the wrong device.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from cases import square
from no_waiting import NoWaiting, moved
from torch._subclasses.fake_tensor import FakeTensorMode

import lpn_fast as lf
from lpn_fast.algebra.patches import Patches
from lpn_fast.ops import registry
from lpn_fast.ops.backends import cuda as cuda_backend

DEVICE = "meta"  # with autograd, where fake tensors of "cuda" have none
NETWORKS = {
    "conv": (lambda: lf.ConvLPN(1, hidden=256, sigma_conditional=True), (2, 1, 16, 24)),  # as in the launch table: TMA
    "frame": (lambda: lf.FrameLPN(1, kernel=3, gates=((1, 1, 5),)), (2, 1, 9, 10)),
    "mixture": (lambda: lf.MixtureLPN(1, kernel=3, experts=5), (2, 1, 9, 10)),
    "mirrored": (lambda: lf.MixtureLPN(1, kernel=3, experts=5, border="mirror"), (2, 1, 9, 10)),
    "square": (lambda: square("conv"), (2, 2, 9, 10)),
    "mnist": (lambda: lf.paper_network("mnist"), (2, 1, 28, 28)),
}  # fmt: skip
each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def launches(monkeypatch):
    """The Triton kernels as recorders: (name, device that was current) of every launch."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from lpn_fast.kernels.triton import assemble, correlate, elementwise, frame, frame_gradient, gradient, units
    from lpn_fast.ops.backends.triton import device as device_facts

    found, current = [], ["cuda:0"]

    @contextlib.contextmanager
    def device_of(t):
        current.append(str(t.device))
        yield
        current.pop()

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            assert all(side > 0 for side in grid)
            return self.launch

        def launch(self, *operands, **constants):
            tensors = [getattr(t, "base", t) for t in operands]
            assert {str(t.device) for t in tensors if isinstance(t, torch.Tensor)} == {DEVICE}
            found.append((self.name, current[-1]))

    for module in (assemble, correlate, elementwise, frame, frame_gradient, gradient, units):
        name = module.__name__.rsplit(".", 1)[-1]
        monkeypatch.setattr(module, f"{name}_kernel", Recorder(name))
        monkeypatch.setattr(module, "device_of", device_of)
    monkeypatch.setattr(frame, "fold_kernel", Recorder("fold"))
    monkeypatch.setattr(device_facts, "facts", lambda device: (90, 132))
    monkeypatch.setattr(device_facts, "name", lambda device: "a device that is not there")
    return found


@each_network
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_triton_launches_on_the_tensors_device_and_nothing_waits(launches, monkeypatch, name, precision):
    from lpn_fast.ops.backends import torch as plain
    from lpn_fast.ops.backends.triton import TritonBackend

    monkeypatch.setattr(plain, "products", lambda *_: contextlib.nullcontext())  # settings of a library, if it is here
    build, shape = NETWORKS[name]
    spec, backend = build().spec, TritonBackend()
    size = sum(p.numel() for p in build().parameters())
    with torch.no_grad():
        x, v, packed, p = (torch.empty(s, device=DEVICE) for s in (shape, shape, size, shape[0]))
        features = torch.empty(shape[0], len(spec.noise_levels), device=DEVICE) if spec.noise_levels else None
        call = (spec, x, packed, features)
        if spec.is_mirrored:  # the tables of a size come from the host once
            backend.evaluate(*call, False, False, precision)
        with NoWaiting() as watched:
            psi, f, tape = backend.evaluate(*call, True, True, precision)
            backend.evaluate(*call, False, False, precision)
            hv = backend.hvp(*call, v, tape, precision)
            gx, gP = backend.vjp(*call, p, v, [], precision)
        assert [t.shape for t in (psi, f, hv, gx, gP)] == [p.shape, x.shape, x.shape, x.shape, packed.shape]
        assert watched.devices == {DEVICE}
    assert launches and {device for _, device in launches} == {DEVICE}
    found = {kernel for kernel, _ in launches}
    if name in ("frame", "mixture", "mirrored"):
        assert found == {"frame", "fold", "frame_gradient", "gradient"} and not tape
    else:
        assert found >= {"assemble", "correlate", "gradient"} | ({"units"} if precision == "fp16" else set())


def test_a_check_can_have_pointers_in_the_place_of_the_copy_engine(launches):
    from lpn_fast.ops.backends.triton import TritonBackend, device

    model = lf.ConvLPN(1, hidden=256)
    size = sum(p.numel() for p in model.parameters())
    x, packed = torch.empty(1, 1, 256, 256, device=DEVICE), torch.empty(size, device=DEVICE)
    (launched,) = TritonBackend().alternatives().values()
    with torch.no_grad():
        maps = TritonBackend()._sweeps(model.spec, x, packed, None, "fp16").maps
        assert maps.config(2, maps.empty(2)).tma
        with launched:
            assert not maps.config(2, maps.empty(2)).tma
        assert maps.config(2, maps.empty(2)).tma and device.tma_is_allowed()


@each_network
@pytest.mark.parametrize("level", [0.1, "tensor"])
def test_a_module_on_a_device_sends_it_nothing_and_does_not_wait(name, level):
    """Above the operators: checks, noise features, packing, backward."""
    build, shape = NETWORKS[name]
    model = build()
    moved(model, DEVICE)
    x, v = (torch.empty(shape, device=DEVICE) for _ in range(2))
    sigma = torch.empty(shape[0], device=DEVICE) if level == "tensor" else level
    sigma = sigma if model.is_noise_conditional else None
    with NoWaiting() as watched:
        psi, f = model.potential_and_prox(x, sigma)
        (psi.sum() + f.square().sum()).backward()
        with torch.no_grad():
            model(x, sigma)
            model.hvp(x, v, sigma)
    assert watched.devices == {DEVICE}


def test_mirrored_patches_are_laid_out_where_the_image_is():
    x = torch.empty(1, 1, 9, 10, device=DEVICE)
    with NoWaiting() as watched:
        patches = Patches(x.shape[2:], 4, x)
        patches.folded(patches.extended(x))
    assert watched.devices == {DEVICE} == {str(patches.weights.device)}


def test_a_copy_to_a_device_and_a_wait_are_seen():
    x = torch.zeros(3)
    with pytest.raises(AssertionError, match="copies from the host"), NoWaiting():
        torch.as_tensor(0.1, device=DEVICE)
    with pytest.raises(AssertionError, match="copies between"), NoWaiting():
        x.to(DEVICE)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        x.sum().item()


def test_cuda_kernels_get_the_tensors_device_stream_and_workspaces(monkeypatch):
    """Every run is told its device's index and that device's current stream; packed weights and results lie there."""
    told = []

    class Network:
        def __init__(self, *arguments): ...
        def plan(self, operation, precision, rows, limits):
            return SimpleNamespace(packed_bytes=64, partial_bytes=64, spilled_bytes=64)

        def run(self, operation, precision, plan, *rest):
            told.append(rest[-2:])

        solve = run

    prepared = []
    module = SimpleNamespace(
        MlpNetwork=Network, mlp_prepare=lambda *which: prepared.append(which), mlp_limits=lambda device: device
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1000 + device.index))
    monkeypatch.setattr(cuda_backend, "_at", lambda t: 0)
    backend = cuda_backend.CudaBackend(module)
    monkeypatch.setitem(registry._backends, "cuda", backend)
    spec = lf.MLPLPN(2, hidden=32).spec
    backend._network(spec)  # whose table is the host's
    with FakeTensorMode(), torch.no_grad():
        x, v, packed, p = (torch.empty(s, device="cuda:1") for s in ((9, 2), (9, 2), 7000, 9))
        with NoWaiting() as watched:
            backend.evaluate(spec, x, packed, None, True, False, "fp16")
            backend.hvp(spec, x, packed, None, v, [], "fp16")
            backend.vjp(spec, x, packed, None, p, v, [], "fp16")
            backend.solve(spec, packed, x, x, p, tol=1e-5, max_iter=None, radius=None)
        assert watched.devices == {"cuda:1"}
    assert told == [(1, 1001)] * 4
    assert prepared == [(1, "fp16"), (1, "fp32")]  # the solver's; tf32 and bf16 were not asked for
