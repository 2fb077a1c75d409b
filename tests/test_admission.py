"""Which kernels "auto" takes, work by work: a check on the device decides, once, and its verdict is kept.

The device is this CPU and the kernels are torch's own, made wrong, slow or broken on purpose; time is a stand-in.
"""

import itertools
import json
import types

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.noise import noise_features
from lpn_fast.ops import admission, device_check, plain_torch, registry
from lpn_fast.ops.backends.torch import TorchBackend
from lpn_fast.ops.device_check import HESSIAN, PROX, TRAINING, VALUE, WORKS
from lpn_fast.ops.explicit import kernels, plain
from lpn_fast.ops.explicit.level import Level

SPEC = lf.FrameLPN(1, kernel=2, gates=((1, 1, 5),)).spec
X = torch.randn(1, 1, 6, 5)
CPU = torch.device("cpu")


class Kernel(TorchBackend):
    """torch's results under another name, with what a test plants in them."""

    name = "triton"

    def __init__(self):
        self.calls = 0

    def evaluate(self, *call):
        self.calls += 1
        return super().evaluate(*call)


class WrongProx(Kernel):
    def evaluate(self, *call):
        psi, f, tape = super().evaluate(*call)
        return psi, 1.001 * f, tape


class WrongGradient(Kernel):
    def vjp(self, *call):
        gx, gP = super().vjp(*call)
        gP[-1] += gP.norm()
        return gx, gP


class NotANumber(Kernel):
    def hvp(self, *call):
        return super().hvp(*call).fill_(float("nan"))


class WrongAtFullSize(Kernel):
    """As an index beyond int32 would be: right at every small size."""

    def evaluate(self, spec, x, *rest):
        psi, f, tape = super().evaluate(spec, x, *rest)
        if x.numel() == 8 * 32 * 32:
            f[-1] = 0
        return psi, f, tape


class OtherBitsEachTime(Kernel):
    def evaluate(self, *call):
        psi, f, tape = super().evaluate(*call)
        return psi, f * (1 + 1e-7 * self.calls), tape


class OtherByPointers(Kernel):
    """Right as it is launched by default."""

    shifted = 0.0

    def alternatives(self):
        return {"with pointers": self}

    def __enter__(self):
        self.shifted = 1e-2

    def __exit__(self, *_):
        self.shifted = 0.0

    def evaluate(self, *call):
        psi, f, tape = super().evaluate(*call)
        return psi, f + self.shifted, tape


class Broken(Kernel):
    def evaluate(self, *call):
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")


class Full(Kernel):
    def evaluate(self, *call):
        self.calls += 1
        raise torch.OutOfMemoryError("20 GiB wanted")


PLAIN = TorchBackend()


@pytest.fixture(autouse=True)
def user(monkeypatch, tmp_path):
    """A user without verdicts, small full sizes, and kernels of triple speed."""
    monkeypatch.setenv("LPN_FAST_CACHE", str(tmp_path))
    monkeypatch.delenv("LPN_FAST_TUNE", raising=False)
    monkeypatch.delenv("LPN_FAST_BACKEND", raising=False)
    monkeypatch.setattr(admission, "_known", {})
    monkeypatch.setattr(device_check, "large_shape", lambda spec: (8, 1, 32, 32))
    monkeypatch.setattr(device_check, "ROUNDS", 1)
    speed(monkeypatch, 3.0)
    return tmp_path


def speed(monkeypatch, *gains, **of_work):
    """Ours take 1 ms, torch's the first of `gains`, torch.compile's, if it is timed, the second.

    `of_work`: other gains over torch at single works, by their names with _ for a space.
    """
    turns = [gains] * len(WORKS)
    for name, gain in of_work.items():
        turns[WORKS.index(name.replace("_", " "))] = (gain, *gains[1:])
    rounds = device_check.ROUNDS + 1
    times = itertools.cycle([time for turn in turns for _ in range(rounds) for time in (1.0, *turn)])

    def milliseconds(call, device):
        call()
        return next(times)

    monkeypatch.setattr(device_check, "milliseconds", milliseconds)


