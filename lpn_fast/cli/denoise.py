"""`lpn-fast denoise`: one evaluation of the network per image."""

from .. import pipeline
from . import batch, options

DESCRIPTION = """\
Denoise images by one evaluation of the network, f(y) = argmin_x 1/2 ||x - y||^2 + R(x): the MAP estimate
under the learned prior. Results keep name, format and bit depth. Finished images are never overwritten: the
same command goes on where it stopped."""

EXAMPLES = """\
  lpn-fast denoise noisy/ -o clean                           as noisy as each image looks
  lpn-fast denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise series/ -o clean --sigma 0.01 --report clean.html    .dcm files, say; and a page about it
  torchrun --nproc-per-node 2 -m lpn_fast.cli denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise s3://scans/noisy -o s3://scans/clean --engine ray --address auto
  lpn-fast denoise truths/ -o test --sigma 0.1 --simulate    adds noise first and prints PSNR and SSIM"""


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "denoise", "denoise a batch of images", DESCRIPTION, EXAMPLES)
    batch.add_images_out(parser)
    parser.add_argument(
        "--sigma",
        type=options.noise_level,
        metavar="S",
        help="standard deviation of the noise, for images in [0, 1]; auto is what each image shows (default: auto)",
    )


def run(args) -> int:
    """Do it; the exit code."""
    if args.simulate and args.sigma is None:
        raise ValueError("--simulate needs --sigma, how noisy to make the images")
    task = pipeline.Denoise(args.sigma)
    model, share = batch.prepare(args)
    return batch.run(args, task, model, share, f"{_models(args)} at {_level(model, args.sigma)}")


def _models(args) -> str:
    return "the model that suits each image" if args.model == options.AUTO else args.model


def _level(model, sigma: float | None) -> str:
    if model == options.AUTO:
        return "the noise that it shows" if sigma is None else f"sigma {sigma:g}"
    if model.is_noise_conditional and sigma is None:
        return "the noise that each image shows"
    return options.describe_level(model, sigma if model.is_noise_conditional else None)
