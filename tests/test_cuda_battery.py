"""The battery's parts about dense networks: their Python runs through on a machine without a GPU."""

import pytest
import torch

from bench.gpu import mlp_bench, mlp_numerics, mlp_sanitizer
from bench.gpu.mlp_network import error
from bench.gpu.session import Nothing, Session, run_part

PARTS = [mlp_numerics, mlp_bench, mlp_sanitizer]
DRY = ["--dry-run", "--seconds", "5", "--out"]

without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Dry runs switch Triton's interpreter on, for the whole process; set here so that it is put back."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def run(part, measure, arguments) -> int:
    return run_part(part.__name__, part.__doc__, measure, arguments)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__.rsplit(".", 1)[-1])
def test_a_dry_run_measures_nothing_and_passes(part, tmp_path, capsys):
    assert run(part, part.measure, [*DRY, str(tmp_path)]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@without_device
def test_without_a_device_there_is_nothing_to_measure(capsys):
    assert run(mlp_bench, mlp_bench.measure, []) == 3
    assert "no CUDA device" in capsys.readouterr().out


def test_a_failed_check_is_the_exit_code(tmp_path, capsys):
    def measure(session: Session) -> None:
        nan = torch.full((3,), torch.nan)
        session.check("NaN is not small", error(nan, torch.ones(3).double()) <= 1.0)

    assert run(mlp_bench, measure, [*DRY, str(tmp_path)]) == 1
    assert "FAILED NaN is not small" in capsys.readouterr().out


def test_what_raises_is_a_failed_check_and_nothing_to_do_is_not(tmp_path, capsys):
    def breaks(session: Session) -> None:
        session.check("before", True)
        raise RuntimeError("out of memory")

    def idles(session: Session) -> None:
        raise Nothing("no tool for it")

    assert run(mlp_bench, breaks, [*DRY, str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "ok   before" in out and "FAILED mlp_bench  RuntimeError: out of memory" in out
    assert run(mlp_bench, idles, [*DRY, str(tmp_path)]) == 3
