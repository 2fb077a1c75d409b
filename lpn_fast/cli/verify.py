"""Test that a model is an exact prox.

Test the properties that make a network an exact proximal operator: the signs of its weights, a symmetric and
positive Jacobian, monotony, path independence, convexity of the potential, the prox inequality, and exactness
at image borders. Exit code 1 if one fails.

examples:
  lpn-fast verify runs/gray/model.safetensors
  lpn-fast verify fast-gray --images photos/ --json
"""

import json

import torch
from torch import Tensor

from .. import pipeline
from ..networks import LPN
from ..pipeline.batches import to_samples
from ..prior import Property, Report, verify
from . import options

SIDES = {2: (32, 32), 3: (12, 12, 12)}  # pixels of the images, or volumes, made up where none are given
SAMPLES = 4


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="file of lpn_fast.save, or the name of a shipped model")
    add("--sigma", type=float, metavar="S", help="noise level of a noise-conditional model (default: its middle one)")
    add("--images", nargs="+", metavar="IMAGES", help="images to test at (default: made up)")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--threads", type=options.COUNT, metavar="N", help="CPU threads (default: torch's choice)")


def run(args) -> int:
    options.set_threads(args.threads)
    try:
        model = options.load_model(args.checkpoint)
    except ValueError as error:  # negative or infinite weights above all: refused before they can be used
        report = Report((Property("checkpoint", False, None, "", str(error)),))
    else:
        levels = model.spec.noise_levels
        sigma = args.sigma if args.sigma is not None or not levels else levels[len(levels) // 2]
        report = verify(model, _images(args.images, model) if args.images else _made_up(model), sigma)
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
    return 0 if report.all_hold else 1


def _images(patterns: list[str], model: LPN) -> Tensor:  # (N, c, H, W)
    """The centres of the first images, as large as the smallest of them."""
    if len(model.spec.axes) != 2:
        raise ValueError(f"--images cannot be used with a network of {'vectors' if model.spec.is_dense else 'volumes'}")
    pixels = [pipeline.read_image(path).pixels for path in pipeline.find_images(patterns)[:SAMPLES]]
    sides = model.spec.image_size or [min(p.shape[axis] for p in pixels) for axis in (1, 2)]
    centres = []
    for image in pixels:
        top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape[1:], sides, strict=True))
        centres.append(to_samples(image[:, top : top + sides[0], left : left + sides[1]], model.spec.channels))
    return torch.cat(centres)


def _made_up(model: LPN) -> Tensor:  # (N, ...)
    """Vectors of unit deviation, or steps and ramps with noise in [0, 1]."""
    generator, spec = torch.Generator().manual_seed(0), model.spec
    own = next(model.parameters())
    if spec.is_dense:
        return torch.randn(SAMPLES, spec.channels, generator=generator).to(own)
    image = spec.image_size or SIDES[spec.ndim]
    height, width = image[-2:]
    ramp = torch.linspace(0.2, 0.8, width).expand(SAMPLES, spec.channels, *image)
    step = (torch.arange(height) > height // 2).float()[:, None]
    noise = torch.randn(ramp.shape, generator=generator)
    return (0.7 * ramp + 0.3 * step + 0.1 * noise).clamp(0, 1).to(own)
