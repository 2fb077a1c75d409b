"""`lpn-fast denoise`: one evaluation of the network per image."""

from .. import pipeline
from . import batch, options

DESCRIPTION = """\
Denoise images by one evaluation of the network, f(y) = argmin_x 1/2 ||x - y||^2 + R(x): the MAP estimate
under the learned prior. Results keep name, format and bit depth. Finished images are never overwritten: the
same command goes on where it stopped."""

EXAMPLES = """\
  lpn-fast denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise series/ -o clean --sigma 0.01 --report clean.html    .dcm files, say; and a page about it
  torchrun --nproc-per-node 2 -m lpn_fast.cli denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise truths/ -o test --sigma 0.1 --simulate    adds noise first and prints PSNR and SSIM"""


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "denoise", "denoise a batch of images", DESCRIPTION, EXAMPLES)
    batch.add_images_out(parser)
    parser.add_argument("--sigma", type=float, required=True, metavar="S", help="of the noise, for images in [0, 1]")


def run(args) -> int:
    """Do it; the exit code."""
    task = pipeline.Denoise(args.sigma)
    model, share = batch.prepare(args)
    level = options.describe_level(model, task.network_sigma(model))
    return batch.run(args, task, model, share, f"{args.model} at {level}")
