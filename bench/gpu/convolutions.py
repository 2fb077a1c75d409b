"""prox, hvp and gradient of the published convolutional networks: ours, A, C, and bare convolutions.

    ours    the package, per backend and precision; also replayed from a CUDA graph
    A       the published way: eager autograd, convolutions in TF32 as torch has them by default
    C       torch.compile of torch.func.grad, default mode and (prox only, time permitting) max-autotune
    bare    the library's convolutions of a prox and nothing else, channels-last: the no-epilogue bound

Memory is the peak of torch's allocator during a call above what was allocated before it.
"""

import csv
import json

import torch
import torch.nn.functional as F

import lpn_fast as lf
from bench.baselines import Compiled, Eager
from bench.counters import work

from .numerics import trained_like
from .part import Session, graphed, milliseconds, run_part

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")


def cases(tiny: bool):
    """(name, model, shape)."""
    torch.manual_seed(0)
    if tiny:
        stages = lf.ConvLPN(1, hidden=3, strides=(1, 2), skip_kernel=3, beta=10.0, squared_head=False)
        yield "tiny", stages, (1, 1, 5, 4)
        return
    yield "lpn_128", trained_like(lf.paper_network("celeba")), (64, 3, 128, 128)
    yield "lpn_mnist", trained_like(lf.paper_network("mnist")), (64, 1, 28, 28)
    yield "ConvLPN 64", lf.ConvLPN(1, hidden=64), (16, 1, 256, 256)


def measure(session: Session) -> None:
    for name, model, shape in cases(session.tiny):
        model = model.to(session.device).eval()
        x, v = torch.randn(2, *shape, device=session.device)
        times = {}
        for precision in PRECISIONS[:1] if session.tiny else PRECISIONS:
            for backend in ("triton", "torch"):
                _ours(session, name, model, x, v, backend, precision, times)
        _bare(session, name, model, x)
        _baselines(session, name, model, x, v)
        if session.device == "cuda" and not session.tiny:
            _admit(session, model, x, times)


def _ours(session: Session, name, model, x, v, backend: str, precision: str, times: dict) -> None:
    model.precision = precision

    def prox():
        with torch.no_grad():
            return model(x)

    def hvp():
        with torch.no_grad():
            return model.hvp(x, v)

    def gradient():
        model.zero_grad(set_to_none=True)
        model(x).backward(v)

    try:
        with lf.use_backend(backend):
            for op, call in (("prox", prox), ("hvp", hvp), ("gradient", gradient)):
                if session.seconds_left < 0 or (precision == "fp32" and op != "prox"):
                    continue
                p50 = _add(session, op, name, f"ours-{backend}", precision, call, model, x)
                if op == "prox":
                    times[backend, precision] = p50
                    if session.device == "cuda":
                        _add(session, op, name, f"ours-{backend} graph", precision, graphed(call), model, x)
    except Exception as error:
        session.show(f"{name} {backend} {precision}: {type(error).__name__}: {error}".splitlines()[0][:160])
    finally:
        model.precision = "fp32"


def _add(session: Session, op, name, provider, precision, call, model, x) -> float:
    call()
    memory = ""
    if session.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    p50, p20, p80 = milliseconds(call, seconds=0.05 if session.tiny else 0.4, rounds=1 if session.tiny else 20)
    done = work(model.spec, op, tuple(x.shape), 2 if precision in ("fp16", "bf16") else 4)
    rate = done.flop / p50 / 1e9
    session.add(
        op, provider, p50, "ms", p20=p20, p80=p80, precision=precision, family=name, batch=x.shape[0],
        shape="x".join(map(str, x.shape)), flop=done.flop, bytes=done.bytes,
        config={"peak_megabytes": memory, "tflops": rate},
        line=f"{name:<12}{op:<9}{provider:<22}{precision:<5}{p50:>10.4f} ms{rate:>9.1f} TFLOP/s  "
        + (f"{memory:9.0f} MB" if memory != "" else ""),
    )  # fmt: skip
    return p50


