"""Runs a batch job in processes that are killed at random, and prints what was computed when, as JSON.

    python killed_job.py TASK IMAGES OUT CHECKPOINT WORLD KILLS SEED

Not a test itself: a process of its own, because it forks, and forks are only safe where no thread runs. Images are
arrays whose first value is their number / SCALE, so that a batch says whose it is.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.pipeline import Denoise, Reconstruct, Score, Share, problems, reconstruct
from lpn_fast.pipeline.manifest import read_results

SIDE, SCALE, BATCH, SIGMA = 8, 4096, 20, 0.1
POLL_SECONDS = 0.002
FAILED = 2  # exit code of a process that recorded images as failed
PROBE_SIDE = 32  # side of the blank image that is tried before a job


TASKS = {
    "denoise": Denoise(SIGMA),
    "reconstruct": Reconstruct(problems.blur(lf.physics.Blur.gaussian(0.5)), SIGMA, solver="pgd", iterations=2),
    "prior": Score(SIGMA, max_iter=2),
}


def recorded(task, log):
    """The task, noting the numbers of the images that it has computed."""

    class Recorded(type(task)):
        def solve(self, y, model, *rest, **options):
            solution = super().solve(y, model, *rest, **options)
            if y.shape[-1] != PROBE_SIDE:
                numbers = (y[:, 0, 0, 0] * SCALE).round().int().tolist()
                with open(log, "ab", buffering=0) as file:
                    file.write("".join(f"{number}\n" for number in numbers).encode())
            return solution

    return Recorded(**vars(task))


def start(task, images, out, model, share):
    """A child process that does its share of the job; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        summary = reconstruct(images, out, task=task, model=model, batch_pixels=BATCH * SIDE * SIDE, share=share)
        for result in summary.failed:
            print(f"process {share.rank}: {result.item}: {result.error}", file=sys.stderr, flush=True)
        status = 0 if not summary.failed else FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finished(task, out):
    """Numbers of the images whose line is there, and their file if there is to be one."""
    if not out.is_dir():
        return set()
    done = [r.item for r in read_results(out).values() if r.status == "done"]
    done = [item for item in done if (out / item).exists() or not task.makes_images]
    return {int(Path(item).stem) for item in done}


def computed(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def main(task, images, out, checkpoint, world, kills, seed):
    torch.set_num_threads(1)
    model = lf.load(checkpoint)
    images, out, world = Path(images), Path(out), int(world)
    count, chance = len(list(images.iterdir())), random.Random(int(seed))
    # a quarter is left at the last kill: should this process be late on a busy machine, there is still one to kill
    thresholds = sorted(chance.sample(range(1, count - count // 4), int(kills)))
    rounds, log = [], out.parent / "computed.log"
    task = recorded(TASKS[task], log)
    for threshold in [*thresholds, None]:
        before, seen = finished(task, out), len(computed(log))
        children = [start(task, images, out, model, Share(rank, world)) for rank in range(world)]
        if threshold is not None:
            manifests = [out / ("manifest.jsonl" if rank == 0 else f"manifest.{rank}.jsonl") for rank in range(world)]
            while sum(path.read_bytes().count(b"\n") for path in manifests if path.exists()) < threshold:
                time.sleep(POLL_SECONDS)
            time.sleep(chance.random() * 0.02)
            for child in children:
                os.kill(child, signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        again = sorted(before & set(computed(log)[seen:]))
        rounds.append({"ends": ends, "finished": len(finished(task, out)), "computed_again": again})
    print(json.dumps({"rounds": rounds, "computed": len(computed(log)), "batch": BATCH}))


if __name__ == "__main__":
    main(*sys.argv[1:])
