"""How well do models denoise test images, beside what a user would take instead?

    photographs   the 68 test photographs of BSDS500
    faces         the last 300 of the aligned faces, 150 x 150 pixels; nothing here was trained on faces
    slices        the 14 CT slices of patient p9, 512 x 512 pixels; half-slices: averaged down to 256 x 256

    PSNR(x, f(x + sigma n)),    sigma = 15, 25, 50 of 255,    n seeded by image and level, nothing clipped before

Gray: the flexible DnCNN for all levels; TV and the weakly convex ridges (both minimised to convergence, their weight
tuned on four training images) and BM3D on --baseline-images of the images, spread over the list, as they are slow;
`psnr_on_baseline_images` is each method's mean over those, where all of them were measured.
Colour: the colour DnCNN of each level, where there is one (5, 15, 25). One exact prox, one pass: no
ensemble of flips. The models: shipped ones by name, or files.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import lpn_fast as lf
from bench.reconstruction import baselines, data
from bench.reconstruction.tasks import Instance
from lpn_fast import metrics

from .provenance import ROOT, where, write_among

LEVELS = (15.0, 25.0, 50.0)  # floats, as those of the command line: a row is known by its text
BASELINES = ("dncnn", "cdncnn", "tv", "wcrr", "bm3d")
COUNTS = {"photographs": 68, "faces": 300, "slices": 14, "half-slices": 14}
SLICE_SIDES = {"slices": data.CT_SIDE, "half-slices": data.CT_SIDE // 2}
TUNING_IMAGES, TUNING_SIDE = 4, 128
RIDGE_ITERATIONS = 60  # without an operator no pixel then moves by more than 0.002
LUMA = torch.tensor([0.299, 0.587, 0.114])


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "denoising",
        help="PSNR and SSIM on test photographs or faces, with baselines",
        description=__doc__.splitlines()[0],
        epilog="examples:\n  python -m bench.experiments denoising --models frame-gray --data shared/data\n"
        "  python -m bench.experiments denoising --on faces --images 60 --levels 25\n"
        "  python -m bench.experiments denoising --on half-slices --models ct --levels 5.1 12.75 25.5 --baselines tv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: LPN_FAST_DATA)")
    parser.add_argument("--models", nargs="*", default=["frame-gray"], help="names or files (default: %(default)s)")
    parser.add_argument("--on", choices=COUNTS, default="photographs", help="default: %(default)s")
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES), help="default: all")
    parser.add_argument("--images", type=int, help="how many of them (default: all)")
    parser.add_argument("--baseline-images", type=int, default=8, help="for the slow ones (default: %(default)s)")
    parser.add_argument("--levels", nargs="+", type=float, default=list(LEVELS), help="of 255 (default: 15 25 50)")
    parser.add_argument(
        "--out", metavar="DIR", help="for the CSV (default: bench/results/denoising, denoising_faces, ..)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")


def run(args) -> int:
    torch.set_num_threads(args.threads)
    total = COUNTS[args.on]
    count = args.images or total
    if not 1 <= count <= total or not 1 <= args.baseline_images <= total:
        raise ValueError(f"--images and --baseline-images must be 1 to {total}, got {count} and {args.baseline_images}")
    root = data.find(args.data)
    name = "denoising" if args.on == "photographs" else f"denoising_{args.on.removeprefix('half-')}"
    out = Path(args.out or ROOT / "bench" / "results" / name)
    out.mkdir(parents=True, exist_ok=True)
    methods = [Model(name) for name in args.models] + [baseline(name, root) for name in args.baselines]
    test_images = {"photographs": test_photographs, "faces": test_faces}.get(args.on, partial(test_slices, args.on))
    slow = set(_spread(total, args.baseline_images))
    for method in methods:
        images = test_images(root, args.baseline_images if method.slow else count, method.channels)
        for level in args.levels:
            if level not in method.levels(args.levels):
                print(f"{method.name:16s} has {method.lacks} for {level:g}/255: left out", flush=True)
                continue
            sigma = level / 255
            method.prepare(root, sigma, args.on)
            figures = [_measured(method, x, sigma, seed) for seed, x in images]
            columns = [list(column) for column in zip(*figures, strict=True)]
            noisy, psnr, ssim, seconds, cores = columns
            shared = [value for value, (i, _) in zip(psnr, images, strict=True) if i in slow]
            row = {
                "on": args.on,
                "method": method.name,
                "channels": method.channels,
                "images": len(images),
                "sigma_255": level,
                "psnr_noisy": round(statistics.fmean(noisy), 3),
                "psnr": round(statistics.fmean(psnr), 3),
                "psnr_std": round(statistics.pstdev(psnr), 3),
                "psnr_on_baseline_images": round(statistics.fmean(shared), 3) if len(shared) == len(slow) else "",
                "ssim": round(statistics.fmean(ssim), 4),
                "seconds_per_image": round(statistics.median(seconds), 3),
                "core_seconds_per_image": round(statistics.median(cores), 3),
                "parameters": method.parameters,
            }
            row |= where({"baseline_images": args.baseline_images} | method.config)
            # at once, as the slow ones may be interrupted
            write_among(out / "results.csv", [row], ("on", "method", "channels", "sigma_255"), in_order)
            print(
                f"{method.name:16s} {len(images):2d} images, sigma {level:g}/255: "
                f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, {row['seconds_per_image']:.2f} s an image",
                flush=True,
            )
    print(f"wrote {out / 'results.csv'}")
    return 0


def in_order(row: dict) -> tuple:
    """Noise levels, ours before the others, then as they came."""
    return float(row["sigma_255"]), row["method"] in BASELINES


def test_photographs(root: Path, count: int, channels: int) -> list[tuple[int, Tensor]]:
    """(index in the list of 68, (1, C, H, W) in [0, 1]) of `count` photographs spread over the list."""
    folder = root / "natural" / "bsds500"
    names = (folder / "cbsd68.txt").read_text().split()
    return [(i, _read(folder / names[i], channels)) for i in _spread(len(names), count)]


def test_faces(root: Path, count: int, channels: int) -> list[tuple[int, Tensor]]:
    """The same of the validation faces."""
    faces = data.faces(root, "validation", COUNTS["faces"], data.FACE_SIDE)
    return [(i, _of_channels(faces[i : i + 1], channels)) for i in _spread(len(faces), count)]


def test_slices(on: str, root: Path, count: int, channels: int) -> list[tuple[int, Tensor]]:
    """The same of the validation slices."""
    x = data.slices(root, "validation", COUNTS[on], SLICE_SIDES[on])
    return [(i, x[i : i + 1].expand(-1, channels, -1, -1)) for i in _spread(len(x), count)]


def tuning_images(root: Path, on: str) -> Tensor:
    """Some that are none of the test, (N, 1, H, W)."""
    if on not in SLICE_SIDES:
        return _of_channels(getattr(data, on)(root, "train", TUNING_IMAGES, TUNING_SIDE), 1)
    x = data.slices(root, "train", TUNING_IMAGES, SLICE_SIDES[on])
    rim = (SLICE_SIDES[on] - TUNING_SIDE) // 2
    return x[..., rim:-rim, rim:-rim]


def _of_channels(x: Tensor, channels: int) -> Tensor:
    """x, or the luma (N, 1, H, W) of x (N, 3, H, W) where one channel is asked for."""
    return x if channels == x.shape[1] else (x * LUMA.view(1, 3, 1, 1)).sum(1, keepdim=True)


def _spread(length: int, count: int) -> list[int]:
    """`count` indices of a list of `length`, the first and the last among them."""
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _read(path: Path, channels: int) -> Tensor:  # (1, C, H, W)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)[None].contiguous()


@torch.no_grad()
def _measured(method, x: Tensor, sigma: float, seed: int) -> tuple[float, float, float, float, float]:
    """PSNR before and after, SSIM after, seconds, seconds of all cores together (other jobs disturb them less)."""
    generator = torch.Generator().manual_seed(1000 * round(255 * sigma) + seed)
    y = x + sigma * torch.randn(x.shape, generator=generator)
    began, cores = time.perf_counter(), time.process_time()
    denoised = method(y, sigma)
    seconds, cores = time.perf_counter() - began, time.process_time() - cores
    psnr, ssim = metrics.psnr(denoised, x).item(), metrics.ssim(denoised, x).item()
    return metrics.psnr(y, x).item(), psnr, ssim, seconds, cores


class Method:
    """A denoiser of `channels`; `slow` ones see the baseline images only."""

    lacks = "no weights"  # where it cannot do a level

    def levels(self, asked: list[float]) -> list[float]:
        """Those of the asked it can do."""
        return asked

    def prepare(self, root: Path, sigma: float, images: str) -> None:
        """Tune or load for a level, on training photographs or faces."""


class Model(Method):
    """f of a shipped model, or of one in a file."""

    slow = False

    def __init__(self, name: str):
        self.name = name
        self.model = lf.networks.shipped_or_loaded(name)
        self.channels = self.model.spec.channels
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.config = {"family": type(self.model).__name__}

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        return self.model(y, sigma if self.model.is_noise_conditional else None)


class DnCNN(Method):
    """The flexible DnCNN, one network for all levels."""

    name, slow, channels, config = "dncnn", False, 1, {}

    def __init__(self, root: Path):
        self.network = baselines.FlexibleDnCNN(root)
        self.parameters = sum(w.numel() + b.numel() for w, b in self.network.layers)

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        return self.network(y, sigma)


class ColourDnCNN(Method):
    """One network for each level: x = y - net(y), 3 x 3 convolutions with ReLU between."""

    name, slow, channels, config = "cdncnn", False, 3, {}
    LEVELS = (5, 15, 25)

    def levels(self, asked: list[float]) -> list[float]:
        return [level for level in asked if level in self.LEVELS]

    def prepare(self, root: Path, sigma: float, images: str) -> None:
        arrays = data.weights(root, f"dncnn_color_sigma{round(255 * sigma):02d}_cszn")
        count = sum(key.endswith("weight") for key in arrays)
        self.layers = [(arrays[f"conv{i:02d}.weight"], arrays[f"conv{i:02d}.bias"]) for i in range(count)]
        self.parameters = sum(w.numel() + b.numel() for w, b in self.layers)

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        z = y
        for i, (weight, bias) in enumerate(self.layers):
            z = F.conv2d(z, weight, bias, padding=1)
            z = z if i == len(self.layers) - 1 else z.relu_()
        return y - z


class Variational(Method):
    """Minimisation of 1/2 |x - y|^2 + weight R(x), the weight tuned on training images."""

    slow, channels = True, 1

    def __init__(self, name: str, method, grid: tuple[float, ...], parameters: int):
        self.name, self.method, self.grid, self.parameters, self.config = name, method, grid, parameters, {}

    def prepare(self, root: Path, sigma: float, images: str) -> None:
        x = tuning_images(root, images)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        self.weight = baselines.tuned(self.method, self.grid, _instance(x + sigma * noise, sigma, x))
        self.config = {"weight": self.weight}

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        return self.method(_instance(y, sigma, y), self.weight).x


def _instance(y: Tensor, sigma: float, x: Tensor) -> Instance:
    return Instance(x, lf.physics.Denoising(), y, sigma, y)


class BM3D(Method):
    """Block matching, where its package is installed."""

    name, slow, channels, config, parameters = "bm3d", True, 1, {}, 0
    lacks = "no package bm3d"

    def levels(self, asked: list[float]) -> list[float]:
        return [] if baselines.why_no_bm3d() else asked

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        return baselines.block_matching(y, sigma)


def baseline(name: str, root: Path):
    """One of BASELINES."""
    if name == "bm3d":
        return BM3D()
    if name == "dncnn":
        return DnCNN(root)
    if name == "cdncnn":
        return ColourDnCNN()
    if name == "tv":
        grid = (3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0, 110.0)
        return Variational("tv", baselines.total_variation, grid, 0)
    regulariser = baselines.RidgeRegulariser(root)
    size = sum(k.numel() for k in regulariser.kernels) + regulariser.scaling.numel()
    grid = (0.4, 0.6, 0.8, 1.0, 1.3)

    def ridges(instance: Instance, weight: float):
        return baselines.ridges(regulariser, instance, weight, RIDGE_ITERATIONS)

    return Variational("wcrr", ridges, grid, size)
