"""What `lpn-fast demo` shows: measured images, and what scikit-image makes of them.

The photographs are scikit-image's, the CT slice is pydicom's, both of their wheels, so nothing is downloaded. Without
the former there are images made up and no alternatives, without the latter there is no slice. Alternatives that have a
weight get the best of several by the truth, which nobody knows outside of a demonstration.

    blur           Wiener filter                   Fourier transforms, a quadratic prior
    inpainting     biharmonic                      the smoothest surface through the pixels that are known
    CT             FBP, SART, and FBP smoothed by total variation
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import physics
from ..data.synthetic import synthetic_images
from ..io import read_image
from ..physics import GaussianNoise, LinearOperator

Method = Callable[[np.ndarray, float], np.ndarray]  # measurement (C, ...), weight -> image (C, H, W)
NO_WEIGHT = (0.0,)
BLUR, BLUR_NOISE = 1.6, 0.02
SEEN, SEEN_NOISE = 0.5, 0.01
RAY_NOISE = 0.3  # of line integrals over images in [0, 1], in pixels


@dataclass(frozen=True)
class Case:
    """A measured image.

    Attributes
    ----------
    title, about, code : str
        What it is, in a line; in a sentence; and the operator in Python.
    truth : Tensor, shape (C, H, W)
    physics : LinearOperator
    noise : float
    alternatives : dict
        By name: a method, and the weights that it may choose from.
    """

    title: str
    about: str
    code: str
    truth: Tensor
    physics: LinearOperator
    noise: float
    alternatives: dict[str, tuple[Method, tuple[float, ...]]] = field(default_factory=dict)

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
    found = [_deblurring(portrait, compared), _tomography("a phantom", phantom, compared)]
    if importlib.util.find_spec("pydicom") is None:
        missing.append("pydicom is not installed: its CT slice is left out")
    else:
        found.append(_tomography("a slice of a patient", _slice(scan_side), compared))
    return [*found, _inpainting(cup, compared)], missing


def _photographs(side: int) -> tuple[Tensor, Tensor]:
    import skimage.data

    portrait, cup = (
        torch.from_numpy(stored[row - side // 2 :, column - side // 2 :][:side, :side].copy()).movedim(-1, 0).float()
        / 255
        for stored, row, column in ((skimage.data.astronaut(), 128, 238), (skimage.data.coffee(), 188, 328))
    )
    return portrait, cup


def _phantom(side: int) -> Tensor:
    import skimage.data

    stored = torch.from_numpy(skimage.data.shepp_logan_phantom()).float()
    return F.interpolate(stored[None, None], (side, side), mode="area")[0]


def _slice(side: int) -> Tensor:
    import pydicom.data

    path = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    return read_image(Path(str(path))).pixels[:, :side, :side].contiguous()


def _deblurring(truth: Tensor, compared: bool) -> Case:
    blur = physics.Blur.gaussian(BLUR)

    def wiener(y: np.ndarray, weight: float) -> np.ndarray:
        from skimage.restoration import wiener

        return np.stack([wiener(plane, blur.kernel.numpy(), weight) for plane in y])

    return Case(
        "A photograph, deblurred",
        f"Gaussian blur of {BLUR} pixels, noise of {BLUR_NOISE}.",
        f"lf.physics.Blur.gaussian({BLUR})",
        truth,
        blur,
        BLUR_NOISE,
        {"Wiener filter": (wiener, (0.003, 0.01, 0.03, 0.1))} if compared else {},
    )


def _inpainting(truth: Tensor, compared: bool) -> Case:
    side = truth.shape[-1]
    operator = physics.Inpainting.random(side, seen=SEEN)

    def biharmonic(y: np.ndarray, weight: float) -> np.ndarray:
        from skimage.restoration import inpaint_biharmonic

        return inpaint_biharmonic(y, operator.mask.numpy() == 0, channel_axis=0)

    return Case(
        "A photograph with half of its pixels missing",
        f"Noise of {SEEN_NOISE} on those that are there.",
        f"lf.physics.Inpainting.random({side}, seen={SEEN})",
        truth,
        operator,
        SEEN_NOISE,
        {"biharmonic": (biharmonic, NO_WEIGHT)} if compared else {},
    )


def _tomography(what: str, truth: Tensor, compared: bool) -> Case:
    side = truth.shape[-1]
    angles = side // 3
    scan = physics.ParallelBeamCT(side, angles, bins=(bins := 2 * (side * 5 // 7) + 1), extent=bins / 2)
    degrees, rim = np.rad2deg(scan.geometry.angles), (bins - side) // 2
    most = float(scan.A(truth[None]).max())

    def fbp(y: np.ndarray, weight: float) -> np.ndarray:
        from skimage.transform import iradon

        return iradon(y[0].T, theta=degrees, circle=False, output_size=side)[None]

    def sart(y: np.ndarray, weight: float) -> np.ndarray:
        from skimage.transform import iradon_sart

        return iradon_sart(y[0].T, theta=degrees)[None, rim : rim + side, rim : rim + side]

    def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
        from skimage.restoration import denoise_tv_chambolle

        return denoise_tv_chambolle(fbp(y, weight)[0], weight=weight)[None]

    methods = {
        "FBP": (fbp, NO_WEIGHT),
        "SART": (sart, NO_WEIGHT),
        "FBP and total variation": (smoothed, (0.03, 0.05, 0.1, 0.2)),
    }
    return Case(
        f"Sparse-view CT of {what}",
        f"{angles} views of {bins} rays, noise of {RAY_NOISE} on line integrals of up to {most:.0f}.",
        f"lf.physics.ParallelBeamCT({side}, {angles}, {bins}, extent={bins / 2:g})",
        truth,
        scan,
        RAY_NOISE,
        methods if compared else {},
    )
