"""prox, hvp and gradient of the published convolutional networks: ours, A, C, and bare convolutions.

    ours    the package, per backend and precision; also replayed from a CUDA graph
    A       the published way: eager autograd, convolutions in TF32 as torch has them by default
    C       torch.compile of torch.func.grad, default mode and (prox only, time permitting) max-autotune
    bare    the library's convolutions of a prox and nothing else, channels-last: the no-epilogue bound

Memory is the peak of torch's allocator during a call above what was allocated before it.
"""

import torch
import torch.nn.functional as F

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.benchmark.counters import work
from lpn_fast.ops.plain_torch import Compiled, Eager, why_no_compiler

from .numerics import TOLERANCE, trained_like
from .session import Session, graphed, milliseconds, run_part

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")


def cases(tiny: bool):
    """(name, model, shape); a conditional network is measured in units of the noise, at sigma = 1."""
    torch.manual_seed(0)
    if tiny:
        stages = lf.ConvLPN(1, hidden=3, strides=(1, 2), skip_kernel=3, beta=10.0, squared_head=False)
        yield "tiny", stages, (1, 1, 5, 4)
        return
    yield "lpn_128", trained_like(lf.paper_network("celeba")), (64, 3, 128, 128)
    yield "lpn_mnist", trained_like(lf.paper_network("mnist")), (64, 1, 28, 28)
    yield "frame-gray", lf.pretrained("frame-gray"), (16, 1, 256, 256)
    yield "fast-gray", lf.pretrained("fast-gray"), (16, 1, 256, 256)
    yield "ConvLPN 64", lf.ConvLPN(1, hidden=64), (16, 1, 256, 256)


def inputs(name: str, tiny: bool, device: str):
    """(model, x, v, sigma) of a case; x of the size of noisy images in their units."""
    model, shape = next((m, s) for n, m, s in cases(tiny) if n == name)
    model = model.to(device).eval()
    x, v = torch.randn(2, *shape, device=device)
    if model.is_noise_conditional:
        return model, 4 * x, v, 1.0
    return model, x, v, None


def measure(session: Session) -> None:
    """Half precision and A of every case first, then C, then the other precisions: time may end anywhere."""
    names = [name for name, *_ in cases(session.tiny)]
    rest = () if session.tiny else PRECISIONS[1:]

    def half_and_baselines(name, model, x, v, sigma):
        for backend in ("triton", "torch"):
            _ours(session, name, model, x, v, sigma, backend, PRECISIONS[0])
        _bare(session, name, model, x)
        _baselines(session, name, model, x, v)

    def compiled(name, model, x, v, sigma):
        _compiled(session, name, model, x, v)

    def others(name, model, x, v, sigma):
        for precision in rest:
            for backend in ("triton", "torch"):
                _ours(session, name, model, x, v, sigma, backend, precision)

    for step in (half_and_baselines, compiled, others):
        for name in names:
            if session.seconds_left < 0:
                session.show(f"---- no time left for {step.__name__} of {name}")
                continue
            try:
                step(name, *inputs(name, session.tiny, session.device))
            except Exception as failure:  # out of memory, say: the next case may still fit
                session.show(f"---- {name}: {type(failure).__name__}: {failure}".splitlines()[0][:200])
            if session.device == "cuda":
                torch.cuda.empty_cache()


def compile_for(name: str, precision: str) -> None:
    """Launch every Triton kernel that the measurements of a case launch in a precision."""
    model, x, v, sigma = inputs(name, False, "cuda")
    model.precision = precision
    with lf.use_backend("triton"):
        for call in _calls(model, x, v, sigma).values():
            call()


def compile_baseline(name: str, how: str) -> None:
    """Compile C of a case, for the inductor's cache."""
    model, x, v, _ = inputs(name, False, "cuda")
    if how == "fp16":
        Compiled(_half(model)).prox(x.half())
    elif how == "gradient":
        Compiled(model).loss_gradients(x, v)
    else:
        Compiled(model).prox(x)


