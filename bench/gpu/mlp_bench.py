"""Dense networks on a GPU: times of prox, gradients and inversion against A, C and a CUDA-graphed A.

    goals on one H200: prox of 1 M rows (d 2, H 64, fp16) 1.8 G samples/s, 10 x A, 4 x C;   2,000 rows in a graph 12 us,
    25 x A;   gradients of the Laplacian training step, 2,000 rows, 20 x A;   inversion of 100,000 rows 20 ms

A and C are bench/baselines.py's; errors are relative, against float64. With --out, FOLDER/admitted.csv holds what
kernels/cuda/admitted.csv wants: a line for every prox that was right, with its gain over the torch backend.
"""

import csv
import sys

import torch

import lpn_fast as lf
from lpn_fast.algebra import reference

from ..baselines import Compiled, Eager, why_no_compiler
from .mlp_numerics import PROX
from .mlp_part import Session, captured, error, network, run_part, times

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
SAMPLE = 4096  # rows whose error is read


def measure(session: Session) -> None:
    """Row by row of the goals; what there is no time for is left out and said."""
    large, small = (64, 32) if session.tiny else (1_000_000, 2000)
    compiled = not session.tiny and why_no_compiler() is None
    _prox(session, network(session), large, compiled, graph=False)
    _prox(session, network(session), small, compiled, graph=True)
    _gradients(session, network(session, 1, 50, 4), small, compiled)
    _inversion(session, network(session, alpha=0.05), 64 if session.tiny else 100_000)
    for shape in () if session.tiny else ((16, 128, 4), (64, 256, 4)):
        if session.seconds_left < 20:
            print(f"no time left for {shape}")
            return
        _prox(session, network(session, *shape), large // 4, compiled=False, graph=False)


def _name(model) -> str:
    return f"d{model.spec.channels}-H{model.spec.stages[0].width}-L{len(model.spec.stages)}"


def _baselines(session: Session, model, compiled: bool) -> dict:
    """name -> baseline, as long as there is time to compile."""
    found = {"A": Eager(model)}
    if compiled and session.seconds_left > 30:
        found["C"] = Compiled(model)
    return found


def _prox(session: Session, model, rows: int, compiled: bool, graph: bool) -> None:
    x = torch.randn(rows, model.spec.channels, device=session.device)
    want = reference.prox(model.spec, x[:SAMPLE].double(), model.packed().detach().double())
    shape, middle = _name(model), {}
    for name, baseline in _baselines(session, model, compiled).items():
        call = lambda baseline=baseline: baseline.prox(x).detach()  # noqa: E731
        spread = times(session, call)
        middle[name] = spread[1]
        session.add("prox", shape, rows, name, "fp32", spread, f"{error(call()[:SAMPLE], want):.1e}")
        if graph and name == "A":
            session.add("prox", shape, rows, "A-graph", "fp32", times(session, captured(session, call)), graph=True)
    for model.precision in ("fp32",) if session.tiny else PRECISIONS:
        with session.kernels(), torch.no_grad():
            call = captured(session, lambda: model(x)) if graph else lambda: model(x)
            try:
                spread = times(session, call)
            except RuntimeError as reason:
                print(f"---- {shape} {model.precision}: {reason}")
                continue
            wrong = error(call()[:SAMPLE], want)
        config = {"graph": True} if graph else {}
        session.add("prox", shape, rows, "ours", model.precision, spread, f"{wrong:.1e}", **config)
        ratios = ", ".join(f"{name} / ours {time / spread[1]:.1f}" for name, time in middle.items())
        print(f"          {rows / spread[1] / 1e6:.3f} G samples/s, {ratios}")
        if not graph and not session.tiny and wrong <= PROX[model.precision]:
            with lf.use_backend("torch"), torch.no_grad():
                plain = times(session, lambda: model(x))
            _admit(session, model, rows, plain[1] / spread[1])


def _admit(session: Session, model, rows: int, gain: float) -> None:
    """A line for kernels/cuda/admitted.csv: device, precision, width, rows, gain, commit."""
    if session.out is None:
        return
    width = max(stage.width for stage in model.spec.stages)
    commit = session.measurements[-1].commit
    with open(session.out / "admitted.csv", "a", newline="") as file:
        line = (torch.cuda.get_device_name(), model.precision, width, rows, f"{gain:.2f}", commit)
        csv.writer(file).writerow(line)


def _gradients(session: Session, model, rows: int, compiled: bool) -> None:
    """All gradients of the mean squared error: what a training step of the Laplacian network computes."""
    x = torch.randn(rows, 1, device=session.device)
    target, shape, middle = torch.randn_like(x), _name(model), {}
    for name, baseline in _baselines(session, model, compiled).items():
        spread = times(session, lambda baseline=baseline: baseline.loss_gradients(x, target))
        middle[name] = spread[1]
        session.add("gradient", shape, rows, name, "fp32", spread)

    def step():
        loss = (model(x) - target).square().mean()
        return torch.autograd.grad(loss, list(model.parameters()))

    for model.precision in ("fp32",) if session.tiny else PRECISIONS:
        with session.kernels():
            spread = times(session, step)
            session.add("gradient", shape, rows, "ours", model.precision, spread)
            graphed = times(session, captured(session, step))
            session.add("gradient", shape, rows, "ours", model.precision, graphed, graph=True)
        print("          " + ", ".join(f"{name} / ours {time / spread[1]:.1f}" for name, time in middle.items()))


def _inversion(session: Session, model, rows: int) -> None:
    with session.kernels(), torch.no_grad():
        x = model(torch.randn(rows, model.spec.channels, device=session.device))
        spread = times(session, lambda: lf.invert(model, x, tol=1e-5))
        result = lf.invert(model, x, tol=1e-5)
    session.add("invert", _name(model), rows, "ours", "fp32", spread, f"{float(result.residual.max()):.1e}")
    session.check("all rows are inverted to 1e-5", bool(result.converged.all()), str(result))


if __name__ == "__main__":
    sys.exit(run_part("mlp_bench", __doc__, measure))