def _bare(session: Session, name, model, x) -> None:
    """The core convolutions of one prox in fp16, forward and transposed, alone."""
    dtype = torch.float16 if session.device == "cuda" else torch.float32
    sizes, calls = model.spec.stage_sizes(*x.shape[-2:]), []
    for l, stage in enumerate(model.spec.stages):
        if l == 0:
            continue
        before = model.spec.stages[l - 1].width
        shape = (x.shape[0], before, *sizes[l - 1])
        z = torch.randn(shape, device=x.device).to(dtype).contiguous(memory_format=torch.channels_last)
        w = torch.randn(stage.width, before, stage.kernel, stage.kernel, device=x.device).to(dtype)
        w = w.contiguous(memory_format=torch.channels_last)
        e = F.conv2d(z, w, None, stage.stride, stage.padding)
        calls.append((z, w, e, stage))

    def call():
        for z, w, e, stage in calls:
            F.conv2d(z, w, None, stage.stride, stage.padding)
            torch.ops.aten.convolution_backward.default(
                e, z, w, None, [stage.stride] * 2, [stage.padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
            )

    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        _add(session, "prox", name, "bare convolutions", "fp16", call, model, x)
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _baselines(session: Session, name, model, x, v) -> None:
    if any("squared" in stage.heads for stage in model.spec.stages):
        return  # the plain module covers the published networks
    for channels_last in (False, True):
        eager = Eager(model, channels_last)
        provider = "A channels-last" if channels_last else "A"
        for precision, cast in (("tf32", None), ("fp16", torch.float16)):
            if session.seconds_left < 0 or (precision == "fp16" and session.device == "cpu"):
                continue

            def prox(eager=eager, cast=cast):
                with torch.autocast("cuda", cast, enabled=cast is not None):
                    return eager.prox(x).detach()

            _guarded(session, "prox", name, f"{provider}{' autocast' if cast else ''}", precision, prox, model, x)
        _guarded(session, "gradient", name, provider, "tf32", lambda e=eager: e.loss_gradients(x, v), model, x)
        _guarded(session, "hvp", name, provider, "tf32", lambda e=eager: e.hvp(x, v), model, x)
    if session.device == "cpu":
        return
    compiled = Compiled(model)
    half, x_half = Compiled(_half(model)), x.half()
    for provider, precision, call in (
        ("C", "tf32", lambda: compiled.prox(x)),
        ("C", "fp16", lambda: half.prox(x_half)),
        ("C", "tf32", lambda: compiled.loss_gradients(x, v)),
    ):
        op = "gradient" if call.__code__.co_names[:1] == ("loss_gradients",) else "prox"
        if session.seconds_left > 20:
            _guarded(session, op, name, provider, precision, call, model, x)


def _half(model):
    import copy

    return copy.deepcopy(model).half()


def _guarded(session: Session, op, name, provider, precision, call, model, x) -> None:
    try:
        _add(session, op, name, provider, precision, call, model, x)
    except Exception as error:
        session.show(f"{name} {op} {provider} {precision}: {type(error).__name__}: {error}".splitlines()[0][:160])


def _admit(session: Session, model, x, times: dict) -> None:
    """Write what "auto" may rely on beside the other figures; appended by hand to kernels/triton/admitted.csv."""
    rows = []
    for precision in PRECISIONS:
        if ("triton", precision) in times and ("torch", precision) in times:
            gain = times["torch", precision] / times["triton", precision]
            width = max(stage.width for stage in model.spec.stages)
            pixels = x.shape[0] * x.shape[2] * x.shape[3]
            commit = session.commit
            rows.append((torch.cuda.get_device_name(), precision, width, pixels, f"{gain:.2f}", commit))
    path = session.out / "triton_admitted.csv"
    session.out.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    session.show(json.dumps(rows))


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
