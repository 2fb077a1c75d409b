"""Compiler launcher: runs a command and keeps what ptxas reported about the kernels in it.

    keep_resource_report.py FOLDER nvcc ... -o OBJECT ...        writes FOLDER/<name of OBJECT>.txt

`ptxas -v` tells registers, stack and spills of every kernel on standard error, where a build tool shows it or loses
it. Warnings end in the same file; tests read it (tests/test_cuda_build.py). Of a command that fails everything is
shown, as if it had been run directly.
"""

import subprocess
import sys
from pathlib import Path


def main(folder: str, *command: str) -> int:
    """Run `command`; its exit code."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
    elif "-o" in command:
        name = Path(command[command.index("-o") + 1]).name
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, name + ".txt").write_text(done.stdout + done.stderr)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
