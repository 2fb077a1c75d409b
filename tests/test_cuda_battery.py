"""The battery's parts about dense networks: their Python runs through on a machine without a GPU."""

import pytest
import torch

from bench.gpu import mlp_bench, mlp_numerics, mlp_sanitizer
from bench.gpu.mlp_part import Session, error, run_part

PARTS = {"mlp_numerics": mlp_numerics, "mlp_bench": mlp_bench, "mlp_sanitizer": mlp_sanitizer}


@pytest.mark.parametrize("name", PARTS)
def test_a_dry_run_measures_nothing_and_passes(name, tmp_path, capsys):
    part = PARTS[name]
    assert run_part(name, part.__doc__, part.measure, ["--dry-run", "--out", str(tmp_path), "--seconds", "5"]) == 0
    assert "0 checks failed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_there_is_nothing_to_measure(capsys):
    assert run_part("mlp_bench", "", mlp_bench.measure, []) == 3
    assert "no CUDA device" in capsys.readouterr().out


def test_a_failed_check_is_the_exit_code(capsys):
    def measure(session: Session) -> None:
        nan = torch.full((3,), torch.nan)
        session.check("NaN is not small", error(nan, torch.ones(3).double()) <= 1.0)

    assert run_part("any", "", measure, ["--dry-run"]) == 1