def _calls(model, x, v, sigma) -> dict:
    """op -> what is timed."""

    def prox():
        with torch.no_grad():
            return model(x, sigma)

    def hvp():
        with torch.no_grad():
            return model.hvp(x, v, sigma)

    def gradient():
        model.zero_grad(set_to_none=True)
        model(x, sigma).backward(v)

    return {"prox": prox, "hvp": hvp, "gradient": gradient}


def _error(model, x, sigma, f) -> float:
    """Relative error of the first image's f against float64."""
    with torch.no_grad():
        at, features, _ = model._checked(x[:1], None if sigma is None else sigma)
    packed = model.packed().detach().double()
    want = reference.prox(model.spec, at.double(), packed, None if features is None else features.double())
    return ((f[:1].double() - want).norm() / want.norm()).item()


def _ours(session: Session, name, model, x, v, sigma, backend: str, precision: str) -> None:
    model.precision = precision
    try:
        with lf.use_backend(backend):
            for op, call in _calls(model, x, v, sigma).items():
                if session.seconds_left < 0 or (precision == "fp32" and op != "prox"):
                    continue
                wrong = _error(model, x, sigma, call()) if op == "prox" else ""
                _add(session, op, name, f"ours-{backend}", precision, call, model, x, wrong)
                if op == "prox":
                    good = wrong <= TOLERANCE[precision][0]
                    if backend != "torch" or not good:
                        session.check(f"{name} {backend} {precision} prox", good, f"error {wrong:.1e}")
                    if session.device == "cuda":
                        _add(session, op, name, f"ours-{backend} graph", precision, graphed(call), model, x)
    except Exception as error:
        session.show(f"{name} {backend} {precision}: {type(error).__name__}: {error}".splitlines()[0][:160])
    finally:
        model.precision = "fp32"


def _add(session: Session, op, name, provider, precision, call, model, x, rel_err: float | str = "") -> float:
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
        shape="x".join(map(str, x.shape)), flop=done.flop, bytes=done.bytes, rel_err=rel_err,
        config={"peak_megabytes": memory, "tflops": rate},
        line=f"{name:<12}{op:<9}{provider:<22}{precision:<5}{p50:>10.4f} ms{rate:>9.1f} TFLOP/s  "
        + (f"{memory:9.0f} MB" if memory != "" else "")
        + (f"  error {rel_err:.1e}" if rel_err != "" else ""),
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


def _compiled(session: Session, name, model, x, v) -> None:
    """C; max-autotune last, whose compilation has no end in sight."""
    if session.device == "cpu" or any("squared" in stage.heads for stage in model.spec.stages):
        return
    if why_no_compiler():
        session.show(f"---- {name}: {why_no_compiler()}")
        return
    compiled, half, x_half = Compiled(model), Compiled(_half(model)), x.half()
    for op, precision, call in (
        ("prox", "fp16", lambda: half.prox(x_half)),
        ("prox", "tf32", lambda: compiled.prox(x)),
        ("gradient", "tf32", lambda: compiled.loss_gradients(x, v)),
    ):
        if session.seconds_left > 10:
            _guarded(session, op, name, "C", precision, call, model, x)
    if name == "lpn_128" and session.seconds_left > 100:
        tuned = Compiled(_half(model), "max-autotune-no-cudagraphs")
        _guarded(session, "prox", name, "C max-autotune", "fp16", lambda: tuned.prox(x_half), model, x)


def _half(model):
    import copy

    return copy.deepcopy(model).half()


def _guarded(session: Session, op, name, provider, precision, call, model, x) -> None:
    try:
        _add(session, op, name, provider, precision, call, model, x)
    except Exception as error:
        session.show(f"{name} {op} {provider} {precision}: {type(error).__name__}: {error}".splitlines()[0][:160])


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
