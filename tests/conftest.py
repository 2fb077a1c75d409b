"""Fixtures that several test files use, and what deepinv needs to be imported."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, BrowserUnavailable
from cases import FAMILIES, Case, on_threads
from PIL import Image
from training_cases import photographs_in

sys.path.append(str(Path(__file__).resolve().parents[1]))  # bench/ belongs to the checkout, not to the package


def name_operators_of_torchvision() -> torch.library.Library:
    """Let torchvision be imported where its kernels cannot be loaded; the names live as long as what is returned.

    The wheels of the package index are for CUDA. Beside a torch for the CPU they load without their operators, and the
    import ends where it describes these. deepinv imports torchvision and calls none of them.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return library


if importlib.util.find_spec("torchvision"):
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        named = name_operators_of_torchvision()


_cpu = importlib.import_module("lpn_fast._cpu") if importlib.util.find_spec("lpn_fast._cpu") else None


@pytest.fixture(params=_cpu.isas() if _cpu else ())
def isa(request):
    """The instruction set that the C++ kernels use, each in turn."""
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(scope="module")
def one_thread():
    """For small networks and images: a second thread costs more than it brings, above all on a busy machine."""
    with on_threads(1):
        yield


@pytest.fixture
def seed_zero():
    torch.manual_seed(0)


@pytest.fixture
def photographs(tmp_path):
    """A folder of three small pictures."""
    return photographs_in(tmp_path / "photographs")


@pytest.fixture
def surfaces(tmp_path):
    """A folder with three gray PNGs of different sizes; their pixels."""
    folder, rng, pixels = tmp_path / "surfaces", np.random.default_rng(0), []
    folder.mkdir()
    for index, size in enumerate([(40, 50), (33, 47), (64, 32)]):
        pixels.append(rng.integers(0, 256, size, dtype=np.uint8))
        Image.fromarray(pixels[-1]).save(folder / f"{index}.png")
    return folder, pixels


@pytest.fixture(params=FAMILIES)
def case(request) -> Case:
    """Every family once, float64."""
    return Case(request.param)


@pytest.fixture(scope="session")
def browser():
    """A headless browser, for tests of pages."""
    try:
        window = Browser()
    except BrowserUnavailable as error:
        pytest.skip(str(error))
    with window:
        yield window
