"""compute-sanitizer over every kernel at small sizes: out-of-bounds accesses and reads of memory nothing wrote.

Runs bench.gpu.sanitized, which calls each kernel a few times, under memcheck and racecheck.
"""

import os
import shutil
import subprocess
import sys

from .session import Nothing, Session, run_part

TOOLS = ("memcheck", "racecheck")


def measure(session: Session) -> None:
    if session.device == "cpu":
        done = subprocess.run([sys.executable, "-m", "bench.gpu.sanitized"], capture_output=True, text=True)
        session.check("the target runs", done.returncode == 0, done.stderr[-300:])
        return
    watch(session, TOOLS, "bench.gpu.sanitized")


def watch(session: Session, tools: tuple[str, ...], module: str, *arguments: str) -> None:
    """`python -m module arguments` under each tool; one that runs out of the part's time says so and fails nothing."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise Nothing("compute-sanitizer is not on the PATH")
    target = [sys.executable, "-m", module, *arguments]
    # Once without a tool: kernels are compiled where nothing slows it down, and a program that fails is named as such.
    try:
        plain = subprocess.run(target, capture_output=True, text=True, timeout=max(5.0, session.seconds_left / 2))
    except subprocess.TimeoutExpired:
        raise Nothing("the program to be watched did not end in time") from None
    session.check("the program runs unwatched", plain.returncode == 0, " ".join(plain.stderr.splitlines()[-1:])[:200])
    # The caching allocator's blocks are larger than the tensors in them, and would hide what reaches beyond.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for index, tool in enumerate(tools):
        share = session.seconds_left / (len(tools) - index)
        command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(5.0, share), env=environment)
        except subprocess.TimeoutExpired:
            session.show(f"---- {tool}: stopped after {share:.0f} s, nothing was found or excluded")
            continue
        output = done.stdout + done.stderr
        if "not supported" in output:
            session.show(f"---- {tool}: refuses this device")
            continue
        summary = [line for line in output.splitlines() if "SUMMARY" in line or "Error" in line]
        session.check(tool, done.returncode == 0, "; ".join(summary[-2:] or output.splitlines()[-1:])[:200])


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
