"""One small operator of every kind, each without symmetries that could hide a flip or a shift."""

import math

import torch

from lpn_fast.physics import (
    MRI,
    Blur,
    CompressedSensing,
    Denoising,
    Downsampling,
    GaussianNoise,
    Inpainting,
    ParallelBeamCT,
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# Sums of a few hundred terms, normalised by the norms of both factors.
DOT_TOL = {torch.float32: 1e-6, torch.float64: 1e-12}


def randn(*shape, seed=1, dtype=torch.float64, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def rand(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_blur(kernel_size, boundary, seed=0):
    return Blur(torch.randn(kernel_size, generator=torch.Generator().manual_seed(seed)), boundary)


def make_coils(coils, height, width):
    return torch.complex(randn(coils, height, width, seed=4), randn(coils, height, width, seed=5))


ANGLES = [-0.3, 0.0, 0.4, math.pi / 4, 1.1, math.pi / 2, 2.0, 3.0, 5.5]

# name -> (builder, (H, W) that it takes)
OPERATORS = {
    "denoising": (Denoising, (7, 9)),
    "blur-circular": (lambda: make_blur((3, 4), "circular"), (7, 9)),
    "blur-reflective": (lambda: make_blur((5, 4), "reflective"), (7, 9)),
    "blur-valid": (lambda: make_blur((3, 4), "valid"), (7, 9)),
    "blur-full": (lambda: make_blur((3, 4), "full"), (7, 9)),
    "ct": (lambda: ParallelBeamCT((7, 9), ANGLES, 11, extent=4.0, pixel=0.8), (7, 9)),
    "ct-torch": (lambda: ParallelBeamCT((7, 9), ANGLES, 11, extent=4.0, pixel=0.8, backend="torch"), (7, 9)),
    "ct-fine-bins": (lambda: ParallelBeamCT((7, 9), ANGLES, 40, backend="torch"), (7, 9)),
    "cs": (lambda: CompressedSensing((7, 9), 1 / 4), (7, 9)),
    "cs-flat": (lambda: CompressedSensing((7, 9), 1 / 4, flat=True), (7, 9)),
    "inpainting": (lambda: Inpainting.random((7, 9), 0.6), (7, 9)),
    "inpainting-weights": (lambda: Inpainting(randn(7, 9, seed=3)), (7, 9)),
    "decimation": (lambda: Downsampling(3), (9, 12)),
    "downsampling": (lambda: Downsampling(3, randn(4, 5, seed=3)), (9, 12)),
    "downsampling-odd": (lambda: Downsampling.gaussian(5), (5, 15)),
    "mri": (lambda: MRI(randn(7, 9, seed=3) * (rand(7, 9) > 0.4)), (7, 9)),
    "mri-even": (lambda: MRI.lines((8, 6), acceleration=2), (8, 6)),
    "mri-coils": (lambda: MRI(rand(7, 9) > 0.4, make_coils(3, 7, 9)), (7, 9)),
    "noisy": (lambda: make_blur((3, 4), "circular").with_noise(GaussianNoise(0.1)), (7, 9)),
}


def dense(physics, image_shape):
    """The matrix of a physics, column by column."""
    basis = torch.eye(torch.Size(image_shape).numel(), dtype=torch.float64).reshape(-1, *image_shape)
    return physics.A(basis).flatten(1).T  # (data, image)


def largest_singular_value(physics, image_shape):
    return torch.linalg.matrix_norm(dense(physics, image_shape), ord=2).item()
