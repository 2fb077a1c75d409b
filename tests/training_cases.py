"""Small runs for the tests of training."""

import numpy as np
import torch
from PIL import Image

import lpn_fast as lf
from lpn_fast.training import Phase, Trainer
from lpn_fast.training.laplacian import sample_laplace

PHASES = [Phase("l1", 40, 1e-2), Phase("matching", 30, 1e-3, 1e-4, gamma=0.3)]


def small_trainer(out=None, phases=PHASES, sampler=sample_laplace, **arguments):
    torch.manual_seed(3)
    model = lf.MLPLPN(1, hidden=8, layers=1)
    return Trainer(model, sampler, phases, sigma=1.0, batch_size=64, out=out, progress=False, **arguments)


def weights(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])


def interrupted_at(trainer, step):
    """The trainer, which will be interrupted before `step`."""
    original = trainer._one_step

    def one_step():
        if trainer.step == step:
            raise KeyboardInterrupt
        return original()

    trainer._one_step = one_step
    return trainer


def photographs_in(folder):
    """Three smooth random pictures of 40 x 44 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        smooth = np.cumsum(np.cumsum(rng.normal(size=(40, 44)), 0), 1)
        smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
        Image.fromarray(smooth.astype(np.uint8)).save(folder / f"{i}.png")
    return folder
