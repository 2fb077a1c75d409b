"""Images, kernels and weights of the comparison, read from a data folder; nothing of it is part of the project.

natural/bsds500/{train,test,val}/*.jpg, val32.txt      photographs; the 32 of the list are for validation
faces_lfw/lfw150_train.zip                             4,700 aligned faces in colour; the last 300 are for validation
ct_mayo/slices.csv, train/*.png                        512 x 512, x = stored / 255; patient p9 is for validation
kernels/kernels.npz                                    recorded camera-shake kernels
weights/*.npz                                          networks of the baselines, as plain arrays
"""

import csv
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lpn_fast.data import validation_batch

from ..experiments.provenance import ROOT

VARIABLE = "LPN_FAST_DATA"
CT_SIDE, CT_VALIDATION = 512, "p9"
FACES, FACE_SIDE = Path("faces_lfw") / "lfw150_train.zip", 150
FACE_SAMPLES = {"train": (0, 4400), "validation": (4400, 4700)}


def find(argument: str | None) -> Path:
    """The data folder: the argument, the environment variable, or shared/data beside the project."""
    for named in (argument, os.environ.get(VARIABLE)):
        if named:
            if not Path(named).is_dir():
                raise FileNotFoundError(f"the data folder must exist, got {named}")
            return Path(named)
    beside = ROOT.parent / "shared" / "data"
    if beside.is_dir():
        return beside
    raise FileNotFoundError(f"no data folder: give --data, or set {VARIABLE}")


def photographs(root: Path, part: str, count: int, side: int) -> Tensor:  # (count, 1, side, side) in [0, 1]
    """Gray centre crops: "validation" is the list of 32, "train" the training folder in the order of names."""
    return torch.stack([_centre(_gray(path), side) for path in _photograph_paths(root, part)[:count]])


def color_photographs(root: Path, part: str, count: int, side: int) -> Tensor:  # (count, 3, side, side) in [0, 1]
    """The same in colour."""
    return validation_batch(_photograph_paths(root, part)[:count], 3, side)


def _photograph_paths(root: Path, part: str) -> list[Path]:
    folder = root / "natural" / "bsds500"
    if part == "validation":
        return [folder / name for name in (folder / "val32.txt").read_text().split()]
    return sorted((folder / "train").glob("*.jpg"))


def slices(root: Path, part: str, count: int, side: int) -> Tensor:  # (count, 1, side, side) in [0, 1]
    """CT slices, averaged down to the side; they are spread over the patients of the part."""
    wanted = slice_paths(root, part)
    chosen = [wanted[i] for i in np.linspace(0, len(wanted) - 1, min(count, len(wanted))).astype(int)]
    return F.avg_pool2d(torch.stack([_gray(path) for path in chosen]), CT_SIDE // side)


def slice_paths(root: Path, part: str) -> list[Path]:
    """The files of the patients of a part."""
    with open(root / "ct_mayo" / "slices.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    validates = part == "validation"
    return [
        root / "ct_mayo" / row["file"] for row in rows if (row["patient_group_inferred"] == CT_VALIDATION) == validates
    ]


def faces(root: Path, part: str, count: int, side: int) -> Tensor:  # (count, 3, side, side) in [0, 1]
    """Centre crops of the first faces of the part."""
    if side > FACE_SIDE:
        raise ValueError(f"side must be at most {FACE_SIDE}, that of the faces, got {side}")
    first, last = FACE_SAMPLES[part]
    return validation_batch([root / FACES], 3, side, samples=(first, min(last, first + count)))


def weights(root: Path, name: str) -> dict[str, Tensor]:
    """Arrays of a baseline network."""
    with np.load(root / "weights" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _gray(path: Path) -> Tensor:  # (1, H, W)
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32) / 255)[None]


def _centre(image: Tensor, side: int) -> Tensor:
    top, left = ((size - side) // 2 for size in image.shape[-2:])
    return image[:, top : top + side, left : left + side]
