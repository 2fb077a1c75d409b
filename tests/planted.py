"""Bugs planted in copies of a module, to see that a test would find them."""

import importlib.util
from pathlib import Path


def mutant(module, old, new, folder):
    """A copy of a kernel's module with one piece of its text replaced."""
    text = Path(module.__file__).read_text()
    assert old in text, f"{old!r} is not in {module.__file__} any more: plant the bug elsewhere"
    path = folder / f"mutant_{Path(module.__file__).name}"
    path.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"{module.__package__}.mutant_{path.stem}", path)
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    return planted
