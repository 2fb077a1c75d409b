"""The operators of `lpn-fast reconstruct`, functions of their options, and the files of masks, kernels and geometry."""

import argparse
import inspect
import math
import tomllib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..io import containers, read_image
from ..io.sources import Source
from ..physics import Blur, CompressedSensing, Downsampling, ParallelBeamCT, gaussian_kernel
from ..physics.blur import BOUNDARIES
from ..pipeline import problems
from ..pipeline.problems import Problem
from . import options

BLUR_SIGMA = 1.6  # pixels, where no kernel is given
OPERANDS = ".npy, .npz or .h5 of one array (FILE::NAME picks one of several), or a picture"
GEOMETRY_KEYS = {"size", "angles", "degrees", "bins", "extent", "pixel"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("operator")
    add = group.add_argument
    summaries = "; ".join(f"{name}: {make.__doc__}" for name, make in OPERATORS.items())
    add("--physics", choices=tuple(OPERATORS), default="blur", help=f"{summaries} (default: blur)")
    size = "pixels of a side of the kernel, or published: as in the paper's experiments (default: 4 S to each side)"
    add("--blur-sigma", type=float, metavar="S", help="of a Gaussian, in pixels (default: 1.6, or factor / 2)")
    add("--blur-size", type=options.number(int, "published", "published"), metavar="N", help=size)
    add("--kernel", metavar="FILE", help=f"blur kernel (kh, kw): {OPERANDS}, whose values are made to sum to 1")
    beyond = "how images go on beyond their borders (default: valid, as in photographs; with --simulate circular)"
    add("--boundary", choices=BOUNDARIES, help=beyond)
    add("--mask", metavar="FILE", help=f"(H, W), above 0.5 where pixels or frequencies are known: {OPERANDS}")
    add("--factor", type=int, metavar="N", help="images are N times smaller")
    scan = "size = [H, W]; angles = N, a list of radians, or degrees = [...]; if need be, bins, extent, pixel"
    add("--geometry", type=Path, metavar="TOML", help=f"{scan} (see lpn_fast.physics.ParallelBeamCT)")
    add("--coils", metavar="FILE", help="sensitivities (coils, H, W), complex: .npy, .npz or .h5")
    add("--centred", action="store_true", default=None, help="frequency zero is in the middle, not at [0, 0]")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels of the images")
    add("--ratio", type=float, metavar="R", help="measurements per pixel of compressed sensing (default: 1/16)")
    add("--operator-seed", type=int, metavar="N", help="of its random signs (default: 0)")
    add("--operator", type=Path, metavar="FILE", help="matrix (M, H W): .npz of scipy.sparse, or .npy")


def problem_of(args: argparse.Namespace) -> Problem:
    """The problem that the options state; an error for one that is missing or has no effect, or for a bad file."""
    options_of = {name: inspect.signature(make).parameters for name, make in OPERATORS.items()}
    takes = options_of[args.physics]
    given = {name: value for name in set().union(*options_of.values()) if (value := getattr(args, name)) is not None}
    if idle := sorted(given.keys() - takes.keys()):
        raise ValueError(f"{_flag(idle[0])} has no effect with --physics {args.physics}")
    for name, option in takes.items():
        if option.default is option.empty and name not in given:
            raise ValueError(f"--physics {args.physics} needs {_flag(name)}")
    if args.simulate and args.physics == "blur":
        given = {"boundary": "circular"} | given
    return OPERATORS[args.physics](**given)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def blur(kernel=None, blur_sigma=None, blur_size=None, boundary="valid") -> Problem:
    """a kernel"""
    return problems.blur(Blur(_kernel(kernel, blur_sigma, blur_size, BLUR_SIGMA), boundary))


def inpaint(mask) -> Problem:
    """pixels are missing"""
    return problems.inpaint(_mask(mask))


def downsample(factor, kernel=None, blur_sigma=None, blur_size=None) -> Problem:
    """images are small"""
    if kernel is None and blur_sigma is None and blur_size is None:
        return problems.downsample(Downsampling.gaussian(factor))
    return problems.downsample(Downsampling(factor, _kernel(kernel, blur_sigma, blur_size, factor / 2)))


def ct(geometry: Path) -> Problem:
    """sinograms (angles, bins) of parallel beams"""
    try:
        table = tomllib.loads(geometry.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--geometry must be a TOML file, {geometry} is none: {error}") from error
    if unknown := sorted(table.keys() - GEOMETRY_KEYS):
        raise ValueError(f"--geometry may hold {', '.join(sorted(GEOMETRY_KEYS))}, {geometry} has {unknown[0]}")
    if "size" not in table or ("angles" in table) == ("degrees" in table):
        has = ", ".join(table) or "nothing"
        raise ValueError(f"--geometry must hold size, and angles or degrees, {geometry} has {has}")
    if "degrees" in table:
        table["angles"] = [math.radians(value) for value in table.pop("degrees")]
    size = table.pop("size")
    return problems.ct(ParallelBeamCT(size if isinstance(size, int) else tuple(size), **table))


def mri(mask, coils=None, centred=False) -> Problem:
    """k-space (H, W) or (coils, H, W)"""
    return problems.mri(_mask(mask), None if coils is None else read_operand("--coils", coils, 3), centred)


def cs(size, ratio=1 / 16, operator_seed=0) -> Problem:
    """compressed sensing, vectors"""
    return problems.cs(CompressedSensing(tuple(size), ratio, seed=operator_seed))


def matrix(operator: Path, size) -> Problem:
    """vectors y = M x"""
    if not operator.is_file():
        raise FileNotFoundError(f"--operator names no file, {operator}")
    try:
        if operator.suffix.lower() == ".npz":
            from scipy import sparse

            return problems.matrix(sparse.load_npz(operator), tuple(size))
        return problems.matrix(np.load(operator, allow_pickle=False), tuple(size))
    except ImportError as error:
        raise ValueError("--operator needs scipy to read a sparse matrix: pip install scipy") from error
    except (OSError, ValueError, EOFError, KeyError) as error:
        wanted = "a matrix (.npz of scipy.sparse, or .npy)"
        raise ValueError(f"--operator must be {wanted} that fits --size, {operator} is none: {error}") from error


OPERATORS = {make.__name__: make for make in (blur, inpaint, downsample, ct, mri, cs, matrix)}


def _kernel(file: str | None, sigma: float | None, size: int | str | None, default: float) -> Tensor:
    """That of a file, or a Gaussian one."""
    if file is None:
        return gaussian_kernel(default if sigma is None else sigma, size)
    for option, value in (("--blur-sigma", sigma), ("--blur-size", size)):
        if value is not None:
            raise ValueError(f"--kernel and {option} are two blurs; give one of them")
    kernel = read_operand("--kernel", file, 2)
    is_picture = Path(file.partition("::")[0]).suffix.lower() not in (".npy", *containers.CONTAINER_SUFFIXES)
    return kernel / kernel.sum() if is_picture else kernel


def _mask(file: str) -> Tensor:
    return (read_operand("--mask", file, 2) > 0.5).double()


def read_operand(option: str, name: str, dims: int) -> Tensor:
    """The array of a file, of so many axes; an error where there is no such file, or not one such array in it."""
    file, _, wanted = str(name).partition("::")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {option.strip('-')} file {path}")
    suffix, member = path.suffix.lower(), None
    try:
        if suffix in containers.CONTAINER_SUFFIXES:
            found, _ = containers.members(path, containers.Arrays(dims))
            found = [member for member in found if not wanted or member.name == wanted]
            if len(found) != 1 or found[0].index is not None:
                names = ", ".join(map(str, found)) or "none"
                raise ValueError(f"it must hold one array of {dims} axes, or FILE::NAME pick one; found {names}")
            member = found[0]
        if member is not None or suffix == ".npy":
            array, _ = Source(path, path, member).read_array()
        else:
            pixels = read_image(path).pixels.numpy()
            array = pixels[0] if len(pixels) == 1 else pixels
    except ValueError as error:
        raise ValueError(f"{option} must be a readable file, {path} is none: {error}") from error
    if array.dtype.kind not in "fiucb":
        raise ValueError(f"{option} must hold numbers, got {array.dtype} in {path}")
    if array.ndim != dims:
        raise ValueError(f"{option} must have {dims} axes, got shape {array.shape} in {path}")
    return torch.from_numpy(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
