"""compute-sanitizer over every kernel at small sizes: out-of-bounds accesses and reads of memory nothing wrote.

Runs bench.gpu.sanitized, which calls each kernel a few times, under memcheck and racecheck.
"""

import shutil
import subprocess
import sys

from .part import Nothing, Session, run_part

TOOLS = ("memcheck", "racecheck")


def measure(session: Session) -> None:
    program = shutil.which("compute-sanitizer")
    target = [sys.executable, "-m", "bench.gpu.sanitized"]
    if session.tiny:
        done = subprocess.run(target, capture_output=True, text=True)
        session.check("the target runs", done.returncode == 0, done.stderr[-300:])
        return
    if program is None:
        raise Nothing("compute-sanitizer is not on the PATH")
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(5, session.seconds_left))
        except subprocess.TimeoutExpired:
            session.show(f"{tool}: stopped, out of time")
            return
        if "not supported" in done.stdout + done.stderr:
            raise Nothing(f"{tool} refuses this device")
        summary = [line for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line or "Error" in line]
        session.check(tool, done.returncode == 0, "; ".join(summary[-2:])[:200])


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
