"""How a part of the GPU battery ends: checks that fail, what raises, nothing to do. Every part: test_gpu_battery.py."""

import pytest
import torch

from bench.gpu import mlp_bench
from bench.gpu.mlp_network import error
from bench.gpu.session import Nothing, Session, run_part

DRY = ["--dry-run", "--seconds", "5", "--out"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Dry runs switch Triton's interpreter on, for the whole process; set here so that it is put back."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def run(measure, folder) -> int:
    return run_part(mlp_bench.__name__, mlp_bench.__doc__, measure, [*DRY, str(folder)])


def test_a_failed_check_is_the_exit_code(tmp_path, capsys):
    def measure(session: Session) -> None:
        nan = torch.full((3,), torch.nan)
        session.check("NaN is not small", error(nan, torch.ones(3).double()) <= 1.0)

    assert run(measure, tmp_path) == 1
    assert "FAILED NaN is not small" in capsys.readouterr().out


def test_what_raises_is_a_failed_check_and_nothing_to_do_is_not(tmp_path, capsys):
    def breaks(session: Session) -> None:
        session.check("before", True)
        raise RuntimeError("out of memory")

    def idles(session: Session) -> None:
        raise Nothing("no tool for it")

    assert run(breaks, tmp_path) == 1
    out = capsys.readouterr().out
    assert "ok   before" in out and "FAILED mlp_bench  RuntimeError: out of memory" in out
    assert run(idles, tmp_path) == 3
