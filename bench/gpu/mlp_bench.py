"""Dense networks on a GPU: times of prox, gradients and inversion against A, C and a CUDA-graphed A.

    goals on one H200: prox of 1 M rows (d 2, H 64, fp16) 1.8 G samples/s, 10 x A, 4 x C;   2,000 rows in a graph 12 us,
    25 x A;   gradients of the Laplacian training step, 2,000 rows, 20 x A;   inversion of 100,000 rows 20 ms

A and C are lpn_fast/ops/plain_torch.py's; errors are relative, against float64.
"""

import torch

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.ops.plain_torch import Compiled, Eager, why_no_compiler

from .mlp_network import add_time, captured, error, kernels, name_of, network
from .session import Session, milliseconds, run_part

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
SAMPLE = 4096  # rows whose error is read


def measure(session: Session) -> None:
    """Row by row of the goals; what fails loses nothing else, what there is no time for is said."""
    large, small = (64, 32) if session.tiny else (1_000_000, 2000)
    compiled = session.device == "cuda" and why_no_compiler() is None
    work = [
        lambda: _prox(session, network(session), large, compiled, graph=False),
        lambda: _prox(session, network(session), small, compiled, graph=True),
        lambda: _gradients(session, network(session, 1, 50, 4), small, compiled),
        lambda: _inversion(session, network(session, alpha=0.05), 64 if session.tiny else 100_000),
    ]
    for shape in () if session.tiny else ((16, 128, 4), (64, 256, 4)):
        work.append(lambda shape=shape: _prox(session, network(session, *shape), large // 4, False, graph=False))
    for index, step in enumerate(work):
        if session.seconds_left < 0:
            session.show(f"---- no time left for {len(work) - index} of {len(work)} tables")
            return
        try:
            step()
        except Exception as failure:
            session.check(f"table {index + 1}", False, f"{type(failure).__name__}: {failure}".splitlines()[0][:200])


def _times(session: Session, call) -> tuple[float, float, float]:
    """(p50, p20, p80) in ms, after a warm call."""
    call()
    return milliseconds(call, seconds=0.01 if session.tiny else 0.3, rounds=1 if session.tiny else 20)


def _baselines(session: Session, model, compiled: bool) -> dict:
    """name -> baseline, as long as there is time to compile."""
    found = {"A": Eager(model)}
    if compiled and session.seconds_left > 30:
        found["C"] = Compiled(model)
    return found


def _prox(session: Session, model, rows: int, compiled: bool, graph: bool) -> None:
    x = torch.randn(rows, model.spec.channels, device=session.device)
    want = reference.prox(model.spec, x[:SAMPLE].double(), model.packed().detach().double())
    middle = {}
    for name, baseline in _baselines(session, model, compiled).items():
        call = lambda baseline=baseline: baseline.prox(x).detach()  # noqa: E731
        spread = _times(session, call)
        middle[name] = spread[0]
        add_time(session, "prox", model, rows, name, "fp32", spread, f"{error(call()[:SAMPLE], want):.1e}")
        if graph and name == "A":
            replay = captured(session, call)
            add_time(session, "prox", model, rows, "A-graph", "fp32", _times(session, replay), graph=True)
    for model.precision in ("fp32",) if session.tiny else PRECISIONS:
        try:
            with kernels(session), torch.no_grad():
                call = captured(session, lambda: model(x)) if graph else lambda: model(x)
                spread = _times(session, call)
                wrong = error(call()[:SAMPLE], want)
        except RuntimeError as reason:
            session.show(f"---- {name_of(model)} {model.precision}: {reason}".splitlines()[0])
            continue
        config = {"graph": True} if graph else {}
        add_time(session, "prox", model, rows, "ours", model.precision, spread, f"{wrong:.1e}", **config)
        ratios = ", ".join(f"{name} / ours {time / spread[0]:.1f}" for name, time in middle.items())
        session.show(f"          {rows / spread[0] / 1e6:.3f} G samples/s, {ratios}")


def _gradients(session: Session, model, rows: int, compiled: bool) -> None:
    """All gradients of the mean squared error: what a training step of the Laplacian network computes."""
    x = torch.randn(rows, 1, device=session.device)
    target, middle = torch.randn_like(x), {}
    for name, baseline in _baselines(session, model, compiled).items():
        spread = _times(session, lambda baseline=baseline: baseline.loss_gradients(x, target))
        middle[name] = spread[0]
        add_time(session, "gradient", model, rows, name, "fp32", spread)

    def step():
        loss = (model(x) - target).square().mean()
        return torch.autograd.grad(loss, list(model.parameters()))

    for model.precision in ("fp32",) if session.tiny else PRECISIONS:
        with kernels(session):
            spread = _times(session, step)
            add_time(session, "gradient", model, rows, "ours", model.precision, spread)
            graphed = _times(session, captured(session, step))
            add_time(session, "gradient", model, rows, "ours", model.precision, graphed, graph=True)
        session.show("          " + ", ".join(f"{name} / ours {time / spread[0]:.1f}" for name, time in middle.items()))


def _inversion(session: Session, model, rows: int) -> None:
    with kernels(session), torch.no_grad():
        x = model(torch.randn(rows, model.spec.channels, device=session.device))
        result = lf.invert(model, x, tol=1e-5)
        spread = _times(session, lambda: lf.invert(model, x, tol=1e-5))
    add_time(session, "invert", model, rows, "ours", "fp32", spread, f"{float(result.residual.max()):.1e}")
    session.check("all rows are inverted to 1e-5", bool(result.converged.all()), str(result))


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
