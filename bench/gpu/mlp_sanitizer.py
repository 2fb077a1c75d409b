"""compute-sanitizer over the dense network's kernels at small sizes: memcheck, racecheck, synccheck.

The program it watches is this module with --target: every operation, precision and configuration once.
"""

import shutil
import subprocess
import sys

import torch

import lpn_fast as lf

from .mlp_part import Session, network, run_part

TOOLS = ("memcheck", "racecheck", "synccheck")
# dim, hidden, layers, rows: resident and not, several warps to a block, rows that end inside a tile
CALLS = [(2, 64, 2, 70), (3, 50, 1, 17), (17, 128, 4, 40), (2, 256, 1, 33)]


def measure(session: Session) -> None:
    """One run of the target per tool."""
    if session.tiny:
        target("cpu")
        return
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the PATH: nothing was checked")
        return
    command = [sys.executable, "-m", "bench.gpu.mlp_sanitizer", "--target"]
    for tool in TOOLS:
        limit = max(10.0, session.seconds_left)
        watched = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *command]
        try:
            done = subprocess.run(watched, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            session.check(tool, False, f"did not end within {limit:.0f} s")
            continue
        tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
        session.check(tool, done.returncode == 0, " ".join(tail))


def target(device: str) -> None:
    """What is watched."""
    session = Session(device == "cpu", 60.0, None, "mlp_sanitizer")
    with session.kernels():
        for dim, hidden, layers, rows in CALLS[:1] if session.tiny else CALLS:
            for precision in ("fp32",) if session.tiny else ("fp32", "tf32", "fp16", "bf16"):
                model = network(session, dim, hidden, layers, alpha=0.1)
                model.precision = precision
                x = torch.randn(rows, dim, device=device, requires_grad=True)
                psi, f = model.potential_and_prox(x)
                (psi.sum() + f.square().sum()).backward()
                model.hvp(x.detach(), torch.ones_like(x))
            lf.invert(model, f.detach()[:20])
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    if "--target" in sys.argv:
        target("cuda")
        sys.exit(0)
    sys.exit(run_part("mlp_sanitizer", __doc__, measure))
