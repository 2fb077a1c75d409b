"""What ptxas said of the CUDA kernels when the package was built: no spill, no stack, no warning; for which devices."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.gpu.gates import kernels

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted(ROOT.glob("build/*/cuda_resources/*.txt"))
UNITS = {path.name for path in (ROOT / "kernels" / "cuda").glob("*.cu")}
built = pytest.mark.skipif(
    not REPORTS, reason="no report of a CUDA build" + ("" if shutil.which("nvcc") else ": there is no nvcc here")
)


def architectures() -> set[str]:
    """Those that CMakeLists.txt names and this nvcc knows."""
    named = re.search(r"foreach\(arch ([\w ]+)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()
    if shutil.which("nvcc") is None:
        return {"sm_80", "sm_90"}
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return {arch for arch in named if arch in known}


@built
def test_every_unit_was_compiled_for_every_architecture():
    assert {path.name.removesuffix(".o.txt") for path in REPORTS} == UNITS
    for path in REPORTS:
        found = kernels(path.read_text())
        if path.name.startswith("mlp_") and "launch" not in path.name:
            assert architectures() == {arch for _, arch in found}
            # packing; prox, hvp and vjp for five known widths, any width, and wider ones; prox with wide tiles
            assert len(found) >= len(architectures()) * (1 + 3 * 6 + 1 + (7 if "16" in path.name else 4))


@built
@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.name.removesuffix(".o.txt"))
def test_no_kernel_spills_or_keeps_a_stack(path):
    text = path.read_text()
    assert "warning" not in text.lower()
    for kernel, (stack, stores, loads, registers) in kernels(text).items():
        assert (stack, stores, loads) == (0, 0, 0), f"{kernel}: {stack} bytes of stack, {stores} + {loads} spilled"
        assert registers <= 255


def cuobjdump() -> str | None:
    """NVIDIA's tool, of the toolkit or as Triton brings it."""
    found = shutil.which("cuobjdump")
    spec = None if found else importlib.util.find_spec("triton")
    theirs = spec and Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return found or (str(theirs) if theirs and theirs.exists() else None)


@pytest.mark.skipif(importlib.util.find_spec("lpn_fast._cuda") is None, reason="no CUDA module was built")
@pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump here")
def test_the_module_has_the_machine_code_and_ptx_that_it_says():
    module = importlib.import_module("lpn_fast._cuda")
    listed = {}
    for what, ending in (("elf", "cubin"), ("ptx", "ptx")):
        command = [cuobjdump(), f"--list-{what}", module.__file__]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        listed[what] = re.findall(rf"\.(sm_\w+)\.{ending}", text)
    assert {*module.code.split()} == {*listed["elf"]} | {name.replace("sm", "compute") for name in listed["ptx"]}
    assert architectures() | {"compute_80"} == {*module.code.split()}
    units = len(listed["ptx"])  # each in all of them
    assert all(listed["elf"].count(arch) == units for arch in listed["elf"])


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
