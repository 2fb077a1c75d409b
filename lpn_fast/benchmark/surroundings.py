"""Where and when a measurement was made: device, versions, commit. Neither paths nor the name of the machine."""

import contextlib
import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from .. import __version__


def surroundings(threads: int, device: torch.device | None = None) -> dict:
    """The columns that say where and when; the same for every row of a run."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "device": f"{_cpu_model()}, {isa()}",
        "threads": threads,
        "driver": "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": "",
        "lpn_fast": __version__,
        "commit": commit(),
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    } | (gpu_facts() if on_gpu else {})


@functools.cache
def gpu_facts() -> dict:
    """The columns that say which GPU, driver and Triton."""
    facts = {"triton": ""}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts["triton"] = importlib.metadata.version("triton")
    if torch.cuda.is_available():
        facts |= {"device": torch.cuda.get_device_name(), "driver": _driver()}
    return facts


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _cpu_model() -> str:
    """The processor's name; the machine's own name stays out."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def isa() -> str:
    """The instruction set of the compiled module, or that there is none."""
    try:
        from .. import _cpu
    except ImportError:
        return "no compiled module"
    return _cpu.isa()


def commit(root: Path = Path(__file__).resolve().parents[2]) -> str:  # noqa: B008
    """Short commit of a checkout, with + if files differ from it; "unknown" outside one."""
    commands = (["rev-parse", "--show-toplevel"], ["rev-parse", "--short", "HEAD"])
    try:
        top, head, changes = (
            subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in (*commands, ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    if Path(top).resolve() != root:  # installed into somebody else's checkout
        return "unknown"
    return head + ("+" if changes else "")
