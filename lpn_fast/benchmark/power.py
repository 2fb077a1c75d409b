"""Watts of a GPU while something runs, where the driver's library answers (NVML, read through ctypes: no package)."""

import ctypes
import threading
from collections.abc import Callable

import torch

INTERVAL = 0.02  # seconds between two readings; the driver renews its own at about that rate


def reader(device: torch.device) -> Callable[[], float] | None:
    """A function that gives the watts drawn now; None where nothing says it."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # as NVML counts, CUDA may not
    handle, milliwatts = ctypes.c_void_p(), ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
        return None

    def watts() -> float:
        if nvml.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milliwatts)):
            raise OSError("NVML has no power reading")
        return milliwatts.value / 1e3

    try:
        watts()
    except OSError:
        return None
    return watts


def mean_watts(read: Callable[[], float], call: Callable[[], object]) -> float:
    """The mean of readings while `call` runs, at least one."""
    found, done = [read()], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            found.append(read())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return sum(found[1:] or found) / len(found[1:] or found)
