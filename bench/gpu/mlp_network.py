"""What the parts about dense networks share beside session.py: the network, its backend, errors, captured calls."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

import lpn_fast as lf

from .session import Session, graphed


def kernels(session: Session) -> AbstractContextManager:
    """Calls of the package inside run in the CUDA kernels; in the torch backend where there is no device."""
    return lf.use_backend("cuda" if session.device == "cuda" else "torch")


def network(session: Session, dim=2, hidden=64, layers=4, **options) -> lf.MLPLPN:
    """A network with fixed random parameters, on the session's device."""
    torch.manual_seed(0)
    model = lf.MLPLPN(dim, hidden=hidden, layers=layers, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("bias", "linear", "constant"):
                parameter.normal_(std=0.3)
    return model.to(session.device)


def error(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance in float64; NaN if anything is NaN."""
    return float((got.detach().double() - want).norm() / want.norm().clamp_min(1e-300))


def captured(session: Session, call: Callable[[], object]) -> Callable[[], object]:
    """`call` as the replay of a CUDA graph, with its results; itself where there is no device."""
    if session.device == "cpu":
        return call
    held = {}

    def keep():
        held["result"] = call()

    replay = graphed(keep)

    def replayed():
        replay()
        return held["result"]

    return replayed


def add_time(session: Session, op: str, model, rows: int, provider: str, precision: str, spread, rel_err="", **config):
    """A time per call, (p50, p20, p80) in ms."""
    p50, p20, p80 = spread
    shape = name_of(model)
    session.add(
        op, provider, p50, "ms", p20=p20, p80=p80, precision=precision, family="dense", shape=shape, batch=rows,
        rel_err=rel_err, mode="graph" if config.get("graph") else "call", config=config,
        line=f"{op:<10}{shape:<16}{rows:>9}  {provider:<10}{precision:<6}{p50:10.4f} ms  {rel_err}",
    )  # fmt: skip


def name_of(model) -> str:
    """d, H and L of a dense network."""
    return f"d{model.spec.channels}-H{model.spec.stages[0].width}-L{len(model.spec.stages)}"
