"""The examples of docstrings run, and what users call has one."""

import doctest
import importlib
import inspect
import pkgutil
import warnings
from pathlib import Path

import pytest

import lpn_fast as lf

NOT_RUN = ("kernels", "_cpu", "_cuda", "__main__")  # parts of module names: other people's interpreters, and commands
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    folder = str(Path(lf.__file__).parent)  # the path of an editable installation has the checkout on it, too
    names = (info.name for info in pkgutil.walk_packages([folder], "lpn_fast."))
    return [name for name in names if not set(NOT_RUN) & set(name.split("."))]


def run(module):
    """Number of examples that ran; AssertionError with the output of those that fail."""
    count, lines = 0, []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module=module):
        runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
        found = runner.run(test, out=lines.append)
        count += found.attempted
        assert found.failed == 0, "".join(lines)
    return count


def test_every_example_runs():
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules():
            try:
                module = importlib.import_module(name)
            except ImportError as error:  # adapters to packages that are not installed
                assert "needs" in str(error), name
                continue
            count += run(module)
    assert count > 150


def functions_and_classes(module):
    for name in module.__all__:
        thing = getattr(module, name)
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and not getattr(thing, "_is_protocol", False):
            yield f"{module.__name__}.{name}", thing


@pytest.mark.parametrize("module", [lf, lf.physics, lf.metrics, lf.optim], ids=lambda module: module.__name__)
def test_what_users_call_has_an_example(module):
    without = [name for name, thing in functions_and_classes(module) if ">>>" not in (inspect.getdoc(thing) or "")]
    assert without == []


def test_an_example_that_is_wrong_is_noticed():
    module = type(doctest)("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n"
    with pytest.raises(AssertionError, match="Expected"):
        run(module)
