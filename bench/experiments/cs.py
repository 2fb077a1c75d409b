"""Compressed sensing of CT slices, and the prior behind it, by the loss it was trained with (image_study.py).

Full setting, arXiv 2310.14344: the networks of `ct`; random-sign circulant measurements, a quarter and a sixteenth of
the pixels, noise .001; ADMM, 80 iterations, with a box as a third term. Training runs are shared with `ct`.
"""

from bench.reconstruction.tasks import TASKS

from . import ct
from .domains import MAYO
from .image_study import Study, add_study_parser, run

__all__ = ["add_parser", "run"]

STUDY = Study("cs", MAYO, tuple(t for t in TASKS if t.name.startswith("cs-")), ct.STUDY.published)


def add_parser(subparsers) -> None:
    add_study_parser(
        subparsers, STUDY, "compressed sensing with priors trained by three losses, and R under perturbation"
    )
