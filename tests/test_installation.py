"""What is tested is the installed package with its compiled module, and its parts depend downwards only."""

import ast
import importlib.util
from pathlib import Path

import lpn_fast as lf

PACKAGE = Path(lf.__file__).parent

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
    "restoration": {"networks", "physics", "solvers", "per_sample"},
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
