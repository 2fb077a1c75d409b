"""Sparse-view CT, and the prior behind it, by the loss it was trained with (image_study.py).

Full setting, arXiv 2310.14344: the published network at noise .1, 40,000 batches of 64 patches of 128 x 128; slices of
512 x 512, 200 angles and 400 bins, noise 2 on the sinogram; ADMM, 15 iterations, on exact tiles (tiles.py). The 14
slices of the validation patient are not the published test slices. The short setting poses the same problem at 128
pixels with a quarter of the angles and bins.
"""

from dataclasses import replace

from bench.reconstruction.tasks import TASKS

from .domains import MAYO
from .image_study import PUBLISHED, Study, add_study_parser, run

__all__ = ["add_parser", "run"]

STUDY = Study(
    "ct", MAYO, tuple(t for t in TASKS if t.name == "ct"), replace(PUBLISHED, side=512, count=14, prior_count=14)
)


def add_parser(subparsers) -> None:
    add_study_parser(subparsers, STUDY, "sparse-view CT with priors of three losses, and R under perturbation")
