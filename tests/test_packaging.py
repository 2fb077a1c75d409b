"""The package as others receive it: built without torch, linked to neither torch nor an OpenMP library.

A wheel is built in isolation from the source archive, that is from exactly what is published. No GPU and no
import of the package is needed, except where the installed module itself is looked at.
"""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNREACHABLE = (
    "No matching distribution found",
    "Could not find a version",
    "Temporary failure in name resolution",
    "Connection refused",
    "Network is unreachable",
)


def needed_libraries(module):
    """Names in the NEEDED entries of an ELF file."""
    if not shutil.which("readelf"):
        pytest.skip("readelf (binutils) is not installed")
    output = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    return [line.split("[")[1].rstrip("]") for line in output.splitlines() if "(NEEDED)" in line]


def assert_links_no_runtime(module):
    needed = needed_libraries(module)
    assert needed, f"{module} has no dynamic section"
    for library in needed:
        assert not library.startswith(("libtorch", "libc10", "libgomp", "libomp", "libiomp", "libcudart")), library


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source archive, made by the build backend in a process of its own."""
    pytest.importorskip("scikit_build_core", reason="the build backend is not installed (extra 'test')")
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the archive in a fresh environment that holds the build requirements only."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist]
    settings = ["-C", "cmake.define.LPN_FAST_CUDA=OFF"]  # nvcc would only add minutes
    done = subprocess.run([*command, *settings], cwd=folder, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode and any(sign in output for sign in UNREACHABLE):
        pytest.skip("the package index cannot be reached, so no isolated build")
    assert done.returncode == 0, output[-4000:]
    (built,) = folder.glob("*.whl")
    return built


def test_building_needs_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [requirement.split(">")[0] for requirement in project["build-system"]["requires"]]
    assert names == ["scikit-build-core", "pybind11"]


def test_sdist_holds_everything_the_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = ["CMakeLists.txt", "pyproject.toml", "LICENSE", "kernels/__init__.py", "lpn_fast/__init__.py"]
    wanted += [str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*") if path.suffix in (".cpp", ".h")]
    wanted += [str(path.relative_to(ROOT)) for path in ROOT.glob("kernels/**/*") if path.suffix in (".cu", ".h")]
    assert not set(wanted) - names
    assert not [name for name in names if name.startswith((".venv", "build/", ".git/")) or name.endswith(".so")]


@pytest.mark.slow
def test_wheel_holds_the_package_and_no_sources_of_the_module(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lpn_fast/__init__.py", "lpn_fast/py.typed"} <= set(names)
    assert "lpn_fast/kernels/__init__.py" in names
    assert len([name for name in names if name.startswith("lpn_fast/_cpu.")]) == 1
    assert not [name for name in names if "csrc" in name or name.endswith((".cpp", ".cu", ".h"))]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lpn_fast"}  # nothing else lands in site-packages


@pytest.mark.slow
def test_wheel_carries_the_pretrained_models(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("lpn_fast/pretrained/")}
    folder = ROOT / "lpn_fast" / "pretrained"
    shipped = [path for suffix in ("safetensors", "json", "md") for path in folder.glob(f"**/*.{suffix}")]
    assert {str(path.relative_to(ROOT)) for path in shipped} <= packed


@pytest.mark.slow
def test_built_module_links_neither_torch_nor_openmp(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.startswith("lpn_fast/_cpu.")]
        assert_links_no_runtime(archive.extract(name, tmp_path))


def test_installed_modules_link_neither_torch_nor_openmp():
    from lpn_fast import _cpu

    folder = Path(_cpu.__file__).parent
    modules = [path for path in folder.glob("_c*.so") if path.name.startswith(("_cpu.", "_cuda."))]
    assert modules
    for module in modules:
        assert_links_no_runtime(module)
