"""A queue of 1 to 1,000 workers with failures, from the costs that bench.scale.costs measured.

    driver      one: hands out batches one after the other, and collects their lines
    worker      loads its network; then gets a batch, solves it and puts its results, which overlaps the next batch
    store       answers so many requests a second, whoever asks; one put per image and one for the lines of a batch
    failure     of a worker, at random; the batches that it has in hand are done again, by whoever is free

Only what is shared is simulated request by request; times within a worker are the measured ones. Two kinds of image:
those of 64 x 64 of the measurement, and those that take a worker a second, as a reconstruction of a photograph does.
"""

import csv
import heapq
import random
from dataclasses import dataclass
from pathlib import Path

COSTS = Path(__file__).resolve().parents[1] / "results" / "scale" / "costs.csv"
IMAGES, BATCH, IN_HAND = 10**6, 64, 2
WORKERS = (1, 10, 100, 1000)
REQUESTS_PER_SECOND = 3500.0  # puts that S3 promises for one prefix
LATENCY, AT_ONCE = 0.05, 64  # seconds of a request across a network, and requests of a client at once
MEAN_LIFE, RESTART = 6 * 3600.0, 30.0  # seconds: a machine that may be taken away, and what starts another one


@dataclass(frozen=True)
class Costs:
    """Seconds, of an image unless said otherwise."""

    solve: float
    collect: float  # in the driver
    hand_out: float  # a batch, in the driver
    load: float  # a worker

    @classmethod
    def measured(cls, solve: float | None = None) -> "Costs":
        with open(COSTS, newline="") as file:
            cost = {row["what"]: float(row["value"]) for row in csv.DictReader(file)}
        own = cost["decode, denoise and encode it, one thread"]
        return cls(
            solve or own,
            cost["collect its line, in the driver"],
            cost["hand on a batch, Ray"],
            cost["load the network"],
        )


def table(seed: int = 0) -> list[dict]:
    """A row per kind of image and number of workers."""
    kinds = {"64 x 64, denoised": Costs.measured(), "1 s each": Costs.measured(solve=1.0)}
    return [
        {"image": kind} | simulate(costs, workers, random.Random(seed))
        for kind, costs in kinds.items()
        for workers in WORKERS
    ]


def simulate(
    costs: Costs, workers: int, chance: random.Random, images: int = IMAGES, mean_life: float = MEAN_LIFE
) -> dict:
    """One job: how long it takes, what keeps it, and what failures cost."""
    waiting = images // BATCH
    driver = store = driver_busy = store_busy = 0.0  # when each is free again, and how long it was busy
    again = kept = failures = 0
    ends = [chance.expovariate(1 / mean_life) for _ in range(workers)]
    events = [(RESTART + costs.load, worker) for worker in range(workers)]  # when a worker asks for a batch
    heapq.heapify(events)
    last = 0.0
    moving = LATENCY * -(-BATCH // AT_ONCE)  # for a batch's files, in or out
    while kept < images // BATCH:
        now, worker = heapq.heappop(events)
        if not waiting:
            continue
        waiting -= 1
        driver = max(driver, now) + costs.hand_out + BATCH * costs.collect
        driver_busy += costs.hand_out + BATCH * costs.collect
        requests = (2 * BATCH + 1) / REQUESTS_PER_SECOND
        store = max(store, driver) + requests
        store_busy += requests
        done = max(store, driver) + max(BATCH * costs.solve, 2 * moving)  # reading and writing overlap solving
        if done > ends[worker]:  # it ends with what it has in hand
            lost = min(IN_HAND, 1 + kept)
            waiting, again, failures = waiting + lost, again + lost, failures + 1
            kept -= lost - 1
            restarted = max(ends[worker], now) + RESTART + costs.load
            ends[worker] = restarted + chance.expovariate(1 / mean_life)
            heapq.heappush(events, (restarted, worker))
            continue
        kept, last = kept + 1, max(last, done)
        heapq.heappush(events, (done, worker))
    ideal = images * costs.solve / workers
    return {
        "workers": workers,
        "images": images,
        "hours": round(last / 3600, 3),
        "images_per_second": round(images / last, 1),
        "efficiency": round(ideal / last, 3),
        "driver_busy": round(driver_busy / last, 3),
        "store_busy": round(store_busy / last, 3),
        "failures": failures,
        "images_done_again": again * BATCH,
    }
