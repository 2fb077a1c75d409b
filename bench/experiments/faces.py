"""Faces in colour: deblurring, and the prior behind it, by the loss it was trained with (image_study.py).

Full setting, arXiv 2310.14344: the published network at noise .05 and .1, 40,000 batches of 64 faces of 128 x 128;
blur of 1 or 2 pixels with full convolution, noise .02 or .04; 20 faces; ADMM, 20 iterations. The faces are not CelebA.
"""

from dataclasses import replace

from bench.reconstruction.tasks import deblurring

from .domains import FACES
from .image_study import PUBLISHED, Study, add_study_parser, run

__all__ = ["add_parser", "run"]

STUDY = Study("faces", FACES, deblurring("faces"), replace(PUBLISHED, levels=(0.05, 0.1)))


def add_parser(subparsers) -> None:
    add_study_parser(
        subparsers, STUDY, "deblurring of faces with priors trained by three losses, and R under perturbation"
    )
