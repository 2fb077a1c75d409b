"""What ptxas said of the CUDA kernels when the package was built: nothing spilled, no stack, no warning."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted(ROOT.glob("build/*/cuda_resources/*.txt"))
UNITS = {path.name for path in (ROOT / "kernels" / "cuda").glob("*.cu")}
ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)

pytestmark = pytest.mark.skipif(
    not REPORTS, reason="no report of a CUDA build" + ("" if shutil.which("nvcc") else ": there is no nvcc here")
)


def kernels(text: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """(name, architecture) -> stack, spill stores, spill loads, registers"""
    return {(m[1], m[2]): tuple(map(int, m.groups()[2:])) for m in ENTRY.finditer(text)}


def test_every_unit_was_compiled_for_both_architectures():
    assert {path.name.removesuffix(".o.txt") for path in REPORTS} == UNITS
    for path in REPORTS:
        found = kernels(path.read_text())
        if path.name.startswith("mlp_") and "launch" not in path.name:
            assert {"sm_80", "sm_90"} <= {arch for _, arch in found}
            assert len(found) >= 2 * 8  # packing, prox in three configurations, hvp and vjp in two


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.name.removesuffix(".o.txt"))
def test_no_kernel_spills_or_keeps_a_stack(path):
    text = path.read_text()
    assert "warning" not in text.lower()
    for kernel, (stack, stores, loads, registers) in kernels(text).items():
        assert (stack, stores, loads) == (0, 0, 0), f"{kernel}: {stack} bytes of stack, {stores} + {loads} spilled"
        assert registers <= 255


def test_a_spill_would_be_seen():
    text = """ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    24 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers"""
    assert kernels(text) == {("_Z1kv", "sm_90"): (24, 40, 44, 128)}
