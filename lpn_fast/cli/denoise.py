"""Denoise a batch of images.

Denoise images by one evaluation of the network, f(y) = argmin_x 1/2 ||x - y||^2 + R(x): the MAP estimate
under the learned prior. Results keep name, format and bit depth. Finished images are never overwritten: the
same command goes on where it stopped.

examples:
  lpn-fast denoise noisy/ -o clean                           as noisy as each image looks
  lpn-fast denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise noisy/ -o clean --model denoise-gray      the best one for gray photographs, which takes longer
  lpn-fast denoise series/ -o clean --sigma 0.01 --report clean.html    .dcm files, say; and a page about it
  torchrun --nproc-per-node 2 -m lpn_fast.cli denoise noisy/ -o clean --sigma 0.05
  lpn-fast denoise s3://scans/noisy -o s3://scans/clean --engine ray --address auto
  lpn-fast denoise truths/ -o test --sigma 0.1 --simulate    adds noise first and prints PSNR and SSIM
"""

from .. import pipeline
from . import batch, options


def add_arguments(parser) -> None:
    batch.add_images_out(parser)
    about = "standard deviation of the noise, for images in [0, 1]; auto is what each image shows (default: auto)"
    parser.add_argument("--sigma", type=options.NUMBER_OR_AUTO, metavar="S", help=about)


def run(args) -> int:
    if args.simulate and args.sigma is None:
        raise ValueError("--simulate needs --sigma, how noisy to make the images")
    task = pipeline.Denoise(args.sigma)
    model, share = batch.prepare(args)
    is_auto = model == options.AUTO
    if args.sigma is None and (is_auto or model.is_noise_conditional):
        level = "the noise that each image shows"
    else:
        level = f"sigma {args.sigma:g}" if is_auto else options.describe_level(model, args.sigma)
    which = "the model that suits each image" if is_auto else args.model
    return batch.run(args, task, model, share, f"{which} at {level}")
