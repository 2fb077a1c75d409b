"""What is tested is the installed package with its compiled module, and its parts depend downwards only."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lpn_fast as lf

PACKAGE = Path(lf.__file__).parent
ROOT = Path(__file__).resolve().parent.parent

# cli -> pipeline, training -> solvers, prior -> networks -> ops -> algebra; physics, metrics, data stand alone
MAY_IMPORT = {
    "algebra": set(),
    "metrics": set(),
    "per_sample": set(),
    "physics": {"per_sample"},
    "data": set(),
    "ops": {"algebra", "per_sample"},
    "networks": {"algebra", "ops", "per_sample"},
    "training": {"networks", "metrics", "data", "physics", "solvers", "per_sample"},  # through minimisers
    "solvers": {"networks", "physics", "per_sample"},
    "prior": {"networks", "ops", "algebra", "per_sample"},
    "pipeline": {"networks", "physics", "solvers", "prior", "metrics", "data"},
    "interop": {"algebra", "networks", "ops", "physics", "pipeline", "prior"},
}


def test_compiled_module_is_there():
    assert importlib.util.find_spec("lpn_fast._cpu") is not None, "run `make setup` and test with its environment"


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of lpn_fast that a source file imports."""
    depth = len(path.relative_to(PACKAGE).parts)
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            if node.level == depth:  # from the package itself: `from ..part` or `from .. import part`
                parts |= {module[0]} if module[0] else {alias.name for alias in node.names}
            elif node.level == 0 and module[0] == "lpn_fast":
                parts |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            parts |= {name.name.split(".")[1] for name in node.names if name.name.startswith("lpn_fast.")}
    return parts


def test_dependence_runs_one_way():
    for part, allowed in MAY_IMPORT.items():
        files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else (PACKAGE / part).rglob("*.py")
        for path in files:
            above = (imported_parts(path) & set(MAY_IMPORT)) - allowed - {part}
            assert not above, f"{path.relative_to(PACKAGE)} must not import {above}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git knows of the repository, in a folder of its own: no compiled module and no link to the kernels."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the sources are no git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed.stdout.strip("\0").split("\0"):
        if name.split("/")[0] in ("lpn_fast", "kernels", "pyproject.toml") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def python_in(checkout: Path, *arguments: str, first: Path | None = None) -> str:
    """What Python prints there. No .pth file is read (-S), so no editable installation puts its package in front."""
    libraries = [
        Path(importlib.util.find_spec(name).origin).parent.parent for name in ("torch", "numpy", "safetensors")
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LPN_FAST"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, ([first] if first else []) + libraries))
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_checkout_finds_its_own_kernels(checkout):
    code = "import lpn_fast, lpn_fast.kernels.triton as kernels; print(lpn_fast.__file__, kernels.__file__, sep='\\n')"
    package, kernels = python_in(checkout, "-c", code).splitlines()
    assert Path(package) == checkout / "lpn_fast" / "__init__.py"
    assert Path(kernels) == checkout / "kernels" / "triton" / "__init__.py"
    assert f"lpn_fast {lf.__version__}" in python_in(checkout, "-m", "lpn_fast.cli", "info")


def test_only_the_kernels_are_looked_for_beside_the_package(checkout):
    code = "import importlib.util, lpn_fast; print(*map(importlib.util.find_spec, ['lpn_fast.bench', 'lpn_fast.csrc']))"
    for folder in ("bench", "csrc"):
        (checkout / folder).mkdir(exist_ok=True)
    assert python_in(checkout, "-c", code).split() == ["None", "None"]


def installed_copy(folder: Path, version: str) -> Path:
    """A site folder with an installed lpn-fast of a version and this installation's compiled module in it."""
    compiled = Path(importlib.util.find_spec("lpn_fast._cpu").origin)
    for name in ("lpn_fast", f"lpn_fast-{version}.dist-info"):
        (folder / name).mkdir(parents=True)
    (folder / f"lpn_fast-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: lpn-fast\nVersion: {version}\n"
    )
    (folder / "lpn_fast" / compiled.name).symlink_to(compiled)
    return folder


def test_a_checkout_borrows_the_compiled_module_of_its_own_version(checkout, tmp_path):
    site = installed_copy(tmp_path, lf.__version__)
    code = "import lpn_fast; from lpn_fast import _cpu; print(lpn_fast.__file__, _cpu.__file__, sep='\\n')"
    package, compiled = python_in(checkout, "-c", code, first=site).splitlines()
    assert Path(package).is_relative_to(checkout)
    assert Path(compiled).parent == site / "lpn_fast"


def test_without_a_compiled_module_of_its_version_torch_runs_and_info_says_why(checkout, tmp_path):
    site = installed_copy(tmp_path, "0.0.1")
    report = python_in(checkout, "-m", "lpn_fast.cli", "info", first=site)
    section = report.split("compiled CPU module\n")[1].splitlines()
    assert "no installed copy of this version" in section[0]
    backends = report.split("backends, ")[1].split("shipped models")[0]
    assert "torch" in backends


def test_every_card_of_shipped_weights_names_their_data_and_licence():
    for name in lf.list_pretrained():
        rows = (PACKAGE / "pretrained" / f"{name}.md").read_text().splitlines()
        assert any(row.startswith("| data | ") for row in rows), name
        assert any(row.startswith("| licence | weights Apache-2.0") for row in rows), name
