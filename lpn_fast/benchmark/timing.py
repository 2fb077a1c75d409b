"""Interleaved timing: every provider once per round, so that what the machine does meanwhile hits them all.

A ratio is formed within a round and its spread is over the rounds. The order rotates from round to round; short
calls are repeated within a measurement until it is long against the clock and a scheduling quantum's start.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MIN_SECONDS = 0.02  # per measurement
MAX_REPEATS = 2000


@dataclass(frozen=True)
class Spread:
    """Median and the 20 % and 80 % quantiles over the rounds."""

    p50: float
    p20: float
    p80: float


def spread(values: list[float]) -> Spread:
    """Quantiles with linear interpolation."""
    ordered = sorted(values)

    def quantile(q: float) -> float:
        at = q * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    return Spread(quantile(0.5), quantile(0.2), quantile(0.8))


def wait_for(device: torch.device | None) -> None:
    """Until a GPU has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(baseline: list[float], ours: list[float]) -> Spread:
    """Spread over the rounds of time of the baseline / our time."""
    return spread([b / o for b, o in zip(baseline, ours, strict=True)])


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, seconds: float, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds per call, one entry per round, for every name.

    Parameters
    ----------
    calls : dict of name -> function without arguments, warm already
    rounds : int
        At most so many; at least three, however long they take.
    seconds : float
        Budget: no further round begins once the next would exceed it.
    device : torch.device, optional
        Where the calls' work goes: a GPU is waited for before and after every measurement.
    """
    wait = functools.partial(wait_for, device)
    repeats, once = {}, 0.0
    for name, call in calls.items():
        wait()
        start = time.perf_counter()
        call()
        wait()
        elapsed = time.perf_counter() - start
        repeats[name] = min(MAX_REPEATS, max(1, math.ceil(MIN_SECONDS / max(elapsed, 1e-7))))
        once += elapsed * repeats[name]
    rounds = max(3, min(rounds, int(seconds / once))) if rounds >= 3 else rounds
    names, times = list(calls), {name: [] for name in calls}
    for r in range(rounds):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            call = calls[name]
            wait()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times
