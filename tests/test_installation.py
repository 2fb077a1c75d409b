"""What is tested is the installed package with its compiled module, and its parts depend downwards only."""

import ast
import importlib
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lpn_fast as lf
import lpn_fast.prior as prior_package

PACKAGE = Path(lf.__file__).parent
KERNELS = next(Path(folder) for folder in importlib.import_module("lpn_fast.kernels").__path__)
ROOT = Path(__file__).resolve().parent.parent

# cli -> pipeline, training -> solvers, prior -> networks -> ops -> algebra; pipeline, data -> io
MAY_IMPORT = {
    "atomic": set(),  # whoever writes files may import it
    "algebra": set(),
    "metrics": set(),
    "per_sample": set(),
    "physics": {"per_sample"},
    "io": {"atomic"},
    "data": {"atomic", "io"},
    "ops": {"atomic", "algebra", "per_sample"},
    "networks": {"atomic", "algebra", "ops", "per_sample"},
    # solvers: training through minimisers; ops: the names of precisions
    "training": {"atomic", "networks", "metrics", "data", "physics", "solvers", "ops", "per_sample"},
    "solvers": {"networks", "physics", "per_sample"},
    "choice": {"networks", "physics"},
    "restoration": {"choice", "networks", "physics", "solvers", "per_sample"},
    "prior": {"networks", "ops", "algebra", "per_sample"},
    "pipeline": {
        *("atomic", "io", "networks", "per_sample", "physics", "solvers", "choice", "restoration", "prior", "metrics")
    },
    "jobs": {"atomic", "io", "networks", "pipeline"},
    "benchmark": {"atomic", "algebra", "networks", "ops", "physics", "prior", "solvers"},
    "interop": {"atomic", "algebra", "networks", "ops", "physics", "prior"},
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


def every_module():
    """Names of all modules of the package, compiled ones and those of the kernels left to their own tests."""
    found = [lf.__name__]
    # not lf.__path__: an editable installation has the whole checkout in it, where the kernels are
    folders = [([str(PACKAGE)], f"{lf.__name__}."), ([str(KERNELS)], "lpn_fast.kernels.")]
    while folders:
        for module in pkgutil.iter_modules(*folders.pop()):
            if module.name.split(".")[1] not in ("_cpu", "_cuda") and not module.name.endswith("__main__"):
                found.append(module.name)
                if module.ispkg:
                    spec = importlib.util.find_spec(module.name)
                    folders.append((spec.submodule_search_locations, f"{module.name}."))
    return found


def hidden_by(parent, name: str) -> object:
    """What stands in a package where its module `name` should; None where nothing does."""
    found = getattr(parent, name)
    return None if found is sys.modules[f"{parent.__name__}.{name}"] else found


def test_no_function_hides_its_module():
    for name in every_module():
        try:
            importlib.import_module(name)
        except ImportError as error:  # an optional dependency, such as Triton
            assert not (error.name or "").startswith("lpn_fast"), name
            continue
        parent, _, last = name.rpartition(".")
        if parent:
            assert hidden_by(sys.modules[parent], last) is None, (
                f"{name} is hidden by {getattr(sys.modules[parent], last)}"
            )


def test_a_hidden_module_is_noticed(monkeypatch):
    importlib.import_module("lpn_fast.prior.value")
    monkeypatch.setattr(prior_package, "value", lf.invert)
    assert hidden_by(prior_package, "value") is lf.invert


def test_the_package_prior_may_be_called():
    assert lf.prior is prior_package and sys.modules["lpn_fast.prior"] is prior_package
    assert lf.prior.Verdict is lf.Verdict
    model = lf.MLPLPN(dim=3, alpha=0.1).eval()
    x = torch.rand(2, 3)
    assert torch.equal(lf.prior(model, x).value, prior_package.prior(model, x).value)


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()


def foreign_imports(source: str) -> list[str]:
    """Imports that name the package instead of being relative, and future annotations, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
            if node.module == "__future__" and any(alias.name == "annotations" for alias in node.names):
                found.append(f"line {node.lineno}: annotations of the future")
        found += [f"line {node.lineno}: {name}" for name in modules if name.split(".")[0] == "lpn_fast"]
    return found


def test_imports_within_the_package_are_relative():
    files = [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]
    assert len(files) > 100
    found = {str(path): lines for path in files if (lines := foreign_imports(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "source, count",
    [
        ("from . import registry\nimport torch\nfrom ..networks import LPN", 0),
        ("def f():\n    import lpn_fast.networks", 1),
        ("from lpn_fast import networks", 1),
        ("import lpn_fast as lf, torch", 1),
        ("from __future__ import annotations", 1),
    ],
)
def test_an_absolute_import_is_noticed(source, count):
    assert len(foreign_imports(source)) == count


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
