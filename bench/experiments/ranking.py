"""What does the prior say of an image? Its Moreau envelope ranks clean images against damaged ones.

    score(x) = min_y 1/2 |x - y|^2 + R(y) = 1/2 |x|^2 - psi(x)          per pixel, in units of sigma^2

One evaluation of the network, no inversion. For an MMSE denoiser it is -sigma^2 log p(x) of the noise-blurred density
up to a constant, so a higher score means a less likely image. An explicit prior also scores by R itself and by the
length of its gradient, of which typical images have little whatever their R: one pass each.

The area under the curve (AUC) is the probability that a damaged image scores higher than another, clean one; one half
is a coin, below one half damaged looks *more* likely, as smoother images do to every such score but the gradient.
Beside it what takes no learning: total variation, the energy of the Laplacian, and the size of the image as PNG.
"""

import argparse
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import lpn_fast as lf
from bench.reconstruction import data
from lpn_fast.per_sample import norm

from .provenance import ROOT, where, write_csv

SIDE = 160
SIGMAS = (0.02, 0.05)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "ranking",
        help="clean against damaged images by the prior, as areas under the curve",
        description=__doc__.splitlines()[0],
        epilog="example: python -m bench.experiments ranking --data shared/data --model frame-gray",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: LPN_FAST_DATA)")
    parser.add_argument("--model", default="frame-gray", help="name or file (default: %(default)s)")
    parser.add_argument("--images", choices=("photographs", "slices"), default="photographs", help="%(default)s")
    parser.add_argument("--count", type=int, default=32, help="images (default: %(default)s)")
    parser.add_argument("--sigmas", nargs="+", type=float, default=list(SIGMAS), help="levels of the prior")
    parser.add_argument("--out", metavar="DIR", help="for the CSV (default: bench/results/ranking_IMAGES)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")


def run(args) -> int:
    if args.count < 2:
        raise ValueError(f"--count must be at least 2, got {args.count}")
    torch.set_num_threads(args.threads)
    root = data.find(args.data)
    x = getattr(data, args.images)(root, "validation", args.count, SIDE if args.images == "photographs" else 256)
    model = lf.networks.shipped_or_loaded(args.model)
    scores = {f"envelope at {sigma:g}": lambda t, sigma=sigma: envelope(model, t, sigma) for sigma in args.sigmas}
    if callable(getattr(model, "prior_and_grad", None)):
        for number, name in enumerate(("R", "|grad R|")):
            scores |= {
                f"{name} at {s:g}": lambda t, s=s, number=number: one_pass(model, t, s)[number] for s in args.sigmas
            }
    scores |= {"total variation": variation, "Laplacian": laplacian, "PNG size": png_size}
    clean = {name: score(x) for name, score in scores.items()}
    rows = []
    for damage, damaged in damages(x).items():
        row = {"damage": damage, "images": len(x)}
        row |= {name: round(auc(score(damaged), clean[name]), 3) for name, score in scores.items()}
        rows.append(row | where({"model": args.model, "images": args.images}))
        print(f"{damage:18s} " + "   ".join(f"{name} {row[name]:.3f}" for name in scores), flush=True)
    out = Path(args.out or ROOT / "bench" / "results" / f"ranking_{args.images}")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    print(f"wrote {out / 'results.csv'}")
    return 0


# ---- damages


def damages(x: Tensor) -> dict[str, Tensor]:
    """Images (N, 1, H, W) damaged in ways that keep the mean; noise and phases are seeded."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator)
    return {
        "noise 0.01": x + 0.01 * noise,
        "noise 0.03": x + 0.03 * noise,
        "random phases": random_phases(x, generator),
        "shuffled 4 x 4": shuffled(x, 4, generator),
        "blocks of 4 x 4": F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0, mode="nearest"),
        "JPEG quality 10": torch.cat([_jpeg(image, 10) for image in x]),
        "blur 1.0": lf.physics.Blur.gaussian(1.0, boundary="circular").A(x),
    }


def random_phases(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images of the same power spectrum whose phases are those of white noise: nothing second-order tells them."""
    spectrum = torch.fft.fft2(x)
    phases = torch.fft.fft2(torch.randn(x.shape, generator=generator))
    mixed = spectrum.abs() * phases / phases.abs()
    mixed[..., 0, 0] = spectrum[..., 0, 0]
    return torch.fft.ifft2(mixed).real


def shuffled(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Pixels permuted inside every block of side x side, by the same permutation."""
    order = torch.randperm(side * side, generator=generator)
    blocks = F.unfold(x, side, stride=side)  # [N, side^2, L]
    return F.fold(blocks[:, order], x.shape[-2:], side, stride=side)


def _jpeg(image: Tensor, quality: int) -> Tensor:  # (1, H, W) -> (1, 1, H, W)
    buffer = io.BytesIO()
    _as_picture(image).save(buffer, "JPEG", quality=quality)
    pixels = torch.frombuffer(bytearray(Image.open(buffer).tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, *image.shape).float() / 255


def _as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray((255 * image[0]).round().clamp(0, 255).byte().numpy())


# ---- scores, (N, 1, H, W) -> (N,)


@torch.no_grad()
def envelope(model, x: Tensor, sigma: float) -> Tensor:
    level = sigma if model.is_noise_conditional else None
    values = [lf.moreau_envelope(model, part, sigma=level).value for part in x.split(4)]
    return torch.cat(values) / (sigma**2 * x[0].numel())


def one_pass(model, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """R and |grad R| of an explicit prior, in units of the noise, per pixel and per root of a pixel."""
    pairs = [model.prior_and_grad(part, sigma) for part in x.split(4)]
    value, gradient = torch.cat([r for r, _ in pairs]), torch.cat([g for _, g in pairs])
    return value / (sigma**2 * x[0].numel()), norm(gradient) / (sigma * x[0].numel() ** 0.5)


def variation(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().flatten(1).mean(1) + x.diff(dim=-2).abs().flatten(1).mean(1)


def laplacian(x: Tensor) -> Tensor:
    kernel = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
    return F.conv2d(x, kernel).square().flatten(1).mean(1)


def png_size(x: Tensor) -> Tensor:
    sizes = []
    for image in x:
        buffer = io.BytesIO()
        _as_picture(image).save(buffer, "PNG", optimize=True)
        sizes.append(float(buffer.tell()))
    return torch.tensor(sizes)


def auc(damaged: Tensor, clean: Tensor) -> float:
    """P(score of a damaged image > score of another clean one), ties counted half."""
    more = (damaged[:, None] > clean).double() + 0.5 * (damaged[:, None] == clean).double()
    others = ~torch.eye(len(clean), dtype=torch.bool)
    return more[others].mean().item()
