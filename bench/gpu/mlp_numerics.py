"""Dense networks on a GPU: every precision against float64, determinism, graph capture, streams, inversion."""

import torch

import lpn_fast as lf
from lpn_fast.algebra import reference

from .mlp_part import Session, captured, error, network, run_part

PROX = {"fp32": 2e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 6e-3}  # relative L2 error
SECOND_ORDER = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 2.5e-2}
# dim, hidden, layers: padded widths, every chunk width, weights resident and read through the caches
SHAPES = [(1, 32, 2), (2, 64, 4), (3, 50, 4), (17, 100, 3), (64, 128, 4), (2, 192, 2), (64, 256, 1)]
ROWS = [1, 129, 5000]


def measure(session: Session) -> None:
    """All checks; a fresh draw of inputs each."""
    for shape in SHAPES[:1] if session.tiny else SHAPES:
        for precision in ("fp32",) if session.tiny else PROX:
            for rows in ROWS[:1] if session.tiny else ROWS:
                _against_float64(session, shape, precision, rows)
    _repeats(session)
    _inversion(session)


def _against_float64(session: Session, shape, precision: str, rows: int) -> None:
    model = network(session, *shape, alpha=0.05, squared_head=True)
    model.precision = precision
    packed = model.packed().detach()
    x, v = torch.randn(2, rows, shape[0], device=session.device)
    p = torch.randn(rows, device=session.device)
    truth = (model.spec, x.double(), packed.double(), None)
    name = f"{shape} {precision} {rows} rows"
    try:
        with session.kernels(), torch.no_grad():
            psi, f = model.potential_and_prox(x)
            hv = model.hvp(x, v)
            gx, gP = torch.ops.lpn_fast.vjp(x, packed, None, p, v, [], model.spec.encoded, precision)
    except RuntimeError as reason:
        if "shared memory" not in str(reason):
            raise
        print(f"---- {name}: {reason}")
        return
    wanted = reference.vjp(*truth, p.double(), v.double())
    found = [
        error(psi, reference.potential(*truth)) / PROX[precision],
        error(f, reference.prox(*truth)) / PROX[precision],
        error(hv, reference.hvp(*truth, v.double())) / SECOND_ORDER[precision],
        error(gx, wanted[0]) / SECOND_ORDER[precision],
        error(gP, wanted[1]) / SECOND_ORDER[precision],
    ]
    detail = ", ".join(f"{e:.2f}" for e in found)
    session.check(name, all(e <= 1 for e in found), f"of tolerance: psi, f, Hv, gx, gP = {detail}")


def _repeats(session: Session) -> None:
    model = network(session)
    model.precision = "fp16" if not session.tiny else "fp32"
    packed = model.packed().detach()
    x, v = torch.randn(2, 16 if session.tiny else 20_000, 2, device=session.device)

    def call():
        f = model(x)
        gx, gP = torch.ops.lpn_fast.vjp(x, packed, None, None, v, [], model.spec.encoded, model.precision)
        return f, gx, gP

    with session.kernels(), torch.no_grad():
        first, again = call(), call()
        session.check("two calls give the same bits", all(torch.equal(a, b) for a, b in zip(first, again, strict=True)))
        replay = captured(session, call)
        x.copy_(torch.randn_like(x))
        replayed = [t.clone() for t in replay()]
        fresh = call()
        same = all(torch.equal(a, b) for a, b in zip(replayed, fresh, strict=True))
        session.check("a captured graph sees new inputs and gives the same bits", same)
        if not session.tiny:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                other = call()
            side.synchronize()
            session.check("another stream", all(torch.equal(a, b) for a, b in zip(fresh, other, strict=True)))


def _inversion(session: Session) -> None:
    model = network(session, alpha=0.05)
    y = torch.randn(16 if session.tiny else 5000, 2, device=session.device)
    with session.kernels(), torch.no_grad():
        x = model(y)
        result = lf.invert(model, x)
        residual = error(reference.prox(model.spec, result.preimage.double(), model.packed().double()), x.double())
        session.check("inversion", bool(result.converged.all()) and residual <= 1e-5, f"{result}, {residual:.1e}")
        got = model.prox(x, strength=0.3)
    with lf.use_backend("torch"), torch.no_grad():
        want = model.double().prox(x.double(), strength=0.3)
    session.check("prox of strength 0.3", error(got, want) <= 1e-5, f"{error(got, want):.1e}")


if __name__ == "__main__":
    raise SystemExit(run_part("mlp_numerics", __doc__, measure))
