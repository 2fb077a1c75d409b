"""What ptxas said of the CUDA kernels when the package was built: nothing spilled, no stack, no warning."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from bench.gpu.gates import kernels

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted(ROOT.glob("build/*/cuda_resources/*.txt"))
UNITS = {path.name for path in (ROOT / "kernels" / "cuda").glob("*.cu")}
built = pytest.mark.skipif(
    not REPORTS, reason="no report of a CUDA build" + ("" if shutil.which("nvcc") else ": there is no nvcc here")
)


@built
def test_every_unit_was_compiled_for_both_architectures():
    assert {path.name.removesuffix(".o.txt") for path in REPORTS} == UNITS
    for path in REPORTS:
        found = kernels(path.read_text())
        if path.name.startswith("mlp_") and "launch" not in path.name:
            assert {"sm_80", "sm_90"} <= {arch for _, arch in found}
            # packing; prox, hvp and vjp for five known widths, any width, and wider ones; prox with wide tiles
            assert len(found) >= 2 * (1 + 3 * 6 + 1 + (7 if "16" in path.name else 4))


@built
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


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """csrc/tools/compile_kernels.py in a project of its own, and a compiler that counts its runs."""
    spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / "csrc" / "tools" / "compile_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path / "one")
    monkeypatch.setenv("LPN_FAST_COMPILE_CACHE", str(tmp_path / "kept"))
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exec echo 1.0\n"
        f"echo run >> {tmp_path}/runs; echo 'Used 7 registers' >&2; cp $2 $4; echo $4: $2 > $6\n"
    )
    compiler.chmod(0o755)

    def compile_in(project: str, text: str) -> tuple[str, str, int]:
        """(object, dependencies, runs of the compiler so far)"""
        root = tmp_path / project
        root.mkdir(exist_ok=True)
        monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.chdir(root)
        source = root / "kernel.cu"
        source.write_text(text)
        code = module.main("reports", str(compiler), "-c", str(source), "-o", "kernel.o", "-MF", "kernel.d")
        assert code == 0 and "Used 7 registers" in Path("reports", "kernel.o.txt").read_text()
        runs = (tmp_path / "runs").read_text().count("run")
        return Path("kernel.o").read_text(), Path("kernel.d").read_text(), runs

    return compile_in


def test_the_same_text_is_compiled_once_wherever_it_lies(launcher, tmp_path):
    assert launcher("one", "first")[2] == 1
    text, dependencies, runs = launcher("two", "first")
    assert (text, runs) == ("first", 1)
    assert dependencies == f"kernel.o: {tmp_path}/two/kernel.cu\n"
    assert launcher("two", "changed")[2] == 2
    (tmp_path / "two" / "mlp.h").write_text("a header beside it")
    assert launcher("two", "changed")[2] == 3


def test_without_a_cache_everything_is_compiled(launcher, monkeypatch):
    monkeypatch.setenv("LPN_FAST_COMPILE_CACHE", "off")
    assert launcher("one", "first")[2] == 1
    assert launcher("one", "first")[2] == 2
