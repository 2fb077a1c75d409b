"""What the commands of a job have in common: arguments, the job, what is printed of it, the exit code.

Started by torchrun, every process does its share and prints a line of its own. Only the process that ends last
exits with 1 for images that failed: torchrun would end the others as soon as one does. Jobs with `--engine ray`, or
with images or results at URLs, are those of `lpn_fast.jobs`.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from .. import jobs, pipeline
from ..contract import check_device
from ..jobs.places import is_url
from ..networks import LPN
from ..pages import check_target
from ..pipeline import ItemResult, Share, Summary
from ..pipeline.manifest import MANIFEST
from ..pipeline.report import write_report
from ..pipeline.tasks import Task
from ..solvers import Conditions
from . import options
from .tables import table

FAR = 3.0  # factor between a noise level and its estimate from which on one of them is doubted
RESUME = "finished images are kept, the same command goes on where this one stopped"
FORMATS = "png, jpg, tif and stacks, bmp, webp, jp2, pgm, npy, dcm; npz, zip, h5"


def add_job(parser: argparse.ArgumentParser, out: str, purpose: str) -> None:
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help=f"files, folders, patterns, @list.txt: {FORMATS}")
    add("-o", "--out", required=True, metavar=out, help=purpose)
    add("-r", "--recursive", action="store_true", help="look into subfolders; results keep the folders' structure")
    options.add_model(parser, options.AUTO)
    intensities = "what becomes 0 and 1 of the numbers in the files (default: by their type; of CT -1024 3071)"
    add("--intensities", type=float, nargs=2, metavar=("LOW", "HIGH"), help=intensities)
    options.add_machine(parser)
    add("--report", type=Path, metavar="HTML", help="write a page with pictures, distributions and numbers")
    add("--batch-pixels", type=int, metavar="N", help="pixels per network evaluation (default: what fits into memory)")
    parser.set_defaults(when_interrupted=RESUME, simulate=False, seed=None, engine=None)


def add_images_out(parser: argparse.ArgumentParser) -> None:
    """The arguments of `add_job` and those of jobs that make images."""
    add_job(parser, "DIR", "for results and manifest.jsonl")
    add = parser.add_argument
    add("--simulate", action="store_true", help="IMAGES are truths: degrade them first, then print PSNR and SSIM")
    add("--seed", type=int, metavar="N", help="of that noise (default: 0)")
    add("--engine", choices=("ray",), help="spread the job over a Ray cluster, or a Ray of its own on this machine")
    add("--address", metavar="ADDRESS", help="of that cluster: auto, or ray://HOST:PORT (default: $RAY_ADDRESS)")
    add("--workers", type=int, metavar="N", help="most workers of the engine (default: one per GPU, or core)")


def prepare(args) -> tuple[LPN | str, Share]:
    """The model on the device of this process, or "auto"; and which of the processes this is."""
    if args.seed is not None and not args.simulate:
        raise ValueError("--seed has no effect without --simulate")
    if args.report is not None:
        check_target(args.report)
    options.set_threads(args.threads)
    share = Share.from_environment()
    urls = list(filter(is_url, (*args.images, args.out)))
    args.is_beyond = args.engine is not None or bool(urls)  # not a job of files on this machine alone
    if args.is_beyond:
        _check_beyond(args, share, urls)
    if args.device == "cuda" and share.world > 1:
        args.device = f"cuda:{share.local_rank}"
    check_device(args.device)
    return args.model if args.model == options.AUTO else options.load_model(args.model, args.device), share


def _check_beyond(args, share: Share, urls: list[str]) -> None:
    where = "--engine ray" if args.engine else "URLs"
    if "workers" not in args:  # scores
        raise ValueError(f"images and scores of this command must be files, got {urls[0]}; copy the images to a folder")
    if args.simulate:
        raise ValueError(
            f"--simulate is for jobs of one machine, not for {where}: give it images of a folder without {where}, or "
            "degrade the images first and reconstruct those"
        )
    if args.report is not None:
        instead = (
            "run the job without --report, then once more with it and without --engine, which computes nothing again"
            if args.engine and not urls
            else f"{MANIFEST} beside the results has its numbers"
        )
        raise ValueError(f"--report is for jobs of one machine, not for {where}: {instead}")
    if share.world > 1:
        raise ValueError(f"{where} must not be started by torchrun: an engine shares the images out itself")
    if args.engine is None and (args.address is not None or args.workers is not None):
        raise ValueError("--address and --workers need --engine ray")


def run(args, task: Task, model: LPN | str, share: Share, heading: str, conditions: Conditions | None = None) -> int:
    if share.rank == 0:
        print(heading if conditions is None else f"{heading}\n\n{conditions}", end="\n\n", flush=True)
    if not args.is_beyond:
        return exit_code(work(args, task, model, share, args.out, conditions))
    threads = args.threads or (1 if args.engine else None)
    engine = jobs.OnRay(args.address, args.workers, args.device, threads) if args.engine else None
    told = _shared(args, task) | {"model": args.model, "engine": engine, "threads": threads}
    tally = jobs.reconstruct(args.images, args.out, **told)
    _print(tally, args.out)
    return 1 if tally.failed else 0


def work(
    args, task: Task, model: LPN | str, share: Share, out: str | Path, conditions: Conditions | None = None
) -> Summary:
    """Do the job in the folder `out`, say what became of the images, and write the page that was asked for."""
    told = _shared(args, task) | {"model": model, "share": share, "simulate": args.simulate, "seed": args.seed or 0}
    summary = pipeline.reconstruct(args.images, out, **told)
    finished = (*summary.done, *summary.skipped)
    if args.simulate and finished:
        print(_quality_table(finished))
    tally = jobs.Tally(str(out), passed_over=summary.passed_over if share.rank == 0 else "")
    for result in (*finished, *summary.failed):
        tally.add(result)
    tally.done, tally.earlier = len(summary.done), len(summary.skipped)
    tally.incomplete = summary.incomplete if summary.everything is not None else ()
    levels = [r.noise_estimate for r in finished if r.noise_estimate is not None] if task.estimates_noise else []
    _print(tally, args.out, levels, f"process {share.rank} of {share.world}: " if share.world > 1 else "")
    _warn_of_noise(task.expected_noise, [r.noise_estimate for r in finished if r.noise_estimate])
    if args.report is not None and summary.everything is not None:
        write_report(args.report, summary, task, model=args.model, command=args.command_line, conditions=conditions)
        print(f"report: {args.report}")
    return summary


def _shared(args, task: Task) -> dict:
    names = ("recursive", "batch_pixels", "intensities", "device")
    return {"task": task, "progress": True} | {name: getattr(args, name) for name in names}


def exit_code(summary: Summary) -> int:
    """1 if an image failed, of whichever process, and no other process is still at work."""
    return int(any(result.status != "done" for result in summary.everything or ()))


def _print(tally: jobs.Tally, out: str | Path, levels: Sequence[float] = (), whose: str = "") -> None:
    for result in tally.failures:
        print(f"failed: {result.source}: {result.error}")
    for source, note in tally.notes:
        print(f"note: {source}: {note}")
    if tally.late:
        print(f"{tally.late} images did not converge within the iterations allowed")
    if tally.models:
        print("models: " + ", ".join(f"{name} {count}" for name, count in tally.models.items()))
    if levels and min(levels) < max(levels):
        print(f"noise: {min(levels):.3g} to {max(levels):.3g}, {statistics.median(levels):.3g} in the middle")
    if tally.passed_over:
        print(tally.passed_over)
    for name in tally.incomplete:
        print(f"{name} is incomplete, some of its images failed; the others are in {out}/{name}.parts")
    earlier = f", {tally.earlier} finished earlier" if tally.earlier else ""
    print(f"{whose}{tally.done} done{earlier}, {tally.failed} failed -> {out}", flush=True)


def _warn_of_noise(said: float | None, shown: list[float]) -> None:
    off = [level for level in shown if said and not said / FAR <= level <= said * FAR]
    if off:
        print(
            f"warning: the noise given, {said:g}, is off by a factor above {FAR:g} from what {len(off)} of "
            f"{len(shown)} images show, {statistics.median(off):.2g} in the middle; auto takes what they show"
        )


def _quality_table(finished: tuple[ItemResult, ...]) -> str:
    results = sorted(finished, key=lambda result: result.item)
    header = ("image", "size", "PSNR before", "SSIM before", "PSNR", "SSIM", "seconds")
    fields = ("psnr_before", "ssim_before", "psnr", "ssim", "seconds")
    rows = [(r.item, f"{r.width} x {r.height}", *(getattr(r, name) for name in fields)) for r in results]
    return table(header, rows, mean_of=(2, 6))
