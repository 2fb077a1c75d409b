"""`lpn-fast reconstruct`: a folder of measurements into a folder of reconstructions."""

from pathlib import Path

import numpy as np
import torch

from .. import pipeline
from ..physics import Blur
from ..pipeline.tasks import SOLVERS
from . import batch, options

DESCRIPTION = """\
Reconstruct blurred, noisy images by plug-and-play with a learned prior.

PGD minimises  1/2 ||A x - y||^2 + R(x) / eta,  ADMM  1/2 ||A x - y||^2 + rho R(x),  with the learned prior R
of the model. With the default step sizes both run inside their convergence theorem; the report printed
first says so with numbers. Results keep name, format and bit depth. Finished images are never overwritten:
the same command goes on where it stopped."""

EXAMPLES = """\
  lpn-fast reconstruct photos/ -o sharp --blur-sigma 1.6 --noise 0.03
  lpn-fast reconstruct "scans/*.tif" -o sharp --kernel motion.npy --boundary full --noise 0.01
  lpn-fast reconstruct @files.txt -o sharp --report sharp.html       files named in a text file; a page about it
  lpn-fast reconstruct stack.npy photos.zip -o sharp                 files of many images: results in such files
  torchrun --nproc-per-node 2 -m lpn_fast.cli reconstruct photos/ -o sharp
  lpn-fast reconstruct truths/ -o test --simulate            blurs them first and prints PSNR and SSIM"""


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "reconstruct", "reconstruct a batch of images", DESCRIPTION, EXAMPLES)
    batch.add_images_out(parser, options.DEBLURRING_MODEL)
    parser.add_argument("--task", choices=["deblur"], default="deblur", help="(default: deblur)")
    blur = parser.add_mutually_exclusive_group()
    blur.add_argument(
        "--blur-sigma", type=float, default=1.6, metavar="S", help="Gaussian blur, in pixels (default: 1.6)"
    )
    blur.add_argument("--kernel", type=Path, metavar="FILE.npy", help="blur kernel, an array (kh, kw)")
    parser.add_argument(
        "--boundary",
        choices=["circular", "full"],
        default="circular",
        help="the blur wraps around; or the measurement extends by kernel - 1 (default: circular)",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.03,
        metavar="S",
        help="standard deviation, for images in [0, 1] (default: 0.03)",
    )
    parser.add_argument("--method", choices=tuple(SOLVERS), default="pgd", help="solver (default: pgd)")
    parser.add_argument("--iterations", type=int, default=100, metavar="N", help="at most (default: 100)")
    parser.add_argument(
        "--sigma",
        type=float,
        metavar="S",
        help="level of the network's prior, larger is smoother "
        "(default: noise * sqrt(eta) for pgd, noise / sqrt(rho) for admm, the MAP choice)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse to run outside the convergence theorem")


def run(args) -> int:
    """Run the job; the exit code."""
    task = pipeline.Deblur(
        physics=_blur(args),
        noise=args.noise,
        method=args.method,
        iterations=args.iterations,
        sigma=args.sigma,
        strict=args.strict,
    )
    model, share = batch.prepare(args)
    conditions = task.conditions(model)
    level = options.describe_level(model, task.network_sigma(model))
    heading = f"{task.physics}, noise {args.noise:g}; {args.model} at {level}"
    return batch.run(args, task, model, share, heading, conditions)


def _blur(args) -> Blur:
    if args.kernel is None:
        return Blur.gaussian(args.blur_sigma, boundary=args.boundary)
    if not args.kernel.is_file():
        raise FileNotFoundError(f"there is no kernel file {args.kernel}")
    try:
        kernel = np.load(args.kernel, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"--kernel must be a .npy array, {args.kernel} is none: {error}") from error
    if not isinstance(kernel, np.ndarray) or kernel.dtype.kind not in "fiu":
        raise ValueError(f"--kernel must be a .npy array of numbers, got {args.kernel}")
    return Blur(torch.from_numpy(kernel.astype(np.float64)), args.boundary)
