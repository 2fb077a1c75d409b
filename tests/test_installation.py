"""What is tested is the installed package with its compiled module, and its parts depend downwards only."""

import ast
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

import lpn_fast as lf
import lpn_fast.prior as prior_package

PACKAGE = Path(lf.__file__).parent
KERNELS = next(Path(folder) for folder in importlib.import_module("lpn_fast.kernels").__path__)

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


def every_module():
    """Names of all modules of the package, compiled ones and those of the kernels left to their own tests."""
    found = [lf.__name__]
    folders = [(lf.__path__, f"{lf.__name__}.")]
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
