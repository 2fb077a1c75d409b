"""A job's process and those below it, from /proc: to find workers, and to sum up memory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ACTOR = "MapWorker"  # in the name that Ray gives a process whose actor solves


def start_job(settings: dict) -> subprocess.Popen:
    """A driver, in a group of its own."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "bench.scale.job", json.dumps(settings)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(job: subprocess.Popen, timeout: float) -> dict:
    """What the job prints at its end."""
    out, errors = job.communicate(timeout=timeout)
    if job.returncode:
        raise RuntimeError(errors.decode()[-3000:])
    return json.loads(out.splitlines()[-1])


def below(root: int) -> dict[int, str]:
    """{process: its command line} of all processes that descend from one, and it."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    found, waiting = {}, [root]
    while waiting:
        process = waiting.pop()
        if process in names:
            found[process] = names[process]
        waiting += [child for child, parent in parents.items() if parent == process]
    return found


def actors(root: int) -> list[int]:
    """The workers of a job that solve."""
    return [process for process, name in below(root).items() if ACTOR in name and name.startswith("ray::")]


def cpu_seconds(root: int) -> dict[int, tuple[str, float]]:
    """{process: (its command line, CPU seconds it has used)} of those below one, and it."""
    seconds = {}
    for process, name in below(root).items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            seconds[process] = name, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def end_all(processes: dict[int, str], patience: float = 20.0) -> list[str]:
    """Wait until processes have ended by themselves, then end the rest; what those are called."""
    until = time.monotonic() + patience
    while time.monotonic() < until and any(map(_is_alive, processes.items())):
        time.sleep(0.2)
    left = [item for item in processes.items() if _is_alive(item)]
    for process, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return [Path(name.split()[0]).name for _, name in left]


def memory(root: int) -> tuple[int, int, int]:
    """(bytes of the driver, of the largest other process, of all): private ones, and shared ones once."""
    private, shared = {}, [0]
    for process in below(root):
        with contextlib.suppress(OSError, KeyError):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            values = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            private[process] = 1024 * values["RssAnon"]
            shared.append(1024 * values["RssShmem"])
    others = [value for process, value in private.items() if process != root]
    return private.get(root, 0), max(others, default=0), sum(private.values()) + max(shared)


def _is_alive(item: tuple[int, str]) -> bool:
    process, name = item
    try:  # a number may have been given to another process since
        return (
            Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()[:20] == name[:20] != ""
        )
    except OSError:
        return False