def another_process(monkeypatch):
    monkeypatch.setattr(admission, "_known", {})


def refusal(kernel, precision="fp32", work="prox"):
    return admission.refusal(kernel, PLAIN, SPEC, X, precision, work)


def test_a_right_and_faster_kernel_is_admitted_and_checked_once(monkeypatch):
    kernel = Kernel()
    assert refusal(kernel) is None
    calls = kernel.calls
    assert refusal(kernel) is None
    another_process(monkeypatch)
    assert refusal(kernel) is None
    assert kernel.calls == calls > 0
    assert all(refusal(kernel, work=work) is None for work in WORKS) and kernel.calls == calls
    assert "admitted: prox 3.00 times torch's speed, value 3.00 times" in str(admission.kept()[0])


@pytest.mark.parametrize(
    "kernel, said",
    [
        (WrongProx, "f at"),
        (WrongGradient, "gradient of the weights"),
        (NotANumber, "H v"),
        (WrongAtFullSize, "prox at (8, 1, 32, 32)"),
        (OtherBitsEachTime, "different bits"),
        (OtherByPointers, "with pointers, results at (8, 1, 32, 32) differ by"),
        (Broken, "illegal memory access"),
    ],
)
def test_a_wrong_kernel_is_never_used_and_the_reason_is_kept(monkeypatch, kernel, said):
    kernel = kernel()
    assert all(said in refusal(kernel, work=work) for work in WORKS)  # whatever the work that was wrong
    another_process(monkeypatch)
    calls = kernel.calls
    assert said in refusal(kernel) and kernel.calls == calls
    assert [verdict.wrong is not None for verdict in admission.kept()] == [True]


@pytest.mark.parametrize("gain", [0.5, 1.0])
def test_a_slow_kernel_is_passed_over_with_its_figure(monkeypatch, gain):
    speed(monkeypatch, gain)
    assert f"prox {gain:.2f}" in refusal(Kernel())
    assert admission.kept()[0].wrong is None and "admitted:" not in str(admission.kept()[0])


@pytest.mark.parametrize("slow", WORKS)
def test_one_that_is_slow_at_one_work_is_refused_there_and_nowhere_else(monkeypatch, slow):
    speed(monkeypatch, 3.0, **{slow.replace(" ", "_"): 0.8})
    kernel = Kernel()
    for _ in range(2):  # the second time by what is kept
        for work in WORKS:
            assert (f"{slow} 0.80 times its speed" in (refusal(kernel, work=work) or "")) == (work == slow)
        another_process(monkeypatch)
    assert f"not faster and left to others: {slow} 0.80 times torch's speed" in str(admission.kept()[0])


