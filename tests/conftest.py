"""Fixtures that several test files use, and what deepinv needs to be imported."""

import importlib
import importlib.util

import pytest
import torch
from cases import FAMILIES, Case


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


@pytest.fixture(params=FAMILIES)
def case(request) -> Case:
    """Every family once, float64."""
    return Case(request.param)
