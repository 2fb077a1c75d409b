"""Arguments that several commands share, and the values they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..networks import LPN, list_pretrained, load, pretrained
from ..pipeline import Summary
from ..pipeline.batches import BATCH_PIXELS
from .tables import table

DEFAULT_MODEL = "natural-gray"
RESUME = "finished images are kept, the same command goes on where this one stopped"


def add_command(subparsers, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command, with examples below its help."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Images in, folder out, model and machine."""
    formats = "png, jpg, tif, bmp, npy"
    parser.add_argument("images", nargs="+", metavar="IMAGES", help=f"files, folders, patterns: {formats}")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="for results and manifest.jsonl")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME_OR_PATH",
        help="shipped model (see lpn-fast info) or a file of lpn_fast.save (default: %(default)s)",
    )
    simulate = "IMAGES are truths: degrade them first, then print PSNR and SSIM"
    parser.add_argument("--simulate", action="store_true", help=simulate)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that noise (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--batch-pixels",
        type=int,
        default=BATCH_PIXELS,
        metavar="N",
        help="pixels per network evaluation; raise it for a GPU (default: %(default)s)",
    )
    parser.set_defaults(when_interrupted=RESUME)


def set_threads(threads: int | None) -> None:
    """Use that many CPU threads; ValueError below 1."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def load_model(name_or_path: str, device: str = "cpu") -> LPN:
    """A shipped model by name, or one from a file.

    Raises
    ------
    ValueError
        Neither, a file that is no model, or a device that is not there.
    """
    try:
        device = torch.device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that torch can use here, got {device}; try cpu") from error
    if name_or_path in list_pretrained():
        return pretrained(name_or_path, device)
    if Path(name_or_path).is_file():
        return load(name_or_path, device)
    shipped = ", ".join(list_pretrained()) or "none"
    raise ValueError(f"--model must be a shipped model ({shipped}) or an existing file, got {name_or_path!r}")


def describe_level(model: LPN, sigma: float | None) -> str:
    """The noise level the network works at, in words, with a warning outside the levels it knows."""
    if sigma is None:
        own = model.card.get("sigma")
        return "its one noise level" + (f", {own:g}" if isinstance(own, int | float) else "")
    low, high = model.spec.noise_levels[0], model.spec.noise_levels[-1]
    if low <= sigma <= high:
        return f"sigma {sigma:.4g}"
    return f"sigma {sigma:.4g}, treated as the nearest it knows ({low:g} to {high:g})"


def report(summary: Summary, simulated: bool) -> int:
    """Print what became of a job and return its exit code: 1 if an image failed."""
    if simulated:
        print(_quality_table(summary))
    for result in summary.failed:
        print(f"failed: {result.source}: {result.error}")
    for result in (*summary.done, *summary.skipped):
        for note in result.notes:
            print(f"note: {result.source}: {note}")
    late = sum(result.converged is False for result in (*summary.done, *summary.skipped))
    if late:
        print(f"{late} images used all iterations before they met the tolerance")
    earlier = f", {len(summary.skipped)} finished earlier" if summary.skipped else ""
    print(f"{len(summary.done)} done{earlier}, {len(summary.failed)} failed -> {summary.out}")
    return 1 if summary.failed else 0


def _quality_table(summary: Summary) -> str:
    results = sorted((*summary.done, *summary.skipped), key=lambda result: result.item)
    header = ("image", "size", "PSNR before", "SSIM before", "PSNR", "SSIM", "seconds")
    rows = [
        (r.item, f"{r.width} x {r.height}", r.psnr_before, r.ssim_before, r.psnr, r.ssim, r.seconds) for r in results
    ]
    return table(header, rows, mean_of=(2, 6))