@pytest.fixture
def compiler(monkeypatch):
    """What stands in for torch.compile: it leaves functions as they are, and there always is one."""
    monkeypatch.setattr(plain_torch, "why_no_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def examined(kernel=None, spec=SPEC):
    return admission.examine(kernel or Kernel(), PLAIN, spec, CPU, "fp32", compiled=True)


def test_a_kernel_that_beats_eager_torch_and_not_the_compiler_is_refused(monkeypatch, compiler):
    speed(monkeypatch, 3.0, 0.8)
    for work in WORKS:
        assert "slower than torch.compile of the plain network" in examined().refusal(work)
        assert f"{work} 0.80 times" in refusal(Kernel(), work=work)  # and it is kept
    speed(monkeypatch, 3.0, 1.5)
    assert examined().refusal("prox") is None
    assert "prox 3.00 times torch's speed and 1.50 times torch.compile's, value 3.00" in str(examined())


def test_without_a_compiler_torch_alone_is_to_be_beaten_and_the_reason_is_kept(monkeypatch):
    monkeypatch.setattr(plain_torch, "why_no_compiler", lambda: "there is no compiler")
    assert examined().refusal("value") is None and "(there is no compiler)" in str(admission.kept()[0])

    def fails(function, **_):
        raise RuntimeError("it stopped")

    monkeypatch.setattr(plain_torch, "why_no_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", fails)
    assert "torch.compile: RuntimeError: it stopped" in str(examined())


def test_first_calls_do_not_wait_for_a_compiler(monkeypatch, compiler):
    monkeypatch.setattr(plain_torch, "Compiled", None)  # nobody asks for it
    assert refusal(Kernel()) is None and "was not asked for" in str(admission.kept()[0])


def test_what_is_compiled_is_what_the_package_computes(compiler):
    call = device_check.NetworkTrial(SPEC, (2, 1, 6, 5), None, "fp32", CPU, torch.Generator().manual_seed(0))
    call.features = noise_features(torch.ones(2), SPEC.noise_levels)  # the plain module is the network at one level
    compiled, works = call.compiled(), call.works()
    for work, of_ours in (("prox", 0), ("value", 1), ("Hessian product", 0)):
        assert torch.allclose(compiled[work](), works[work](PLAIN)[of_ours], rtol=1e-4, atol=1e-5), work
    assert list(compiled) == list(works) == list(WORKS)
    prior = Level(2, 3, 5).trial((2, 2, 6, 5), None, "fp32", CPU, torch.Generator().manual_seed(0))
    assert torch.allclose(prior.compiled()["gradient of R"](), prior.gradient(plain)[0], rtol=1e-4, atol=1e-5)


def test_memory_that_was_full_once_is_no_verdict_on_the_kernel(monkeypatch):
    kernel = Full()
    assert "memory was full" in refusal(kernel) and not admission.kept()
    calls = kernel.calls
    assert refusal(kernel) and kernel.calls == calls  # this process does not try at every call
    another_process(monkeypatch)
    assert refusal(kernel) and kernel.calls > calls


OF_ALL_WORKS = {  # as it was written when one verdict was for all of them
    "format": 2, "backend": "triton", "precision": "fp32", "network": "0", "stages": [4, 5],
    "where": {"device": "cpu", "driver": "", "torch": "", "triton": "", "sources": ""},
    "findings": {"wrong": None, "error": 0.0, "gains": {"prox": 3.0, "gradient": 3.0}, "compiled": {},
                 "not_compiled": "", "lasting": True},
}  # fmt: skip
UNREADABLE = [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 99}', b"\xff\xfe", json.dumps(OF_ALL_WORKS).encode()]


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_file_that_cannot_be_read_asks_again(monkeypatch, user, content):
    assert refusal(Kernel()) is None
    (path,) = (user / "verdicts").glob("*.json")
    path.write_bytes(content)
    another_process(monkeypatch)
    kernel = Kernel()
    assert admission.kept() == []
    assert refusal(kernel) is None and kernel.calls
    assert json.loads(path.read_bytes())["backend"] == "triton"


def test_a_verdict_holds_where_it_was_found_only(monkeypatch):
    assert refusal(Kernel()) is None
    known = dict(admission.where(CPU))
    for fact in ("driver", "torch", "triton", "device", "sources"):
        another_process(monkeypatch)
        monkeypatch.setattr(admission, "where", lambda device, fact=fact: known | {fact: "another"})
        kernel = Kernel()
        assert refusal(kernel) is None and kernel.calls, fact
    monkeypatch.undo()


def test_a_precision_and_a_network_have_verdicts_of_their_own():
    kernel = Kernel()
    for spec, precision in ((SPEC, "fp32"), (SPEC, "bf16"), (lf.ConvLPN(1, hidden=3).spec, "fp32")):
        calls = kernel.calls
        assert admission.refusal(kernel, PLAIN, spec, X, precision, "prox") is None and kernel.calls > calls
    assert len(admission.kept()) == 3


def test_nothing_is_checked_where_the_user_says_so_and_what_is_known_counts(monkeypatch):
    kernel = Kernel()
    monkeypatch.setenv("LPN_FAST_TUNE", "off")
    assert "lpn-fast tune" in refusal(kernel) and not kernel.calls
    assert admission.examine(kernel, PLAIN, SPEC, CPU, "fp32").wrong is None
    assert refusal(kernel) is None
    monkeypatch.setenv("LPN_FAST_TUNE", "perhaps")
    another_process(monkeypatch)
    with pytest.raises(ValueError, match="LPN_FAST_TUNE must be on or off, got 'perhaps'"):
        refusal(kernel, "bf16")


def test_nothing_is_checked_inside_a_graph_a_trace_or_a_mode(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    kernel = Kernel()
    with FakeTensorMode():
        fake = torch.empty(1, 1, 6, 5)
        assert admission.verdict(kernel, PLAIN, SPEC, fake, "fp32") is None
    assert admission.verdict(kernel, PLAIN, SPEC, fake, "fp32") is None
    assert admission.verdict(kernel, PLAIN, SPEC, X.to("meta"), "fp32") is None

    class OnGpu:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(admission, "where", lambda device: {"device": "a GPU"})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert admission.verdict(kernel, PLAIN, SPEC, OnGpu(), "fp32") is None
    assert not kernel.calls
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(admission, "check", lambda *_: device_check.Findings(None, 0.0, {"prox": 2.0}))
    assert admission.verdict(kernel, PLAIN, SPEC, OnGpu(), "fp32").refusal("prox") is None


def test_a_folder_that_cannot_be_written_keeps_the_verdict_for_the_process(monkeypatch, user):
    (user / "verdicts").write_bytes(b"a file")
    kernel = Kernel()
    assert refusal(kernel) is None
    calls = kernel.calls
    assert refusal(kernel) is None and kernel.calls == calls


def test_random_numbers_of_the_user_stay_what_they_were():
    torch.manual_seed(3)
    want = torch.randn(3)
    torch.manual_seed(3)
    refusal(Kernel())
    assert torch.equal(torch.randn(3), want)


@pytest.fixture
def registered(monkeypatch):
    """Offers a kernel to "auto", before the CPU's and torch's backends."""

    def register(kernel):
        others = {name: backend for name, backend in registry._backends.items() if name != "triton"}
        monkeypatch.setattr(registry, "_backends", {"triton": kernel, **others})
        monkeypatch.setattr(registry, "_to_be_admitted", {"triton"})
        monkeypatch.setattr(registry, "_absent", {})

    return register


def test_auto_follows_the_verdict_and_explain_shows_it(registered):
    model = lf.LPN(SPEC)
    for kernel, runs in ((Kernel(), "triton"), (WrongProx(), "cpu")):
        admission._known.clear()
        for path in admission.folder().glob("*"):
            path.unlink()
        registered(kernel)
        said = lf.explain(model, X)
        assert f"{runs}: runs this call" in said or runs == "cpu"
        assert registry.select(SPEC, X).name == runs or (runs == "cpu" and registry.select(SPEC, X) is not kernel)
        assert ("checked on this device and not used: " in said) == (runs == "cpu")
    with lf.use_backend("triton"):
        assert registry.select(SPEC, X).name == "triton"  # who asks by name gets it


class Recorded(Kernel):
    """Which primitives are asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def evaluate(self, spec, x, packed, features, value, tape, precision):
        self.asked.append(VALUE if value else PROX)
        return super().evaluate(spec, x, packed, features, value, tape, precision)

    def hvp(self, *call):
        self.asked.append(HESSIAN)
        return super().hvp(*call)

    def vjp(self, *call):
        self.asked.append(TRAINING)
        return super().vjp(*call)


@pytest.mark.parametrize("slow", WORKS)
def test_auto_follows_the_verdict_work_by_work(monkeypatch, registered, slow):
    speed(monkeypatch, 3.0, **{slow.replace(" ", "_"): 0.5})
    kernel, model = Recorded(), lf.LPN(SPEC)
    registered(kernel)
    assert (registry.select(SPEC, X) is kernel) == (slow != PROX)  # and checks it
    kernel.asked.clear()
    model(X, 1.0).square().sum().backward()
    with torch.no_grad():
        model(X, 1.0), model.potential(X, 1.0), model.hvp(X, X, 1.0)
    assert set(kernel.asked) == set(WORKS) - {slow}
    other = registry.select(SPEC, X, work=slow).name
    lines = lf.explain(model, X).splitlines()
    works = ", ".join(work for work in WORKS if work != slow)
    assert f"triton: runs {works} (chosen by 'auto')" in lines and f"{other}: runs {slow} (chosen by 'auto')" in lines
    reason = f"right, but not faster than torch on this device ({slow} 0.50 times its speed)"
    assert f"triton, {slow}: {reason}" in lines


def test_a_tape_goes_back_to_the_backend_that_left_it(monkeypatch, registered):
    """What a forward pass keeps is in a layout of its own, and Hessian products in backward read it."""
    speed(monkeypatch, 3.0, parameter_gradients=0.5)
    kernel = Recorded()
    registered(kernel)
    model = lf.ConvLPN(1, hidden=3)
    x = torch.randn(1, 1, 6, 5, requires_grad=True)
    assert registry.select(model.spec, x, work=HESSIAN) is kernel
    kernel.asked.clear()
    model.requires_grad_(False)(x).square().sum().backward()
    assert kernel.asked == []
    speed(monkeypatch, 3.0, Hessian_product=0.5)
    assert admission.examine(kernel, PLAIN, model.spec, CPU, "fp32").refusal(HESSIAN)
    kernel.asked.clear()
    model(x).square().sum().backward()
    assert kernel.asked == [PROX, HESSIAN]


def test_explicit_priors_follow_it_work_by_work_too(monkeypatch):
    speed(monkeypatch, 3.0, value=0.5)
    kernel = types.SimpleNamespace(
        name="triton", refusal=lambda level, x: None, run=plain.run, gradients=plain.gradients
    )
    monkeypatch.setattr(kernels, "KERNELS", (kernel,))
    level = Level(1, 2, 3)
    chosen = {work: kernels.select(level, X, work).name for work in device_check.EXPLICIT_WORKS}
    assert chosen.pop("value") == "torch" and set(chosen.values()) == {"triton"}
    said = lf.explain(lf.ExplicitLPN(1, kernel=2, groups=3), X)
    assert said.startswith("triton: runs gradient of R, Hessian product, parameter gradients (chosen by 'auto')\n")
    assert "triton, value: right, but not faster than torch" in said


def test_on_a_kind_of_device_where_it_was_never_seen_to_work_a_name_is_not_enough(registered):
    class Unproven(WrongProx):
        def must_be_checked(self, x):
            return True

    registered(Unproven())
    with lf.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run this: f at"):
        registry.select(SPEC, X)


def test_triton_from_blackwell_on_is_such_a_case(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from lpn_fast.ops.backends.triton import TritonBackend

    class OnGpu:
        device = torch.device("cuda", 0)

    for capability, must in (((9, 0), False), ((10, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert TritonBackend().must_be_checked(OnGpu()) == must


def test_info_lists_what_is_known_and_where(capsys, monkeypatch, user):
    from lpn_fast import cli

    assert refusal(Kernel()) is None
    monkeypatch.setenv("LPN_FAST_TUNE", "off")
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert "cpu, triton, widths [4, 5], fp32: right, error" in said and "admitted: prox 3.00 times" in said
    assert f"kept in {user}/verdicts; LPN_FAST_TUNE=off" in said


def test_tune_is_for_gpus_and_says_so(capsys, monkeypatch):
    from lpn_fast import cli

    assert cli.main(["tune", "--device", "cpu"]) == 2
    assert "--device must be cuda or cuda:N, got cpu" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cli.main(["tune"]) == 2
        assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_tune_checks_with_the_models_own_weights(monkeypatch, registered, compiler):
    speed(monkeypatch, 3.0, 3.0)
    seen = []

    class Watched(Kernel):
        def evaluate(self, spec, x, packed, *rest):
            seen.append(packed)
            return super().evaluate(spec, x, packed, *rest)

    registered(Watched())
    own = lf.LPN(SPEC).packed().detach()
    found = registry.examine(SPEC, CPU, "fp32", own)
    assert found["triton"].refusal("prox") is None and any(torch.equal(packed, own) for packed in seen)
