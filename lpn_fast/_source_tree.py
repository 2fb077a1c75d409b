"""What a checkout lacks of the package, found where it lies: `python -m lpn_fast.cli` runs without an installation.

    lpn_fast.kernels         the folder beside the package, which an installation puts inside it
    lpn_fast._cpu, ._cuda    the compiled modules of an installed copy, if it has this version

The finder is asked last, so whatever Python finds by itself comes first. Without compiled modules torch's backend runs.
"""

import importlib.metadata
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from . import __version__

PACKAGE = Path(__file__).parent
COMPILED = ("_cpu", "_cuda")


def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
    """The spec of a module that only a source tree has to search for, else None."""
    package, _, module = name.partition(".")
    if package != __package__:
        return None
    if module == "kernels":
        return importlib.util.spec_from_file_location(name, PACKAGE.parent / "kernels" / "__init__.py")
    if module in COMPILED:
        try:
            installed = importlib.metadata.distribution("lpn-fast")
        except importlib.metadata.PackageNotFoundError:
            return None
        if installed.version == __version__:
            return PathFinder.find_spec(name, [str(installed.locate_file(package))])
    return None


if (PACKAGE.parent / "pyproject.toml").exists():
    sys.meta_path.append(sys.modules[__name__])  # a module with find_spec is a finder
