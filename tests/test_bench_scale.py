"""The simulated queue agrees with what can be told without it."""

import random

import pytest

from bench.scale import throughput
from bench.scale.queue import BATCH, Costs, simulate

FOREVER = 1e12  # seconds between failures
FREE = Costs(solve=0.01, collect=0.0, hand_out=0.0, load=0.0)


def run(costs, workers, images=64_000, mean_life=FOREVER):
    return simulate(costs, workers, random.Random(0), images, mean_life)


def test_workers_without_shared_costs_share_the_work():
    one, ten = run(FREE, 1), run(FREE, 10, images=640_000)
    assert one["images_per_second"] == pytest.approx(1 / FREE.solve, rel=0.1)
    assert ten["images_per_second"] == pytest.approx(10 * one["images_per_second"], rel=0.1)


def test_a_driver_that_is_busy_is_the_limit():
    slow = Costs(solve=0.01, collect=0.001, hand_out=0.064, load=0.0)  # 2 ms of the driver per image
    many = run(slow, 1000)
    assert many["images_per_second"] == pytest.approx(500, rel=0.25) and many["driver_busy"] > 0.75


def test_failures_cost_batches_and_lose_none():
    lossy = run(FREE, 10, mean_life=20.0)
    assert lossy["failures"] > 10 and 0 < lossy["images_done_again"] <= 2 * BATCH * lossy["failures"]
    assert lossy["images_per_second"] < run(FREE, 10)["images_per_second"]


def test_a_rate_is_told_without_the_start_and_the_end():
    """Two workers that keep batches of four at almost the same moments, after ten seconds in which they are started."""
    steady = [(10 + 2 * step + worker / 10, 4) for step in range(10) for worker in range(2)]
    assert throughput._rate(steady) == pytest.approx(4.0, rel=0.05)
    alone_at_the_end = steady + [(30 + 5 * step, 1) for step in range(4)]
    assert throughput._rate(alone_at_the_end) == pytest.approx(4.0, rel=0.05)


def test_cpu_times_are_told_apart_by_the_kind_of_process():
    me = throughput.os.getpid()
    seconds = {me: ("python", 1.0), 2: ("ray::MapWorker(MapBatches(SolveAndWrite))", 5.0), 3: ("raylet", 0.5)}
    assert throughput._by_kind(seconds) == {"driver": 1.0, "worker": 5.0, "other": 0.5}
    assert throughput.cpu_seconds(me)[me][1] > 0.1
