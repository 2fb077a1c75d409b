"""compute-sanitizer over the dense network's kernels at small sizes: memcheck, racecheck, synccheck.

The program it watches is this module with --target: every operation, precision and configuration once.
"""

import sys

import torch

import lpn_fast as lf

from .mlp_network import kernels, network
from .sanitizer import watch
from .session import Session, run_part

TOOLS = ("memcheck", "racecheck", "synccheck")
# dim, hidden, layers, rows: resident and not, spilled, several teams to a block, rows that end inside a tile
CALLS = [(2, 64, 2, 70), (3, 50, 1, 17), (17, 128, 4, 40), (2, 256, 1, 33), (2, 256, 6, 17)]


def measure(session: Session) -> None:
    """One run of the target per tool."""
    if session.device == "cpu":
        target(session)
        return
    watch(session, TOOLS, "bench.gpu.mlp_sanitizer", "--target")


def target(session: Session) -> None:
    """What is watched."""
    with kernels(session):
        for dim, hidden, layers, rows in CALLS[:1] if session.tiny else CALLS:
            for precision in ("fp32",) if session.tiny else ("fp32", "tf32", "fp16", "bf16"):
                model = network(session, dim, hidden, layers, alpha=0.1)
                model.precision = precision
                x = torch.randn(rows, dim, device=session.device, requires_grad=True)
                psi, f = model.potential_and_prox(x)
                (psi.sum() + f.square().sum()).backward()
                model.hvp(x.detach(), torch.ones_like(x))
            lf.invert(model, f.detach()[:20])
    if session.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    if "--target" in sys.argv:
        target(Session("mlp_sanitizer", None, False, 60.0))
        sys.exit(0)
    sys.exit(run_part(__name__, __doc__, measure))
