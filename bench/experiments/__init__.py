"""Reproducible experiments: each is a command that writes a CSV and, where there is something to see, a figure.

An experiment is a module of this folder with `add_parser(subparsers)` and `run(args) -> int`, named here.
"""

# name on the command line -> module
EXPERIMENTS = {
    "laplacian": "laplacian",
    "gaussian-mixture": "gaussian_mixture",
    "gray-levels": "gray_levels",
    "denoising": "denoising",
    "initialisation": "initialisation",
    "large-images": "large_images",
    "ranking": "ranking",
    "study": "study",
    "training-speed": "training_speed",
    "mnist-prior": "mnist_prior",
    "mnist-inversion": "mnist_inversion",
    "explicit": "explicit",
    "faces": "faces",
    "ct": "ct",
    "cs": "cs",
}
