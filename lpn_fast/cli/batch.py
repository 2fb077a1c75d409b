"""What `reconstruct` and `denoise` have in common: arguments, the job, what is printed of it, the exit code.

Started by torchrun, every process does its share and prints a line of its own. Only the process that ends last
exits with 1 for images that failed: torchrun would end the others as soon as one does.
"""

import argparse
from pathlib import Path

from .. import pipeline
from ..networks import LPN
from ..pipeline import ItemResult, Share, Summary
from ..pipeline.report import write_report
from ..pipeline.sources import find_sources
from ..pipeline.tasks import Task
from ..solvers import Conditions
from . import options
from .tables import table

RESUME = "finished images are kept, the same command goes on where this one stopped"
FORMATS = "png, jpg, tif and stacks, bmp, webp, jp2, pgm, npy, dcm; npz, zip, h5"


def add_arguments(parser: argparse.ArgumentParser, model: str = options.DEFAULT_MODEL) -> None:
    """Images in, folder out, model and machine."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help=f"files, folders, patterns, @list.txt: {FORMATS}")
    add("-o", "--out", required=True, metavar="DIR", help="for results and manifest.jsonl")
    options.add_model(parser, model)
    add("--simulate", action="store_true", help="IMAGES are truths: degrade them first, then print PSNR and SSIM")
    add("--seed", type=int, default=0, metavar="N", help="of that noise (default: 0)")
    add(
        "--intensities",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what becomes 0 and 1 of the numbers in the files (default: by their type; of CT -1024 3071)",
    )
    add("--report", type=Path, metavar="HTML", help="write a page with thumbnails, numbers and conditions")
    options.add_machine(parser)
    add("--batch-pixels", type=int, metavar="N", help="pixels per network evaluation (default: what fits into memory)")
    parser.set_defaults(when_interrupted=RESUME)


def prepare(args) -> tuple[LPN, Share]:
    """The model on the device of this process, once the images are known to be there."""
    options.set_threads(args.threads)
    share = Share.from_environment()
    pipeline.find_images(args.images)  # wrong names are told before the model is loaded
    device = f"cuda:{share.local_rank}" if args.device == "cuda" and not share.is_only else args.device
    return options.load_image_model(args.model, device), share


def run(args, task: Task, model: LPN, share: Share, heading: str, conditions: Conditions | None = None) -> int:
    """Run the job; the exit code."""
    if share.rank == 0:
        print(heading if conditions is None else f"{heading}\n\n{conditions}", end="\n\n", flush=True)
    summary = pipeline.reconstruct(
        args.images,
        args.out,
        task=task,
        model=model,
        simulate=args.simulate,
        seed=args.seed,
        batch_pixels=args.batch_pixels,
        intensities=None if args.intensities is None else tuple(args.intensities),
        share=share,
        progress=True,
    )
    is_last = summary.everything is not None
    if args.report is not None and is_last:
        sources, _ = find_sources(args.images)
        args.report.parent.mkdir(parents=True, exist_ok=True)
        write_report(args.report, summary.everything, sources, args.out, heading, conditions)
    _print(summary, share, args.simulate)
    if is_last:
        for name in summary.incomplete:
            print(f"{name} is incomplete, some of its images failed; the others are in {args.out}/{name}.parts")
        if args.report is not None:
            print(f"report: {args.report}")
    failed = any(result.status != "done" for result in summary.everything or ())
    return 1 if failed or (share.is_only and summary.failed) else 0


def _print(summary: Summary, share: Share, simulated: bool) -> None:
    finished = (*summary.done, *summary.skipped)
    if simulated and finished:
        print(_quality_table(finished))
    for result in summary.failed:
        print(f"failed: {result.source}: {result.error}")
    for result in finished:
        for note in result.notes:
            print(f"note: {result.source}: {note}")
    late = sum(result.converged is False for result in finished)
    if late:
        print(f"{late} images did not converge within the iterations allowed")
    earlier = f", {len(summary.skipped)} finished earlier" if summary.skipped else ""
    whose = "" if share.is_only else f"process {share.rank} of {share.world}: "
    print(f"{whose}{len(summary.done)} done{earlier}, {len(summary.failed)} failed -> {summary.out}", flush=True)


def _quality_table(finished: tuple[ItemResult, ...]) -> str:
    results = sorted(finished, key=lambda result: result.item)
    header = ("image", "size", "PSNR before", "SSIM before", "PSNR", "SSIM", "seconds")
    rows = [
        (r.item, f"{r.width} x {r.height}", r.psnr_before, r.ssim_before, r.psnr, r.ssim, r.seconds) for r in results
    ]
    return table(header, rows, mean_of=(2, 6))
