"""See it work.

Deblur a photograph, reconstruct CT images from few views and fill in missing pixels, with nothing tuned, beside what
scikit-image has for it. Under a minute on one CPU core. Writes one page, index.html, and opens nothing.

examples:
  lpn-fast demo
  lpn-fast demo -o pictures --quick          smaller images
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .. import metrics, pages, physics
from ..data.synthetic import synthetic_images
from ..io import read_image
from ..physics import GaussianNoise, LinearOperator
from ..restoration import reconstruct
from . import options
from .tables import table

# The photographs are scikit-image's, the CT slice is pydicom's, both of their wheels, so nothing is downloaded.
# Alternatives get the best of several weights by the truth, which nobody knows outside of a demonstration.
Method = Callable[[np.ndarray], np.ndarray]  # measurement (C, ...) -> image (C, H, W)
OURS = "lpn_fast.reconstruct"
SIDE, QUICK_SIDE = 256, 128  # pixels of photographs
BLUR, BLUR_NOISE = 1.6, 0.02
SEEN, SEEN_NOISE = 0.5, 0.01
RAY_NOISE = 0.3  # of line integrals over images in [0, 1], in pixels


@dataclass(frozen=True)
class Case:
    """A measured image."""

    title: str
    about: str  # in a sentence
    code: str  # the operator in Python
    truth: Tensor  # (C, H, W)
    physics: LinearOperator
    noise: float
    alternatives: dict[str, list[Method]]  # by name: one for each weight, where there are several

    def measured(self) -> Tensor:  # (1, C, ...)
        """The measurement, the same each time."""
        return self.physics.with_noise(GaussianNoise(self.noise)).simulate(self.truth[None], 0)


def cases(side: int) -> tuple[list[Case], list[str]]:
    """The cases, with photographs of that side, and what is missing from them."""
    compared, missing = importlib.util.find_spec("skimage") is not None, []
    if not compared:
        missing.append("scikit-image is not installed: images are made up, and there is nothing to compare with")
    scan_side = side // 2 - 1  # odd, so that scikit-image's axis of rotation is in the same place
    portrait, cup = _photographs(side) if compared else torch.from_numpy(synthetic_images("dead-leaves", 2, side, 3))
    phantom = _phantom(scan_side) if compared else torch.from_numpy(synthetic_images("phantoms", 1, scan_side))[0]
    found = [_deblurring(portrait), _tomography("a phantom", phantom)]
    if importlib.util.find_spec("pydicom") is None:
        missing.append("pydicom is not installed: its CT slice is left out")
    else:
        found.append(_tomography("a slice of a patient", _slice(scan_side)))
    found.append(_inpainting(cup))
    return found if compared else [replace(case, alternatives={}) for case in found], missing


def skimage(part: str) -> Any:
    """A part of scikit-image, which need not be installed before it is asked for."""
    return importlib.import_module(f"skimage.{part}")


def _photographs(side: int) -> list[Tensor]:
    places = ((skimage("data").astronaut(), 128, 238), (skimage("data").coffee(), 188, 328))
    parts = [stored[row - side // 2 :, column - side // 2 :][:side, :side] for stored, row, column in places]
    return [torch.from_numpy(part.copy()).movedim(-1, 0).float() / 255 for part in parts]


def _phantom(side: int) -> Tensor:
    stored = torch.from_numpy(skimage("data").shepp_logan_phantom()).float()
    return F.interpolate(stored[None, None], (side, side), mode="area")[0]


def _slice(side: int) -> Tensor:
    import pydicom.data

    path = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    return read_image(Path(str(path))).pixels[:, :side, :side].contiguous()


def _deblurring(truth: Tensor) -> Case:
    blur = physics.Blur.gaussian(BLUR)

    def wiener(y: np.ndarray, weight: float) -> np.ndarray:
        return np.stack([skimage("restoration").wiener(plane, blur.kernel.numpy(), weight) for plane in y])

    about = f"Gaussian blur of {BLUR} pixels, noise of {BLUR_NOISE}."
    others = {"Wiener filter": [partial(wiener, weight=weight) for weight in (0.003, 0.01, 0.03, 0.1)]}
    return Case("A photograph, deblurred", about, f"lf.physics.Blur.gaussian({BLUR})", truth, blur, BLUR_NOISE, others)


def _inpainting(truth: Tensor) -> Case:
    side = truth.shape[-1]
    operator = physics.Inpainting.random(side, seen=SEEN)

    def biharmonic(y: np.ndarray) -> np.ndarray:
        return skimage("restoration").inpaint_biharmonic(y, operator.mask.numpy() == 0, channel_axis=0)

    title, about = "A photograph with half of its pixels missing", f"Noise of {SEEN_NOISE} on those that are there."
    code, others = f"lf.physics.Inpainting.random({side}, seen={SEEN})", {"biharmonic": [biharmonic]}
    return Case(title, about, code, truth, operator, SEEN_NOISE, others)


def _tomography(what: str, truth: Tensor) -> Case:
    side = truth.shape[-1]
    angles = side // 3
    scan = physics.ParallelBeamCT(side, angles, bins=(bins := 2 * (side * 5 // 7) + 1), extent=bins / 2)
    degrees, rim = np.rad2deg(scan.geometry.angles), (bins - side) // 2
    most = float(scan.A(truth[None]).max())

    def fbp(y: np.ndarray) -> np.ndarray:
        return skimage("transform").iradon(y[0].T, theta=degrees, circle=False, output_size=side)[None]

    def sart(y: np.ndarray) -> np.ndarray:
        return skimage("transform").iradon_sart(y[0].T, theta=degrees)[None, rim : rim + side, rim : rim + side]

    def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
        return skimage("restoration").denoise_tv_chambolle(fbp(y)[0], weight=weight)[None]

    about = f"{angles} views of {bins} rays, noise of {RAY_NOISE} on line integrals of up to {most:.0f}."
    code = f"lf.physics.ParallelBeamCT({side}, {angles}, {bins}, extent={bins / 2:g})"
    both = [partial(smoothed, weight=weight) for weight in (0.03, 0.05, 0.1, 0.2)]
    others = {"FBP": [fbp], "SART": [sart], "FBP and total variation": both}
    return Case(f"Sparse-view CT of {what}", about, code, truth, scan, RAY_NOISE, others)


@dataclass(frozen=True)
class Answer:
    """What a method makes of a measurement: an image (C, H, W), its PSNR in dB, seconds of processor time."""

    name: str
    x: Tensor
    psnr: float
    seconds: float


def add_arguments(parser) -> None:
    add, out = parser.add_argument, Path("demo_output")
    add("-o", "--out", type=Path, default=out, metavar="DIR", help="(default: %(default)s)")
    add("--quick", action="store_true", help="smaller images")
    add("--threads", type=options.COUNT, default=1, metavar="N", help="CPU threads (default: 1, like scikit-image)")


def run(args) -> int:
    options.set_threads(args.threads)
    page = args.out / "index.html"
    pages.check_target(page)
    print(table(("image", "method", "PSNR", "CPU seconds"), make(page, QUICK_SIDE if args.quick else SIDE)))
    print(f"\npage: {page}")
    return 0


def make(page: Path, side: int) -> list[tuple]:
    """Write the page, with photographs of that side; the rows of the table."""
    shown, missing = cases(side)
    for line in missing:
        print(f"note: {line}")
    solved = [(case, *solve(case)) for case in tqdm(shown, desc="demo", unit="img", disable=None)]
    title, cards = "Images from measurements, with nothing tuned", [_card(*parts) for parts in solved]
    pages.write(page, "demo.html", title=title, cards=cards, missing=missing, threads=torch.get_num_threads())
    return [(case.title, one.name, one.psnr, one.seconds) for case, _, answers in solved for one in answers]


def solve(case: Case) -> tuple[Tensor, list[Answer]]:
    """The measurement (C, ...), and what every method makes of it; ours is the last one."""
    y = case.measured()
    methods = case.alternatives | {OURS: [lambda _: reconstruct(y, case.physics, noise=case.noise).x[0]]}
    answers = [[_answer(name, case, method, y) for method in each] for name, each in methods.items()]
    return y[0], [max(each, key=lambda answer: answer.psnr) for each in answers]


def _answer(name: str, case: Case, method: Method, y: Tensor) -> Answer:
    plain = y[0].double().numpy()
    started = time.process_time()  # what other programs do to the machine does not matter
    x = torch.as_tensor(method(plain)).float()
    seconds = time.process_time() - started
    return Answer(name, x, float(metrics.psnr(x[None].clamp(0, 1), case.truth[None])), seconds)


def _card(case: Case, y: Tensor, answers: list[Answer]) -> dict:
    """Every picture in the intensities of the truth, so that a slice is not all dark."""
    low, high = (0.0, 1.0) if len(case.truth) == 3 else (float(case.truth.min()), float(case.truth.max()))
    is_image = y.shape == case.truth.shape
    first = "measured" if is_image else answers[0].name  # what the slider shows beside ours
    panels = [("measured", pages.picture("measured", y if is_image else pages.stretched(y), is_image), "", False)]
    best = max(answer.psnr for answer in answers)
    for answer in answers:
        x = (answer.x - low) / (high - low)
        numbers = f"{answer.psnr:.2f} dB, {answer.seconds:.2g} s"
        picture = pages.picture(answer.name, x, answer.name in (first, OURS))
        panels.append((answer.name, picture, numbers, answer.psnr == best))
    panels.append(("truth", pages.picture("truth", (case.truth - low) / (high - low), True), "", False))
    return {"case": case, "panels": panels, "shape": panels[-1][1].shape}
