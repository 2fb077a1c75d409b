"""Compiler launcher of the CUDA kernels: keeps what ptxas reported, and compiles the same text only once.

    compile_kernels.py REPORTS nvcc ... SOURCE ... -o OBJECT ...        writes REPORTS/<name of OBJECT>.txt

`ptxas -v` tells registers, stack and spills of every kernel on standard error, where a build tool shows it or loses
it. Warnings end in the same file; tests read it (tests/test_cuda_build.py). Of a command that fails everything is
shown, as if it had been run directly.

Compiling takes minutes, and a checkout touches files that it does not change. So results are kept in
~/.cache/lpn_fast/nvcc (or $LPN_FAST_COMPILE_CACHE; "off" keeps none) under a digest of the command, of every source
and header beside SOURCE, and of the versions of nvcc and the host compiler.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = "<root>"  # for ROOT in what is kept
SOURCES = (".cu", ".cuh", ".h", ".cpp")
MOST_ENTRIES = 48  # about 3 MB each; the oldest go


def main(reports: str, *command: str) -> int:
    """Run `command`, or take its results from before; its exit code."""
    outputs = {flag: Path(command[command.index(flag) + 1]) for flag in ("-o", "-MF") if flag in command}
    entry = _entry(command) if "-o" in outputs and "-c" in command else None
    report = Path(reports, outputs["-o"].name + ".txt") if "-o" in outputs else None
    if entry is not None and _restore(entry, outputs, report):
        return 0
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
    elif report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(done.stdout + done.stderr)
        if entry is not None:
            _keep(entry, outputs, report)
    return done.returncode


def _entry(command: tuple[str, ...]) -> Path | None:
    """The folder of the command's results; None where none are kept."""
    chosen = os.environ.get("LPN_FAST_COMPILE_CACHE", "")
    if chosen.lower() == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(chosen) if chosen else Path(home, "lpn_fast", "nvcc")
    digest = hashlib.sha256("\0".join(command).replace(str(ROOT), PLACEHOLDER).encode())
    source = Path(command[command.index("-c") + 1])
    try:
        for path in sorted(source.parent.iterdir()):
            if path.suffix in SOURCES:
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
        for compiler in (command[0], os.environ.get("CXX", "c++")):
            digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return None
    return folder / digest.hexdigest()[:32]


def _restore(entry: Path, outputs: dict[str, Path], report: Path) -> bool:
    """Put the results of an entry where the command would have; whether there was one."""
    try:
        kept = (entry / "report").read_text()
        if "-MF" in outputs:
            text = (entry / "dependencies").read_text().replace(PLACEHOLDER, str(ROOT))
            outputs["-MF"].write_text(text)
        shutil.copyfile(entry / "object", outputs["-o"])
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(kept)
        os.utime(entry)
    except OSError:
        return False
    return True


def _keep(entry: Path, outputs: dict[str, Path], report: Path) -> None:
    """Make an entry; a failure to do so is nobody's concern."""
    scratch = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=entry.parent))
        shutil.copyfile(outputs["-o"], scratch / "object")
        if "-MF" in outputs:
            text = outputs["-MF"].read_text().replace(str(ROOT), PLACEHOLDER)
            (scratch / "dependencies").write_text(text)
        shutil.copyfile(report, scratch / "report")
        os.rename(scratch, entry)
        entries = sorted(entry.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in entries[:-MOST_ENTRIES]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:  # another build may have made it meanwhile
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
