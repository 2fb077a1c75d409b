"""What the commands of a job have in common: arguments, the job, what is printed of it, the exit code.

Started by torchrun, every process does its share and prints a line of its own. Only the process that ends last
exits with 1 for images that failed: torchrun would end the others as soon as one does.
"""

import argparse
import statistics
from collections import Counter
from pathlib import Path

from .. import pipeline
from ..io.finding import find
from ..networks import LPN
from ..pipeline import ItemResult, Share, Summary
from ..pipeline.report import check_target, write_report
from ..pipeline.tasks import Task
from ..solvers import Conditions
from . import beyond, options
from .tables import table

FAR = 3.0  # factor between a noise level and its estimate from which on one of them is doubted
RESUME = "finished images are kept, the same command goes on where this one stopped"
FORMATS = "png, jpg, tif and stacks, bmp, webp, jp2, pgm, npy, dcm; npz, zip, h5"


def add_job(parser: argparse.ArgumentParser, out: str, purpose: str, model: str = options.AUTO) -> None:
    """Images in, results out, model and machine."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help=f"files, folders, patterns, @list.txt: {FORMATS}")
    add("-o", "--out", required=True, metavar=out, help=purpose)
    add("-r", "--recursive", action="store_true", help="look into subfolders; results keep the folders' structure")
    options.add_model(parser, model)
    add(
        "--intensities",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what becomes 0 and 1 of the numbers in the files (default: by their type; of CT -1024 3071)",
    )
    options.add_machine(parser)
    add("--batch-pixels", type=int, metavar="N", help="pixels per network evaluation (default: what fits into memory)")
    parser.set_defaults(when_interrupted=RESUME)


def add_images_out(parser: argparse.ArgumentParser, model: str = options.AUTO) -> None:
    """The arguments of `add_job` and those of jobs that make images."""
    add_job(parser, "DIR", "for results and manifest.jsonl", model)
    add = parser.add_argument
    add("--simulate", action="store_true", help="IMAGES are truths: degrade them first, then print PSNR and SSIM")
    add("--seed", type=int, metavar="N", help="of that noise (default: 0)")
    add("--report", type=Path, metavar="HTML", help="write a page with thumbnails, numbers and conditions")
    beyond.add_arguments(parser)


def prepare(args, out: Path | None = None) -> tuple[LPN | str, Share]:
    """The model on the device of this process, or "auto", once images are found, which are not looked for in `out`."""
    _check_options(args)
    args.intensities = None if args.intensities is None else tuple(args.intensities)
    options.set_threads(args.threads)
    share = Share.from_environment()
    if beyond.is_meant(args):
        beyond.check(args, share)
    else:
        args.found = find(args.images, args.recursive, out or Path(args.out))  # wrong names are told before all else
    if args.device == "cuda" and not share.is_only:
        args.device = f"cuda:{share.local_rank}"
    return options.load_image_model(args.model, args.device), share


def _check_options(args) -> None:
    if getattr(args, "seed", None) is not None and not args.simulate:
        raise ValueError("--seed has no effect without --simulate")
    if getattr(args, "report", None) is not None:
        check_target(args.report)


def run(args, task: Task, model: LPN | str, share: Share, heading: str, conditions: Conditions | None = None) -> int:
    """Run the job; the exit code."""
    if share.rank == 0:
        print(heading if conditions is None else f"{heading}\n\n{conditions}", end="\n\n", flush=True)
    if beyond.is_meant(args):
        return beyond.run(args, task)
    summary = work(args, task, model, share, args.out, simulate=args.simulate, seed=args.seed or 0)
    is_last = summary.everything is not None
    if args.report is not None and is_last:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        about = heading, conditions, args.intensities
        write_report(args.report, summary.everything, summary.sources, args.out, *about)
    if args.simulate and (summary.done or summary.skipped):
        print(_quality_table((*summary.done, *summary.skipped)))
    print_summary(summary, share, args.out)
    warn_of_noise(task, summary)
    if is_last:
        for name in summary.incomplete:
            print(f"{name} is incomplete, some of its images failed; the others are in {args.out}/{name}.parts")
        if args.report is not None:
            print(f"report: {args.report}")
    return exit_code(summary, share)


def work(args, task: Task, model: LPN | str, share: Share, out: str | Path, **options) -> Summary:
    """The job of the shared arguments."""
    return pipeline.reconstruct(
        args.found,
        out,
        task=task,
        model=model,
        recursive=args.recursive,
        batch_pixels=args.batch_pixels,
        intensities=args.intensities,
        share=share,
        device=args.device,
        progress=True,
        **options,
    )


def exit_code(summary: Summary, share: Share) -> int:
    """1 if an image failed."""
    failed = any(result.status != "done" for result in summary.everything or ())
    return 1 if failed or (share.is_only and summary.failed) else 0


def print_summary(summary: Summary, share: Share, out: str | Path) -> None:
    """What became of the images, where results are."""
    finished = (*summary.done, *summary.skipped)
    for result in summary.failed:
        print(f"failed: {result.source}: {result.error}")
    for result in finished:
        for note in result.notes:
            print(f"note: {result.source}: {note}")
    late = sum(result.converged is False for result in finished if result.value is None)
    if late:
        print(f"{late} images did not converge within the iterations allowed")
    earlier = f", {len(summary.skipped)} finished earlier" if summary.skipped else ""
    used = Counter(result.model for result in finished if result.model is not None)
    if used:
        print("models: " + ", ".join(f"{name} {count}" for name, count in used.items()))
    levels = [result.sigma for result in finished if result.sigma is not None]
    if levels and min(levels) < max(levels):
        print(f"noise: {min(levels):.3g} to {max(levels):.3g}, {statistics.median(levels):.3g} in the middle")
    if summary.passed_over and share.rank == 0:
        print(summary.passed_over)
    whose = "" if share.is_only else f"process {share.rank} of {share.world}: "
    print(f"{whose}{len(summary.done)} done{earlier}, {len(summary.failed)} failed -> {out}", flush=True)


def warn_of_noise(task: Task, summary: Summary) -> None:
    """Say so if what was said of the noise is far from what the images show."""
    said = task.expected_noise
    shown = [r.noise_estimate for r in (*summary.done, *summary.skipped) if r.noise_estimate]
    off = [level for level in shown if said and not said / FAR <= level <= said * FAR]
    if off:
        print(
            f"warning: the noise given, {said:g}, is off by a factor above {FAR:g} from what {len(off)} of "
            f"{len(shown)} images show, {statistics.median(off):.2g} in the middle; auto takes what they show"
        )


def _quality_table(finished: tuple[ItemResult, ...]) -> str:
    results = sorted(finished, key=lambda result: result.item)
    header = ("image", "size", "PSNR before", "SSIM before", "PSNR", "SSIM", "seconds")
    rows = [
        (r.item, f"{r.width} x {r.height}", r.psnr_before, r.ssim_before, r.psnr, r.ssim, r.seconds) for r in results
    ]
    return table(header, rows, mean_of=(2, 6))
