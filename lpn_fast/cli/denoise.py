"""`lpn-fast denoise`: one evaluation of the network per image."""

from __future__ import annotations

from .. import pipeline
from . import options

DESCRIPTION = """\
Denoise images by one evaluation of the network, f(y) = argmin_x 1/2 ||x - y||^2 + R(x): the MAP estimate
under the learned prior. Results keep name, format and bit depth. Finished images are never overwritten: the
same command goes on where it stopped."""

EXAMPLES = """\
  lpn-fast denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise truths/ -o test --sigma 0.1 --simulate    adds noise first and prints PSNR and SSIM"""


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "denoise", "denoise a batch of images", DESCRIPTION, EXAMPLES)
    options.add_batch_arguments(parser)
    parser.add_argument("--sigma", type=float, required=True, metavar="S", help="of the noise, for images in [0, 1]")


def run(args) -> int:
    """Do it; the exit code."""
    options.set_threads(args.threads)
    task = pipeline.Denoise(args.sigma)
    pipeline.find_images(args.images)  # wrong names are told before the model is loaded
    model = options.load_model(args.model, args.device)
    print(f"{args.model} at {options.describe_level(model, task.network_sigma(model))}\n", flush=True)
    summary = pipeline.reconstruct(
        args.images,
        args.out,
        task=task,
        model=model,
        simulate=args.simulate,
        seed=args.seed,
        batch_pixels=args.batch_pixels,
        progress=True,
    )
    return options.report(summary, args.simulate)
