"""Dense networks on a GPU: every precision against float64, determinism, graph capture, streams, devices, inversion."""

import subprocess
import sys

import torch

import lpn_fast as lf
from lpn_fast.algebra import reference

from .mlp_network import captured, error, kernels, network
from .session import Session, run_part

PROX = {"fp32": 2e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 6e-3}  # relative L2 error
SECOND_ORDER = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 2.5e-2}
# dim, hidden, layers: every width that the compiler knows, padded ones, weights resident and read through the caches,
# and, last, float32 slots that shared memory cannot keep
SHAPES = [
    (1, 32, 2), (2, 48, 2), (2, 64, 4), (3, 50, 4), (17, 96, 3), (17, 100, 1), (64, 128, 4), (2, 192, 2), (64, 256, 1),
    (64, 256, 6),
]  # fmt: skip
ROWS = [1, 129, 5000]
MANY_ROWS = 50_000  # fill the device: several row tiles per team
FIRST = "--first-call-captured"


def measure(session: Session) -> None:
    """All checks; a fresh draw of inputs each."""
    _first_call(session)
    for shape in SHAPES[:1] if session.tiny else SHAPES:
        for precision in ("fp32",) if session.tiny else PROX:
            many = [MANY_ROWS] if shape in ((2, 64, 4), (2, 192, 2)) else []
            for rows in ROWS[:1] if session.tiny else ROWS + many:
                _guarded(session, f"{shape} {precision} {rows} rows", _against_float64, shape, precision, rows)
    for check in (_repeats, _devices, _inversion):
        _guarded(session, check.__name__.strip("_"), check)


def _guarded(session: Session, name: str, check, *arguments) -> None:
    """One check; what it raises is a failure of it alone."""
    try:
        check(session, *arguments)
    except Exception as failure:
        session.check(name, False, f"{type(failure).__name__}: {failure}".splitlines()[0][:200])


def _first_call(session: Session) -> None:
    """In a process that has not launched anything, the first call of the kernels is captured."""
    if session.device == "cpu":
        return
    done = subprocess.run([sys.executable, "-m", "bench.gpu.mlp_numerics", FIRST], capture_output=True, text=True)
    tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
    session.check("the first call may be captured", done.returncode == 0, " ".join(tail))


def capture_the_first_call() -> None:
    """What `_first_call` runs."""
    model = lf.MLPLPN(2, hidden=64).cuda()
    x = torch.randn(100, 2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with lf.use_backend("cuda"), torch.no_grad():
        with torch.cuda.graph(graph):
            f = model(x)
        graph.replay()
        same = torch.equal(f, model(x))
    raise SystemExit(None if same else "the replay differs from a call")


def _against_float64(session: Session, shape, precision: str, rows: int) -> None:
    model = network(session, *shape, alpha=0.05, squared_head=True)
    model.precision = precision
    packed = model.packed().detach()
    x, v = torch.randn(2, rows, shape[0], device=session.device)
    p = torch.randn(rows, device=session.device)
    truth = (model.spec, x.double(), packed.double(), None)
    with kernels(session), torch.no_grad():
        psi, f = model.potential_and_prox(x)
        hv = model.hvp(x, v)
        gx, gP = torch.ops.lpn_fast.vjp(x, packed, None, p, v, [], model.spec.encoded, precision)
    wanted = reference.vjp(*truth, p.double(), v.double())
    found = [
        error(psi, reference.potential(*truth)) / PROX[precision],
        error(f, reference.prox(*truth)) / PROX[precision],
        error(hv, reference.hvp(*truth, v.double())) / SECOND_ORDER[precision],
        error(gx, wanted[0]) / SECOND_ORDER[precision],
        error(gP, wanted[1]) / SECOND_ORDER[precision],
    ]
    detail = ", ".join(f"{e:.2f}" for e in found)
    session.check(
        f"{shape} {precision} {rows} rows", all(e <= 1 for e in found), f"of tolerance: psi, f, Hv, gx, gP = {detail}"
    )


def _repeats(session: Session) -> None:
    model = network(session)
    model.precision = "fp32" if session.device == "cpu" else "fp16"
    packed = model.packed().detach()
    x, v = torch.randn(2, 16 if session.tiny else 20_000, 2, device=session.device)

    def call():
        f = model(x)
        gx, gP = torch.ops.lpn_fast.vjp(x, packed, None, None, v, [], model.spec.encoded, model.precision)
        return f, gx, gP

    with kernels(session), torch.no_grad():
        first, again = call(), call()
        session.check("two calls give the same bits", _same(first, again))
        replay = captured(session, call)
        x.copy_(torch.randn_like(x))
        replayed = [t.clone() for t in replay()]
        fresh = call()
        session.check("a captured graph sees new inputs and gives the same bits", _same(replayed, fresh))
        if session.device == "cuda":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                other = call()
            side.synchronize()
            session.check("another stream", _same(fresh, other))
            torch.cuda.set_sync_debug_mode("error")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            session.check("nothing waits for the device", True)


def _devices(session: Session) -> None:
    """On the last device while the first is current."""
    count = torch.cuda.device_count()
    if count < 2:
        session.show(f"---- another device: not checked, there are {count}")
        return
    model = network(session)
    x = torch.randn(100, 2, device=session.device)
    with kernels(session), torch.no_grad():
        here = model(x)
        there = model.to(f"cuda:{count - 1}")(x.to(f"cuda:{count - 1}"))
        same = _same([here.cpu()], [there.cpu()]) and torch.cuda.current_device() == 0
    session.check("another device than the current one", same)


def _inversion(session: Session) -> None:
    model = network(session, alpha=0.05)
    y = torch.randn(16 if session.tiny else 5000, 2, device=session.device)
    with kernels(session), torch.no_grad():
        x = model(y)
        result = lf.invert(model, x)
        residual = error(reference.prox(model.spec, result.preimage.double(), model.packed().double()), x.double())
        session.check("inversion", bool(result.converged.all()) and residual <= 1e-5, f"{result}, {residual:.1e}")
        got = model.prox(x, strength=0.3)
    with lf.use_backend("torch"), torch.no_grad():
        want = model.double().prox(x.double(), strength=0.3)
    session.check("prox of strength 0.3", error(got, want) <= 1e-5, f"{error(got, want):.1e}")


def _same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    if FIRST in sys.argv:
        capture_the_first_call()
    raise SystemExit(run_part(__name__, __doc__, measure))
