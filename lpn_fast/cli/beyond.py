"""Jobs beyond one machine: `--engine ray`, and images or results at URLs."""

import argparse

from .. import jobs
from ..jobs.places import is_url
from ..pipeline import Share
from ..pipeline.manifest import NAME
from ..pipeline.tasks import Task
from . import options

ENGINES = ("ray",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which engine, and what it is told."""
    add = parser.add_argument
    add("--engine", choices=ENGINES, help="spread the job over a Ray cluster, or a Ray of its own on this machine")
    add("--address", metavar="ADDRESS", help="of that cluster: auto, or ray://HOST:PORT (default: $RAY_ADDRESS)")
    add("--workers", type=int, metavar="N", help="most workers of the engine (default: one per GPU, or core)")


def is_meant(args) -> bool:
    """Whether a job is one of this kind."""
    return getattr(args, "engine", None) is not None or any(map(is_url, (*args.images, args.out)))


def check(args, share: Share) -> None:
    """Raise a ValueError for options that such jobs do not have."""
    where = "--engine ray" if args.engine else "URLs"
    if args.simulate:
        raise ValueError(
            f"--simulate is for jobs of one machine, not for {where}: give it images of a folder without {where}, or "
            "degrade the images first and reconstruct those"
        )
    if args.report is not None:
        instead = (
            "run the job without --report, then once more with it and without --engine, which computes nothing again"
            if args.engine and not any(map(is_url, (*args.images, args.out)))
            else f"{NAME} beside the results has its numbers"
        )
        raise ValueError(f"--report is for jobs of one machine, not for {where}: {instead}")
    if not share.is_only:
        raise ValueError(f"{where} must not be started by torchrun: an engine shares the images out itself")
    if args.engine is None and (args.address is not None or args.workers is not None):
        raise ValueError("--address and --workers need --engine ray")


def run(args, task: Task) -> int:
    """Run the job; the exit code."""
    threads = args.threads or (1 if args.engine else None)
    engine = jobs.OnRay(args.address, args.workers, args.device, threads) if args.engine else None
    tally = jobs.reconstruct(
        args.images,
        args.out,
        task=task,
        model=args.model,
        engine=engine,
        recursive=args.recursive,
        intensities=None if args.intensities is None else tuple(args.intensities),
        device=args.device,
        threads=threads,
        batch_pixels=args.batch_pixels,
        progress=True,
    )
    for result in tally.failures:
        print(f"failed: {result.source}: {result.error}")
    for source, note in tally.notes:
        print(f"note: {source}: {note}")
    if tally.late:
        print(f"{tally.late} images did not converge within the iterations allowed")
    if tally.models and args.model == options.AUTO:
        print("models: " + ", ".join(f"{name} {count}" for name, count in tally.models.items()))
    if tally.passed_over:
        print(tally.passed_over)
    for name in tally.incomplete:
        print(f"{name} is incomplete, some of its images failed; the others are in {args.out}/{name}.parts")
    earlier = f", {tally.earlier} finished earlier" if tally.earlier else ""
    print(f"{tally.done} done{earlier}, {tally.failed} failed -> {args.out}", flush=True)
    return 1 if tally.failed else 0
